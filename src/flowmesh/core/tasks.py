"""The law of tasks: wanted, ready, leased, settled, dropped. Called by `apply` alone.

| from    | to        | when                                             |
| ------- | --------- | ------------------------------------------------ |
| (none)  | READY     | a step wants it and no live task has its id      |
| READY   | LEASED    | a lease is granted                               |
| LEASED  | SUCCEEDED | a result counts                                  |
| READY   | SUCCEEDED | a late result of a pure task counts              |
| DELAYED | SUCCEEDED | the same                                         |
| LEASED  | READY     | the attempt failed, or the lease ended, no delay |
| LEASED  | DELAYED   | the same, with a back-off                        |
| DELAYED | READY     | it is due                                        |
| LEASED  | FAILED    | a limit of `retry.py` is reached                 |
| any     | (dropped) | FAILED, wanted by nobody, or done for RETAIN_MS  |
"""

from collections.abc import Sequence

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, WorkerId
from flowmesh.base.replacing import maker, replace
from flowmesh.core import checkpoints, money, pool, retry
from flowmesh.core.events import TaskResult
from flowmesh.core.records import Failure, OnError, Step, StepStatus, Task, TaskSpec, TaskStatus
from flowmesh.core.state import Accepted, Spent, State

RETAIN_MS = 120_000
_task = maker(Task)
#: Back-offs end on whole multiples of this, so that few distinct times are kept.
DUE_GRAIN_MS = 100


def want(state: State, step_id: StepId, spec: TaskSpec) -> bool:
    """Make `step_id` wait for a task: join it if it is in flight, else make it ready.

    False if the task has succeeded already: there is nothing to wait for.
    """
    task = state.tasks.get(spec.id)
    if task is not None and task.status is TaskStatus.SUCCEEDED:
        return False
    before = money.waiting_runs(state, spec.id) if task is not None else ()
    state.wants.setdefault(spec.id, {})[step_id] = None
    state.tasks_of.setdefault(step_id, {})[spec.id] = None
    if task is not None:
        money.shared_anew(state, task, before)
        _refile(state, task)
        return True
    run = state.runs[state.steps[step_id].run]
    task = _task(
        spec,
        tenant=run.tenant,
        priority=run.priority,
        owner=step_id,
        since_ms=state.now_ms,
        batch_limit=spec.max_batch,
        checkpoint=spec.checkpoint,
        step=spec.step,
    )
    state.tasks[task.id] = task = checkpoints.taken_up(state, task)
    pool.file(state, task)
    return True


def unwant(state: State, step_id: StepId, *, checkpoint: bool = False) -> None:
    """`step_id` waits no longer. Tasks that nobody else wants are dropped, and stopped.

    `checkpoint`: leases that end by this may leave a checkpoint before.
    """
    for task_id in state.tasks_of.pop(step_id, {}):
        task, before = state.tasks[task_id], money.waiting_runs(state, task_id)
        del state.wants[task_id][step_id]
        if not state.wants[task_id]:
            _drop(state, task, state.steps[step_id].run, checkpoint=checkpoint)
            continue
        if task.owner == step_id:
            task = _owned_by(state, task, next(iter(state.wants[task_id])))
        money.shared_anew(state, task, before)
        _refile(state, task)


def _owned_by(state: State, task: Task, step_id: StepId) -> Task:
    """The next of those who asked owns a task, and it is queued with the others of that step."""
    owned = replace(task, owner=step_id)
    if task.status is TaskStatus.READY:
        pool.withdraw(state, task)
        pool.file(state, owned)
    state.tasks[task.id] = owned
    return owned


def _refile(state: State, task: Task) -> None:
    """Queue a task under the run that wants it most: the highest priority, then the first."""
    runs = [state.runs[state.steps[step].run] for step in state.wants[task.id]]
    best = max(runs, key=lambda run: run.priority)
    if (best.tenant, best.priority) == (task.tenant, task.priority):
        return
    moved = replace(task, tenant=best.tenant, priority=best.priority)
    if task.status is TaskStatus.READY:
        pool.withdraw(state, task)
        pool.file(state, moved)
    state.tasks[task.id] = moved


def _drop(state: State, task: Task, run: RunId, *, checkpoint: bool) -> None:
    """The last run that wanted a task does so no longer, and pays for what was begun."""
    _pay(state, task, (run,))
    money.released(state, task, (run,))
    _leave_place(state, task)
    del state.tasks[task.id]
    state.wants.pop(task.id, None)
    checkpoints.leave(state, task)
    if task.lease is not None:
        worker = state.leases[task.lease].worker
        state.changes.trimmed.append(worker)
        leave_lease(state, task.lease, task.id, "nobody wants its tasks")
        if checkpoint and task.lease not in state.leases:
            checkpoints.ask_for_one(state, task.lease, worker)


