"""The law of checkpoints: what an interrupted task goes on from. Called by `apply` and `tasks`.

A checkpoint counts under a lease that was granted to its worker for its task, running or
ended not long ago, and only forward: from then on the task has that step behind it, whoever
runs it next. Only where a lease could not read the one that it was given does it count from
its beginning again. It outlives the task: who asks for the same work later goes on from it.
"""

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core.events import ProgressForgotten, TaskProgressed
from flowmesh.core.records import Lease, Left, Stop, Task, TaskStatus
from flowmesh.core.state import Progressed, State

#: How long work that was cancelled may take to leave a checkpoint; then it is killed.
STOP_MS = 4_000


def granted(state: State, lease_id: LeaseId, task_id: TaskId, worker_id: WorkerId) -> Lease | None:
    """The lease, running or ended not long ago, under which a worker may report a task."""
    lease = state.leases.get(lease_id)
    if lease is None:
        ended = (leases[lease_id] for leases in state.ended.values() if lease_id in leases)
        lease = next(ended, None)
    if lease is None or lease.worker != worker_id or task_id not in lease.tasks:
        return None
    return lease


def take(state: State, event: TaskProgressed | ProgressForgotten) -> None:
    if isinstance(event, TaskProgressed):
        _progressed(state, event)
    else:
        _forget(state, event)


def _progressed(state: State, event: TaskProgressed) -> None:
    """A worker says how far a task is, or what it has left to go on from."""
    task = state.tasks.get(event.task)
    lease = granted(state, event.lease, event.task, event.worker)
    if lease is None:
        return
    if task is not None and task.status is TaskStatus.SUCCEEDED:
        _refuse(state, event)
        return
    if task is not None and task.lease == event.lease:
        task = state.tasks[task.id] = replace(task, told_ms=state.now_ms)
        if not event.checkpoint:
            _note(state, event)
    if event.checkpoint:
        _saved(state, lease, task, event)


def _saved(state: State, lease: Lease, task: Task | None, event: TaskProgressed) -> None:
    """Keep a checkpoint if it is further than what there is, or what there was is lost."""
    left = state.left.get(event.task)
    known = task or left
    began_anew = task is not None and _began_anew(lease, task, event)
    if not began_anew and event.step <= (known.step if known else 0):
        if known is None or known.checkpoint != event.checkpoint:
            _refuse(state, event)
        return
    if task is None:
        _leave(state, event.task, event.checkpoint, event.step)
    else:
        state.tasks[task.id] = replace(
            task, checkpoint=event.checkpoint, step=event.step, saved_by=event.lease
        )
    _note(state, event)


def _began_anew(lease: Lease, task: Task, event: TaskProgressed) -> bool:
    """Whether a lease is behind the very checkpoint that it was given: that one was lost."""
    if task.lease != lease.id or not 0 < event.step < task.step:
        return False
    return bool(task.checkpoint) and start_of(lease, task.id) == task.checkpoint


def start_of(lease: Lease, task_id: TaskId) -> str:
    """The checkpoint that a lease was given for one of its tasks, or nothing."""
    return dict(zip(lease.tasks, lease.checkpoints, strict=False)).get(task_id, "")


def _note(state: State, event: TaskProgressed) -> None:
    steps = state.wants.get(event.task, {})
    runs = tuple(dict.fromkeys(state.steps[step].run for step in steps))
    state.changes.progressed.append(
        Progressed(event.task, event.step, event.checkpoint, event.record, runs)
    )


def _refuse(state: State, event: TaskProgressed) -> None:
    if event.checkpoint:
        state.changes.stale.append(event.checkpoint)


def taken_up(state: State, task: Task) -> Task:
    """A task that somebody wants again, with what it left when it was wanted last."""
    left = state.left.pop(task.id, None)
    if left is None or left.step <= task.step:
        return task
    return replace(task, checkpoint=left.checkpoint, step=left.step)


def leave(state: State, task: Task) -> None:
    """A task goes without a result; what it has left stays for whoever wants it later."""
    if task.checkpoint:
        _leave(state, task.id, task.checkpoint, task.step)


def _leave(state: State, task_id: TaskId, checkpoint: str, step: int) -> None:
    state.left.pop(task_id, None)  # the order is that of time
    state.left[task_id] = Left(checkpoint, step, state.now_ms)


def _forget(state: State, event: ProgressForgotten) -> None:
    """Give up what tasks have left, but for those that somebody wants."""
    for task_id in event.tasks:
        if task_id not in state.tasks:
            state.left.pop(task_id, None)
            state.changes.forgotten.append(task_id)


def ask_for_one(state: State, lease_id: LeaseId, worker: WorkerId) -> None:
    """The work of a lease that has just ended may leave a checkpoint before it is killed."""
    state.stopping[lease_id] = Stop(worker, state.now_ms + STOP_MS)


def tidy(state: State, kept_ms: int) -> None:
    """Let go of what is due, or was left before `kept_ms`."""
    for lease_id in [one for one, stop in state.stopping.items() if stop.due_ms <= state.now_ms]:
        del state.stopping[lease_id]
    while state.left:
        task_id, left = next(iter(state.left.items()))
        if left.at_ms >= kept_ms:
            break
        del state.left[task_id]
