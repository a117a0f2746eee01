"""The law of results: what a worker tells of whole batches. Called by `apply` alone.

Results that come one after another, of one lease that holds their tasks, and are all
successes, are nearly all there are. What each of them means is in `tasks.reported` and
`learning.learn`; here such a row of results does the same, but what they change together, as
what a run has spent, is changed once.
"""

from collections.abc import Sequence

from flowmesh.base.ids import StepId, TaskId, WorkerId
from flowmesh.base.replacing import maker, replace
from flowmesh.core import learning, money, tasks
from flowmesh.core.events import TaskResult
from flowmesh.core.records import Lease, Task, TaskStatus
from flowmesh.core.state import Accepted, State

_accepted = maker(Accepted)


def take(state: State, results: Sequence[TaskResult], worker_id: WorkerId) -> None:
    """Take in all that a worker tells, in its order."""
    row: _Row | None = None
    for result in results:
        task = state.tasks.get(result.task)
        if row is None or not row.takes(result, task):
            if row is not None:
                row.close()
            lease = state.leases.get(result.lease)
            row = _Row(state, lease) if lease and lease.worker == worker_id else None
            if row is None or not row.takes(result, task):
                row = None
                learning.learn(state, result, worker_id)
                tasks.reported(state, result, worker_id)
                continue
        assert task is not None
        row.add(task, result)
    if row is not None:
        row.close()


class _Row:
    """Successes of one lease, one after another: what they change together until `close`."""

    def __init__(self, state: State, lease: Lease) -> None:
        self._state = state
        self._lease = lease
        self._left = state.lease_left[lease.id]
        self._usd_per_hour = state.workers[lease.worker].usd_per_hour
        self._till = money.Till(state, lease)
        #: Of steps: tasks that they wait for no longer, as their owner, and beside it.
        self._counts: dict[StepId, tuple[int, int]] = {}
        #: Outputs of tasks with one limit.
        self._limit, self._outputs = 0, list[int]()

    def takes(self, result: TaskResult, task: Task | None) -> bool:
        """Whether a result is of the row. The last of the lease is not: with it the lease ends."""
        return (
            task is not None
            and result.failure is None
            and result.batch is None
            and task.lease == result.lease == self._lease.id
            and len(self._left) > 1
        )

    def add(self, task: Task, result: TaskResult) -> None:
        state, lease, spec = self._state, self._lease, task.spec
        if result.output_tokens and spec.output_tokens:
            if spec.output_tokens != self._limit:
                self._learn()
                self._limit = spec.output_tokens
            self._outputs.append(result.output_tokens)
        runs = money.waiting_runs(state, spec.id)
        steps = tuple(state.wants.pop(spec.id))
        paid_s = task.paid_s if task.paid_by == lease.id else 0.0
        usd = max(0.0, result.seconds - paid_s) * self._usd_per_hour / 3600
        self._till.succeeded(runs, usd)
        state.changes.accepted.append(
            _accepted(
                result,
                spec.pack,
                spec.line,
                spec.batch_key,
                lease.worker,
                runs,
                steps,
                usd,
                True,
            )
        )
        state.tasks[spec.id] = replace(task, status=TaskStatus.SUCCEEDED, lease=None)
        tasks.remember(state, spec.id)
        for step_id in steps:
            self._one_less(step_id, spec.id, owns=step_id == task.owner)
        del self._left[spec.id]

    def _one_less(self, step_id: StepId, task_id: TaskId, *, owns: bool) -> None:
        executed, joined = self._counts.get(step_id, (0, 0))
        self._counts[step_id] = (executed + 1, joined) if owns else (executed, joined + 1)
        waits = self._state.tasks_of[step_id]
        del waits[task_id]
        if not waits:  # steps are assembled in the order in which they are done
            self._book(step_id, *self._counts.pop(step_id))

    def _book(self, step_id: StepId, executed: int, joined: int) -> None:
        step = self._state.steps[step_id]
        tasks.fewer(
            self._state,
            replace(step, executed=step.executed + executed, joined=step.joined + joined),
            executed + joined,
        )

    def _learn(self) -> None:
        if self._outputs:
            learning.learn_lengths(self._state, self._lease.batch_key, self._limit, self._outputs)
            self._outputs = []

    def close(self) -> None:
        self._learn()
        self._till.close()
        for step_id, counts in self._counts.items():
            self._book(step_id, *counts)
