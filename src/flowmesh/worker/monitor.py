"""What a long task says while it runs, seen from its own process; see `runtimes.base.Monitor`.

child -> worker   {"task", "progress": {"step", "steps", "facts"}}
                  {"task", "saved": digest, "step", "puts"}: a checkpoint, and what was put
                  for it since the last message
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

from flowmesh.base.digest import Digest
from flowmesh.runtimes.base import Progress
from flowmesh.wire import FACTS_LIMIT
from flowmesh.worker import frames

#: Least time between two messages about the progress of one task.
GAP_S = 1.0
#: Longest name of a fact.
NAME_LIMIT = 64


class StopFlag:
    """Set by SIGTERM, for the rest of this process's life: a stopped child is not used again."""

    def __init__(self) -> None:
        self.asked = False

    def watch(self) -> None:
        """From now on; in the main thread."""
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class ChildMonitor:
    """The monitor of one task. Engines may call it from any thread."""

    def __init__(
        self,
        task: str,
        say: Callable[[frames.Frame], None],
        taken: Callable[[], list[str]],
        flag: StopFlag,
        interruptions_per_hour: float,
    ) -> None:
        """`taken` gives the digests that were put since it was last asked."""
        self._task, self._say, self._taken, self._flag = task, say, taken, flag
        self._interruptions_per_hour = interruptions_per_hour
        self._lock = threading.Lock()
        self._pending: Progress | None = None
        self._timer: threading.Timer | None = None
        self._told_s = -math.inf

    @property
    def interruptions_per_hour(self) -> float:
        return self._interruptions_per_hour

    @property
    def stopping(self) -> bool:
        return self._flag.asked

    def progress(self, progress: Progress) -> None:
        with self._lock:
            self._pending = progress
            if self._timer is not None:
                return
            wait_s = self._told_s + GAP_S - time.monotonic()
            if wait_s <= 0:
                self._tell()
                return
            self._timer = threading.Timer(wait_s, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def saved(self, tree: Digest, step: int) -> None:
        self.flush()
        self._say({"task": self._task, "saved": str(tree), "step": step, "puts": self._taken()})

    def flush(self) -> None:
        """Say now what was held back."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._tell()

    def _tell(self) -> None:
        held, self._pending = self._pending, None
        if held is not None:
            self._told_s = time.monotonic()
            facts = sayable(held.facts)
            told = {"step": held.step, "steps": held.steps, "facts": facts}
            self._say({"task": self._task, "progress": told})


def sayable(facts: Mapping[str, float]) -> dict[str, float]:
    """Facts that JSON can hold (a loss may be NaN), as many as the server takes."""
    finite = ((str(name)[:NAME_LIMIT], float(value)) for name, value in facts.items())
    kept = [(name, value) for name, value in finite if math.isfinite(value)]
    return dict(kept[:FACTS_LIMIT])
