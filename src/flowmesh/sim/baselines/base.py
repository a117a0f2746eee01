"""What all baselines share: whole batches of one key, granted to the worker that a rule names.

They drive the same control plane and see the same state as our policy. What they know beside it
are the true times of the engines (`known.py`), which ours has to learn.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.core import needs, pool
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.fleet import Worker
from flowmesh.core.records import Expected
from flowmesh.core.state import ReadyKey, State
from flowmesh.sim.baselines.known import Known

#: No lease is longer than this many rows, so that a machine that goes does not take all with it.
ROWS_LIMIT = 4096


class Autoscaler(Protocol):
    """Rents and returns machines for a baseline."""

    def decide(self, state: State) -> Decision | None: ...

    def wakes_ms(self, state: State) -> int | None: ...


class Batches:
    """Makes leases as large as an engine takes well; which, and where, others say.

    Attributes:
        fill: rows of a lease as a multiple of those that the engine runs at one time: above 1,
            as short rows make room for others before the longest one ends.
        within_step: a batch holds rows of one step only.
        rows_most: of a batch, whatever the engine could take; None for no such limit.
    """

    fill = 2.0
    within_step = False
    rows_most: int | None = None

    def __init__(self, known: Known) -> None:
        self.known = known

    def lease(
        self, state: State, worker_id: WorkerId, batch_key: str, tasks: Iterator[TaskId]
    ) -> GrantLease:
        """A batch of the first of `tasks`, all of one key."""
        worker = state.workers[worker_id]
        first = next(tasks)
        rows = [
            first,
            *islice(self._matching(state, first, tasks), self._room(state, worker, first)),
        ]
        return GrantLease(
            state.now_ms,
            LeaseId(state.next_lease),
            worker_id,
            batch_key,
            tuple(rows),
            expected=Expected(reference_usd=self.known.reference_usd(batch_key) * len(rows)),
        )

    def _room(self, state: State, worker: Worker, first: TaskId) -> int:
        """How many rows a lease on `worker` may have beside the first."""
        task = state.tasks[first]
        rows = self.fill * self.known.rows(task.spec.batch_key, worker.device)
        most = min(task.batch_limit, ROWS_LIMIT, self.rows_most or ROWS_LIMIT)
        return max(0, min(int(rows), most) - 1)

    def _matching(self, state: State, first: TaskId, tasks: Iterator[TaskId]) -> Iterator[TaskId]:
        """Those that may share a lease with `first`."""
        step, limit = state.tasks[first].owner, state.tasks[first].batch_limit
        for task_id in tasks:
            task = state.tasks[task_id]
            if task.batch_limit < limit or (self.within_step and task.owner != step):
                return
            yield task_id


class Baseline(Batches, ABC):
    """First come first served over batch keys; a subclass says on which worker."""

    def __init__(self, known: Known, autoscaler: Autoscaler | None = None) -> None:
        super().__init__(known)
        self.autoscaler = autoscaler

    def decide(self, state: State) -> Decision | None:
        granted = self._grant(state) if state.idle and state.ready else None
        if granted is not None or self.autoscaler is None:
            return granted
        return self.autoscaler.decide(state)

    def wakes_ms(self, state: State) -> int | None:
        return self.autoscaler.wakes_ms(state) if self.autoscaler else None

    @abstractmethod
    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        """The worker to run the oldest of `key`; None if they shall wait for another."""

    def may(self, state: State, worker: Worker, batch_key: str, key: ReadyKey) -> bool:
        """Whether `worker` may run this key at all."""
        return needs.fits(worker, key) and self.known.fits(batch_key, worker.device)

    def _grant(self, state: State) -> GrantLease | None:
        for name in in_order(state):
            key = state.ready[name]
            batch_key = pool.batch_key(state, key)
            idle = [state.workers[worker] for worker in state.idle]
            workers = [one for one in idle if self.may(state, one, batch_key, key)]
            worker = self.pick(state, batch_key, key, workers) if workers else None
            if worker is not None:
                return self.lease(state, worker.id, batch_key, oldest(state, key))
        return None


def in_order(state: State) -> list[str]:
    """Names of the ready keys: highest priority first, then the oldest."""

    def urgency(name: str) -> tuple[int, int, str]:
        tasks = [state.tasks[head] for head in pool.heads(state.ready[name])]
        return min((-task.priority, task.since_ms, name) for task in tasks)

    return sorted(state.ready, key=urgency)


def oldest(state: State, key: ReadyKey) -> Iterator[TaskId]:
    """Tasks of a key over all tenants: highest priority first, then the oldest.

    Lot by lot, so that what begins alike stays together.
    """

    def rank(lot: Iterable[TaskId]) -> tuple[int, int]:
        task = state.tasks[next(iter(lot))]
        return -task.priority, task.since_ms

    return chain.from_iterable(sorted(pool.lots(key), key=rank))