def _leave_place(state: State, task: Task) -> None:
    if task.status is TaskStatus.READY:
        pool.withdraw(state, task)
    elif task.status is TaskStatus.DELAYED:
        del state.delayed[task.due_ms][task.id]
        if not state.delayed[task.due_ms]:
            del state.delayed[task.due_ms]


def leased(state: State, batch: Sequence[Task], lease: LeaseId) -> None:
    assert all([task.status is TaskStatus.READY for task in batch]), batch
    pool.withdraw_all(state, batch)
    for task in batch:
        state.tasks[task.spec.id] = replace(task, status=TaskStatus.LEASED, lease=lease, told_ms=0)


def _pay(state: State, task: Task, runs: tuple[RunId, ...]) -> Task:
    """An attempt ends without a result: it costs its time, as far as it was heard of."""
    if task.lease is None or not task.told_ms:
        return task
    lease = state.leases[task.lease]
    seconds = (task.told_ms - lease.granted_ms) / 1000 / len(lease.tasks)
    usd = seconds * state.workers[lease.worker].usd_per_hour / 3600
    state.changes.spent.append(Spent(runs, usd))
    money.spend(state, lease.id, runs, usd)
    return replace(task, paid_s=seconds, paid_by=lease.id)


def leave_lease(state: State, lease_id: LeaseId, task_id: TaskId, reason: str) -> None:
    """A task's part in a lease is over; with the last one the lease is."""
    left = state.lease_left[lease_id]
    del left[task_id]
    if left:
        return
    del state.lease_left[lease_id]
    lease = state.leases.pop(lease_id)
    state.ended.setdefault(_second(state.now_ms), {})[lease_id] = lease
    state.changes.ended.append((lease, reason))
    worker = state.workers[lease.worker]
    held = tuple(other for other in worker.leases if other != lease_id)
    state.put_worker(replace(worker, leases=held))


def reported(state: State, result: TaskResult, worker_id: WorkerId) -> None:
    """A worker says how a task ended. Only the lease that holds it may fail it.

    A success from a lease that has ended is still a right answer for a pure task, if the
    lease was granted to that worker for that task.
    """
    task = state.tasks.get(result.task)
    if task is None or task.status is TaskStatus.SUCCEEDED:
        return
    lease = checkpoints.granted(state, result.lease, result.task, worker_id)
    if lease is None:
        return
    current = task.lease == lease.id
    if result.failure is None and (current or task.spec.pure):
        _succeeded(state, task, result, worker_id)
    elif result.failure is not None and current:
        verdict = retry.after(task, result.failure, len(lease.tasks))
        _accept(state, task, result, worker_id, final=verdict.fails)
        _attempt_failed(state, verdict, worker_id, result.message)


def _second(at_ms: int) -> int:
    return at_ms - at_ms % 1000


def remember(state: State, task_id: TaskId) -> None:
    """A task has succeeded: an expansion that looked for it just before still finds it."""
    state.done.setdefault(_second(state.now_ms), {})[task_id] = None


def _accept(
    state: State, task: Task, result: TaskResult, worker_id: WorkerId, *, final: bool
) -> None:
    worker = state.workers[worker_id]
    steps = tuple(state.wants[task.id])
    # Of an attempt that was given up for lost, a part is paid already.
    paid_s = task.paid_s if task.paid_by == result.lease else 0.0
    runs = money.waiting_runs(state, task.id)
    usd = max(0.0, result.seconds - paid_s) * worker.usd_per_hour / 3600
    if result.failure is None:
        money.succeeded(state, task, result.lease, runs, usd)
    else:
        money.spend(state, result.lease, runs, usd)
    state.changes.accepted.append(
        Accepted(
            result=result,
            spec_pack=task.spec.pack,
            spec_line=task.spec.line,
            batch_key=task.spec.batch_key,
            worker=worker_id,
            runs=runs,
            steps=steps,
            usd=usd,
            final=final,
        )
    )


