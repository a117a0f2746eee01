"""What a worker has to say of tasks that run: the newest of each, and checkpoints until settled."""

import asyncio
import math
from collections.abc import Callable, Iterable

from flowmesh.wire import TaskProgress

Pair = tuple[int, str]
MESSAGE_LIMIT = 1000
#: The server is not told of progress more often than this; it would not keep it.
GAP_S = 5.0


class Tidings:
    """Progress by lease and task. `wake` is called when there is something to say."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._said_s = -math.inf
        self._newest: dict[Pair, TaskProgress] = {}
        self._unsaid: dict[Pair, None] = {}
        self._checkpoints: dict[Pair, TaskProgress] = {}
        #: What went wrong with the last checkpoint.
        self._troubles: dict[Pair, str] = {}

    def progress(
        self, lease: int, task: str, step: int, steps: int, facts: dict[str, float]
    ) -> None:
        """How far a task is; replaces what was not said yet."""
        told = TaskProgress(lease=lease, task=task, step=step, steps=steps, facts=facts)
        self._say(told)

    def saved(self, lease: int, task: str, tree: str, step: int) -> None:
        """A task can go on from `step`: said until the server has heard it."""
        told = TaskProgress(lease=lease, task=task, step=step, checkpoint=tree)
        self._troubles.pop((lease, task), None)
        self._checkpoints[lease, task] = told
        self._wake()

    def trouble(self, lease: int, task: str, message: str) -> None:
        """A checkpoint was not stored, which does not end the task: said until one is."""
        self._troubles[lease, task] = message[:MESSAGE_LIMIT]
        blank = TaskProgress(lease=lease, task=task, step=0)
        self._say(self._newest.get((lease, task), blank))

    def _say(self, told: TaskProgress) -> None:
        pair = (told.lease, told.task)
        self._newest[pair] = told.model_copy(update={"message": self._troubles.get(pair, "")})
        self._unsaid[pair] = None
        if self._timer is None:
            due_s = max(self._loop.time(), self._said_s + GAP_S)
            self._timer = self._loop.call_at(due_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._unsaid:
            self._wake()

    def take(self) -> list[TaskProgress]:
        """What to say now. Progress is said once; it may be lost."""
        unsaid, self._unsaid = self._unsaid, {}
        if unsaid:
            self._said_s = self._loop.time()
        return [*self._checkpoints.values(), *(self._newest[pair] for pair in unsaid)]

    def unsettled(self) -> set[int]:
        """Leases with checkpoints that the server may not have heard of."""
        return {lease for lease, _ in self._checkpoints}

    def settle(self, saved: Iterable[tuple[int, str, str]]) -> bool:
        """The server has these checkpoints; true if one was waiting for that."""
        settled = False
        for lease, task, tree in saved:
            told = self._checkpoints.get((lease, task))
            if told is not None and told.checkpoint == tree:
                del self._checkpoints[lease, task]
                settled = True
        return settled

    def ended(self, lease: int) -> None:
        """Nothing runs under this lease any more."""
        for pair in [pair for pair in self._newest if pair[0] == lease]:
            del self._newest[pair]
            self._unsaid.pop(pair, None)
            self._troubles.pop(pair, None)
