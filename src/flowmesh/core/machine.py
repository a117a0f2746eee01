"""The control plane: events in, decisions out. No clock, no chance, no IO."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import Decision, LoseWorker
from flowmesh.core.events import Event, WorkerSynced
from flowmesh.core.plan import LEASE_MS, Policy, Utility
from flowmesh.core.records import Lease, Step
from flowmesh.core.state import State

DECISIONS_LIMIT = 1_000


class ControlPlane:
    """Holds the state; the server and the simulator drive it, each event by `step`.

    A worker that is silent for `lease_ms` is lost.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        state: State | None = None,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self.state = state or State()
        self.policy = policy or Utility()
        self.lease_ms = lease_ms
        self._silences = Silences(self.state)
        self._more = False

    def step(self, event: Event) -> list[Decision]:
        """Apply one event; return, already applied, the decisions it calls for."""
        apply(self.state, event)
        if isinstance(event, WorkerSynced):
            self._silences.heard(self.state, event.worker)
        made: list[Decision] = []
        for loss in self._silences.over(self.state, self.lease_ms):
            apply(self.state, loss)
            made.append(loss)
        while len(made) < DECISIONS_LIMIT and (choice := self.policy.decide(self.state)):
            apply(self.state, choice)
            made.append(choice)
        self._more = len(made) >= DECISIONS_LIMIT
        return made

    def replay(self, records: Iterable[Event | Decision]) -> None:
        """Go on from a journal. Recorded decisions are applied, never made again."""
        for record in records:
            apply(self.state, record)
        self._silences = Silences(self.state)

    def desired(self, worker: WorkerId) -> list[tuple[Lease, tuple[TaskId, ...]]]:
        """What `worker` should be running now, with the tasks still open in each lease."""
        known = self.state.workers.get(worker)
        held = known.leases if known else ()
        return [(self.state.leases[lease], tuple(self.state.lease_left[lease])) for lease in held]

    def stopping(self, worker: WorkerId) -> list[tuple[LeaseId, int]]:
        """Leases of `worker` that have ended and may leave a checkpoint; and until when."""
        stops = self.state.stopping.items()
        return [(lease, stop.due_ms) for lease, stop in stops if stop.worker == worker]

    def outstanding(self) -> list[Step]:
        """Steps that the driver must expand or assemble: a pure reading of the state."""
        return [self.state.steps[step_id] for step_id in self.state.todo]

    def next_deadline_ms(self) -> int | None:
        """When to send a Tick if nothing else happens first."""
        if self._more:
            return self.state.now_ms
        heard_ms = self._silences.longest_ms(self.state)
        silent = () if heard_ms is None else (heard_ms + self.lease_ms,)
        wakes_ms = self.policy.wakes_ms(self.state)
        due = (*silent, *self.state.delayed, *(() if wakes_ms is None else (wakes_ms,)))
        return min(due, default=None)


class Silences:
    """Workers by when they were last heard: an index of the state that costs next to nothing.

    Each worker has one entry in a heap. One that was heard since is put right when it is found
    at the top.
    """

    def __init__(self, state: State) -> None:
        self._heap = [(worker.heard_ms, worker.id) for worker in state.workers.values()]
        heapify(self._heap)
        self._known = dict.fromkeys(state.workers)

    def heard(self, state: State, worker_id: WorkerId) -> None:
        """A worker was heard: for the first time, perhaps."""
        worker = state.workers.get(worker_id)
        if worker is not None and worker_id not in self._known:
            self._known[worker_id] = None
            heappush(self._heap, (worker.heard_ms, worker_id))

    def longest_ms(self, state: State) -> int | None:
        """When the worker that is silent for longest was heard; None if there is no worker."""
        heap = self._heap
        while heap:
            heard_ms, worker_id = heap[0]
            worker = state.workers.get(worker_id)
            if worker is None:
                heappop(heap)
                del self._known[worker_id]
            elif worker.heard_ms != heard_ms:
                heapreplace(heap, (worker.heard_ms, worker_id))
            else:
                return heard_ms
        return None

    def over(self, state: State, lease_ms: int) -> Iterator[LoseWorker]:
        """Workers that have been silent for `lease_ms` are lost; each is to be lost in turn."""
        while True:
            heard_ms = self.longest_ms(state)
            if heard_ms is None or state.now_ms - heard_ms < lease_ms:
                return
            yield LoseWorker(state.now_ms, self._heap[0][1])