def _succeeded(state: State, task: Task, result: TaskResult, worker_id: WorkerId) -> None:
    _accept(state, task, result, worker_id, final=True)
    _leave_place(state, task)
    lease, owner = task.lease, task.owner
    state.tasks[task.id] = replace(task, status=TaskStatus.SUCCEEDED, lease=None)
    remember(state, task.id)
    for step_id in state.wants.pop(task.id):
        step = state.steps[step_id]
        if step_id == owner:
            step = replace(step, executed=step.executed + 1)
        else:
            step = replace(step, joined=step.joined + 1)
        _one_less(state, step, task.id)
    if lease is not None:
        leave_lease(state, lease, task.id, "done")


def _one_less(state: State, step: Step, task_id: TaskId) -> None:
    """A step's task has settled."""
    del state.tasks_of[step.id][task_id]
    fewer(state, step, 1)


def fewer(state: State, step: Step, tasks: int) -> None:
    """A step waits for fewer tasks; after the last one the driver assembles the step."""
    step = replace(step, pending=step.pending - tasks)
    if step.pending == 0:
        del state.tasks_of[step.id]
        step = replace(step, status=StepStatus.ASSEMBLING)
        state.todo[step.id] = None
    state.put_step(step)


def _attempt_failed(
    state: State, verdict: retry.Verdict, worker_id: WorkerId | None, message: str
) -> None:
    """Give a leased task back, or fail it for good."""
    task = verdict.task
    assert task.status is TaskStatus.LEASED, task
    lease = task.lease
    assert lease is not None, task
    money.released(state, task, money.waiting_runs(state, task.id))
    if verdict.fails:
        _failed(state, task, message)
    else:
        due_ms = -(-(state.now_ms + verdict.delay_ms) // DUE_GRAIN_MS) * DUE_GRAIN_MS
        task = replace(task, lease=None, avoid=worker_id, due_ms=due_ms)
        if verdict.delay_ms:
            state.tasks[task.id] = replace(task, status=TaskStatus.DELAYED)
            state.delayed.setdefault(due_ms, {})[task.id] = None
        else:
            state.tasks[task.id] = task = replace(task, status=TaskStatus.READY)
            pool.file(state, task)
    leave_lease(state, lease, task.id, "done")


def _failed(state: State, task: Task, message: str) -> None:
    """Tell every step that waits; a failure is never an answer for anyone later."""
    del state.tasks[task.id]
    checkpoints.leave(state, task)
    for step_id in state.wants.pop(task.id):
        step = replace(state.steps[step_id], failed=state.steps[step_id].failed + 1)
        if step.on_error is OnError.FAIL:
            step = replace(step, message=step.message or message)
            state.failing[step_id] = None
        _one_less(state, step, task.id)


def lost(state: State, lease_id: LeaseId, *, counts: bool) -> None:
    """A lease ends without results: its worker is gone. `counts`: it was not announced."""
    lease = state.leases[lease_id]
    for task_id in tuple(state.lease_left[lease_id]):
        task = _pay(state, state.tasks[task_id], money.waiting_runs(state, task_id))
        # What has got on does not kill its workers, however many it takes.
        if counts and task.saved_by != lease_id:
            verdict = retry.after(task, Failure.LOST, len(lease.tasks))
        else:
            verdict = retry.Verdict(task, fails=False)
        message = f"lost its worker {task.losses + 1} times"
        if verdict.fails:
            result = TaskResult(lease_id, task_id, Failure.LOST, message=message)
            _accept(state, task, result, lease.worker, final=True)
        _attempt_failed(state, verdict, lease.worker, message)


def wake(state: State) -> None:
    """Tasks whose back-off is over are ready again; results kept for long enough are dropped."""
    if state.delayed:
        for due_ms in [due_ms for due_ms in state.delayed if due_ms <= state.now_ms]:
            for task_id in state.delayed.pop(due_ms):
                task = replace(state.tasks[task_id], status=TaskStatus.READY)
                state.tasks[task_id] = task
                pool.file(state, task)
    # Time stands still or goes on, so that seconds are in order.
    kept_ms = state.now_ms - RETAIN_MS
    while state.done and (second := next(iter(state.done))) < kept_ms:
        for task_id in state.done.pop(second):
            del state.tasks[task_id]
    while state.ended and (second := next(iter(state.ended))) < kept_ms:
        del state.ended[second]
    if state.stopping or state.left:
        checkpoints.tidy(state, kept_ms)


def forget(state: State, task_id: TaskId) -> None:
    """Disown a remembered success: its result is gone and must be made again."""
    for second, done in state.done.items():
        if task_id in done:
            del done[task_id], state.tasks[task_id]
            if not done:
                del state.done[second]
            return
