"""The control plane: events in, decisions out. No clock, no chance, no IO."""

from collections.abc import Iterable

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import Decision
from flowmesh.core.events import Event
from flowmesh.core.plan import LEASE_MS, expire, place
from flowmesh.core.records import Lease, Step
from flowmesh.core.state import State
from flowmesh.core.utility import Weights

DECISIONS_LIMIT = 1_000


class ControlPlane:
    """Holds the state; the server and the simulator drive it, each event by `step`."""

    def __init__(self, weights: Weights | None = None, state: State | None = None) -> None:
        self.state = state or State()
        self.weights = weights or Weights()

    def step(self, event: Event) -> list[Decision]:
        """Apply one event; return, already applied, the decisions it calls for."""
        apply(self.state, event)
        made: list[Decision] = []
        for loss in tuple(expire(self.state)):
            apply(self.state, loss)
            made.append(loss)
        while len(made) < DECISIONS_LIMIT and (grant := place(self.state, self.weights)):
            apply(self.state, grant)
            made.append(grant)
        return made

    def replay(self, records: Iterable[Event | Decision]) -> None:
        """Go on from a journal. Recorded decisions are applied, never made again."""
        for record in records:
            apply(self.state, record)

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
        silences = [worker.heard_ms + LEASE_MS for worker in self.state.workers.values()]
        return min((*silences, *self.state.delayed), default=None)
