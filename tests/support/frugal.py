"""A policy for tests of money: the first batch that can be paid for, at a cost that is known."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flowmesh.base.ids import LeaseId, TaskId
from flowmesh.core import needs
from flowmesh.core.budgets import Watch, affordable
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.fleet import Worker
from flowmesh.core.money import upper_usd
from flowmesh.core.records import Expected, Task, TaskStatus
from flowmesh.core.state import State

TASK_S = 1.0
SIGMA = 0.25


def expected(worker: Worker, tasks: int) -> Expected:
    seconds = TASK_S * tasks
    usd = seconds * worker.usd_per_hour / 3600
    return Expected(exec_s=seconds, sigma_s=SIGMA * seconds, usd=usd, reference_usd=usd)


def alone_usd(state: State, task: Task, worker: Worker) -> float:
    return upper_usd(expected(worker, 1))


@dataclass
class Frugal:
    """Asks `Watch` first, then grants what its tenants and runs can pay for."""

    watch: Watch = field(default_factory=lambda: Watch(alone_usd))

    def decide(self, state: State) -> Decision | None:
        return self.watch.decide(state) or self._grant(state)

    def wakes_ms(self, state: State) -> int | None:
        return self.watch.wakes_ms(state)

    def _grant(self, state: State) -> GrantLease | None:
        ready = [task for task in state.tasks.values() if task.status is TaskStatus.READY]
        for worker in map(state.workers.__getitem__, state.idle):

            def batch_usd(tasks: Sequence[TaskId], worker: Worker = worker) -> float:
                return upper_usd(expected(worker, len(tasks)))

            for key in dict.fromkeys(task.spec.batch_key for task in ready):
                alike = [task for task in ready if task.spec.batch_key == key]
                limit = min(task.batch_limit for task in alike)
                tasks = affordable(state, [task.id for task in alike], batch_usd, limit)
                if tasks and needs.fits(worker, alike[0].spec):
                    lease = LeaseId(state.next_lease)
                    costs = expected(worker, len(tasks))
                    named = (state.now_ms, lease, worker.id, key, tuple(tasks))
                    return GrantLease(*named, expected=costs)
        return None
