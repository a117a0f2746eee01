"""The law: how each record changes the state. Total, deterministic, replayable.

Settled runs and their steps leave the state at once; the read models keep them.
"""

from dataclasses import replace
from typing import assert_never

from flowmesh.base.ids import RunId, StepId, TaskId
from flowmesh.core import checkpoints, estimate, tasks
from flowmesh.core.decisions import Decision, GrantLease, LoseWorker
from flowmesh.core.events import (
    Event,
    PlaneStarted,
    ProgressForgotten,
    RunCancelled,
    RunSubmitted,
    StepAssembled,
    StepExpanded,
    StepReopened,
    TaskProgressed,
    TaskResult,
    Tick,
    WorkerGone,
    WorkerSynced,
)
from flowmesh.core.records import (
    Lease,
    OnError,
    Run,
    RunStatus,
    Step,
    StepStatus,
    Tenant,
    Worker,
)
from flowmesh.core.state import State

ESTIMATES_LIMIT = 10_000
#: Times that a step is taken up again for something lost; then the store is beyond our help.
REOPEN_LIMIT = 3


def apply(state: State, record: Event | Decision) -> None:
    """Change `state` by one record. A clock that went back is taken to stand still."""
    state.now_ms = max(state.now_ms, record.at_ms)
    tasks.wake(state)
    _forget_runs(state)
    match record:
        case RunSubmitted():
            _run_submitted(state, record)
        case StepExpanded():
            _step_expanded(state, record)
        case StepAssembled():
            _step_assembled(state, record)
        case StepReopened():
            _step_reopened(state, record)
        case WorkerSynced():
            _worker_synced(state, record)
        case RunCancelled():
            _run_cancelled(state, record)
        case TaskProgressed() | ProgressForgotten():
            checkpoints.take(state, record)
        case GrantLease():
            _grant_lease(state, record)
        case LoseWorker() | WorkerGone():
            _remove_worker(state, record, counts=True)
        case PlaneStarted() | Tick():
            _time_passed(state, record)
        case _:
            assert_never(record)


def _time_passed(state: State, event: PlaneStarted | Tick) -> None:
    if isinstance(event, PlaneStarted):
        for worker in tuple(state.workers.values()):
            state.put_worker(replace(worker, heard_ms=state.now_ms))


def _run_submitted(state: State, event: RunSubmitted) -> None:
    run = event.run
    if run.id in state.runs or run.id in state.settled_ms:
        return
    _tenant_arrives(state, run)
    state.changes.heard = True
    state.put_run(replace(run, open_steps=len(event.steps)))
    for step in event.steps:
        state.put_step(replace(step, missing=len(step.upstream)))
        for upstream in step.upstream:
            state.dependents.setdefault(upstream, {})[step.id] = None
    if not event.steps:
        _settle(state, run.id, RunStatus.SUCCEEDED, "")
    for step in event.steps:
        if not step.upstream:
            _expand(state, step.id)


def _tenant_arrives(state: State, run: Run) -> None:
    """A tenant that had nothing open starts level with the least served of the others.

    Otherwise one that was away for long would have everything to itself on its return.
    """
    known = state.tenants.get(run.tenant, Tenant(run.tenant))
    virtual_usd = known.virtual_usd
    if not known.open_runs:
        others = [other.virtual_usd for other in state.tenants.values() if other.open_runs]
        virtual_usd = max(virtual_usd, min(others, default=0.0))
    state.tenants[run.tenant] = replace(
        known, weight=run.weight, virtual_usd=virtual_usd, open_runs=known.open_runs + 1
    )


def _expand(state: State, step_id: StepId) -> None:
    state.put_step(replace(state.steps[step_id], status=StepStatus.EXPANDING))
    state.todo[step_id] = None


def _step_expanded(state: State, event: StepExpanded) -> None:
    step = state.steps.get(event.step)
    if step is None or step.status is not StepStatus.EXPANDING or step.turn != event.turn:
        return
    state.changes.heard = True
    del state.todo[step.id]
    if event.skipped:
        _settle_step(state, replace(step, status=StepStatus.SKIPPED))
        return
    step = replace(
        step,
        status=StepStatus.RUNNING,
        items=event.items,
        reused=event.found,
        message=event.error,
    )
    state.put_step(step)
    fails = event.rows_failed and step.on_error is OnError.FAIL
    if event.error or fails:
        message = event.error or f"{event.rows_failed} rows could not be prepared"
        _fail_step(state, replace(step, message=message))
        return
    for task_id in event.lost:
        tasks.forget(state, task_id)
    done = [spec for spec in event.wanted if not tasks.want(state, step.id, spec)]
    pending = len(event.wanted) - len(done)
    step = replace(step, reused=step.reused + len(done), pending=pending)
    if not pending:
        step = replace(step, status=StepStatus.ASSEMBLING)
        state.todo[step.id] = None
    state.put_step(step)


def _step_assembled(state: State, event: StepAssembled) -> None:
    step = state.steps.get(event.step)
    if step is None or step.status is not StepStatus.ASSEMBLING or step.turn != event.turn:
        return
    state.changes.heard = True
    del state.todo[step.id]
    if event.error:
        _fail_step(state, replace(step, message=event.error))
    else:
        _settle_step(state, replace(step, status=StepStatus.SUCCEEDED))


def _step_reopened(state: State, event: StepReopened) -> None:
    """Go back to before a step was expanded; what followed from it waits for it again."""
    step, reader = state.steps.get(event.step), state.steps.get(event.reader)
    if step is None or reader is None or reader.turn != event.turn:
        return
    if step.status is StepStatus.WAITING:
        return
    if step.reopened >= REOPEN_LIMIT:
        _fail_step(state, replace(step, message=event.message))
        return
    run = state.runs[step.run]
    again = {step.id: None}
    for step_id in run.steps:
        if any(before in again for before in state.steps[step_id].upstream):
            again[step_id] = None
    for step_id in again:
        _back_to_waiting(state, step_id)
    for step_id in again:
        _wait_for(state, step_id)
    done = sum(state.steps[step_id].status in SETTLED for step_id in run.steps)
    state.put_run(replace(run, open_steps=len(run.steps) - done))
    state.put_step(replace(state.steps[step.id], reopened=step.reopened + 1))
    _expand(state, step.id)


def _back_to_waiting(state: State, step_id: StepId) -> None:
    tasks.unwant(state, step_id)
    state.todo.pop(step_id, None)
    old = state.steps[step_id]
    anew = Step(old.id, old.run, old.upstream, old.on_error, reopened=old.reopened)
    state.put_step(replace(anew, turn=old.turn + 1))


def _wait_for(state: State, step_id: StepId) -> None:
    """Count the steps that `step_id` waits for, and be among their dependents."""
    step = state.steps[step_id]
    before = [name for name in step.upstream if state.steps[name].status not in SETTLED]
    for upstream in before:
        state.dependents.setdefault(upstream, {})[step_id] = None
    state.put_step(replace(step, missing=len(before)))


def _settle_step(state: State, step: Step) -> None:
    """A step succeeded or was skipped: what waited for it goes on, or the run is done."""
    state.put_step(step)
    run = replace(state.runs[step.run], open_steps=state.runs[step.run].open_steps - 1)
    state.put_run(run)
    for dependent in state.dependents.pop(step.id, {}):
        waiting = replace(state.steps[dependent], missing=state.steps[dependent].missing - 1)
        state.put_step(waiting)
        if not waiting.missing:
            _expand(state, dependent)
    if not run.open_steps:
        _settle(state, run.id, RunStatus.SUCCEEDED, "")


def _fail_step(state: State, step: Step) -> None:
    state.put_step(replace(step, status=StepStatus.FAILED))
    name = step.id.removeprefix(f"{step.run}/")
    _settle(state, step.run, RunStatus.FAILED, f"step {name}: {step.message}")


def _run_cancelled(state: State, event: RunCancelled) -> None:
    run = state.runs.get(event.run)
    for step_id in run.steps if run and event.checkpoint else ():
        tasks.unwant(state, step_id, checkpoint=True)
    _settle(state, event.run, RunStatus.CANCELLED, "cancelled on request")


def _settle(state: State, run_id: RunId, status: RunStatus, message: str) -> None:
    """End a run: what is still open in it is cancelled, and it leaves the state."""
    run = state.runs.get(run_id)
    if run is None:
        return
    for step_id in run.steps:
        step = state.steps[step_id]
        if step.status not in SETTLED:
            state.put_step(replace(step, status=StepStatus.CANCELLED))
        tasks.unwant(state, step_id)
        state.todo.pop(step_id, None)
        state.dependents.pop(step_id, None)
    for step_id in run.steps:
        del state.steps[step_id]
    state.put_run(replace(run, status=status, message=message))
    del state.runs[run_id]
    state.settled_ms[run_id] = state.now_ms
    tenant = state.tenants[run.tenant]
    state.tenants[run.tenant] = replace(tenant, open_runs=tenant.open_runs - 1)


SETTLED = frozenset(
    {StepStatus.SUCCEEDED, StepStatus.SKIPPED, StepStatus.FAILED, StepStatus.CANCELLED}
)


def _fail_steps_with_failures(state: State) -> None:
    """Where a failed task fails its step, it fails the run at once."""
    while state.failing:
        step_id = next(iter(state.failing))
        del state.failing[step_id]
        if step_id in state.steps:
            _fail_step(state, state.steps[step_id])


def _worker_synced(state: State, event: WorkerSynced) -> None:
    old = state.workers.get(event.worker)
    state.put_worker(
        Worker(
            id=event.worker,
            runtimes=event.runtimes,
            slots=event.slots,
            usd_per_hour=event.usd_per_hour,
            warm=event.warm,
            heard_ms=state.now_ms,
            leases=old.leases if old else (),
            devices=event.devices,
            memory_bytes=event.memory_bytes,
            draining=event.draining,
        )
    )
    for result in event.results:
        _learn(state, result)
        tasks.reported(state, result, event.worker)
    _fail_steps_with_failures(state)
    if event.leaving:
        _remove_worker(state, event, counts=False)


def _learn(state: State, result: TaskResult) -> None:
    task = state.tasks.get(result.task)
    if task is None or task.lease != result.lease or result.failure is not None:
        return
    if checkpoints.start_of(state.leases[result.lease], task.id):
        return  # it took less than the whole of it does
    key, work = task.spec.batch_key, task.spec.work
    state.estimates[key] = estimate.learnt(state.estimates.pop(key, None), work, result.seconds)
    if len(state.estimates) > ESTIMATES_LIMIT:
        del state.estimates[next(iter(state.estimates))]


def _remove_worker(
    state: State, record: WorkerSynced | WorkerGone | LoseWorker, *, counts: bool
) -> None:
    worker = state.workers.get(record.worker)
    if worker is None:
        return
    for lease_id in worker.leases:
        tasks.lost(state, lease_id, counts=counts)
    _fail_steps_with_failures(state)
    assert not state.workers[worker.id].leases, worker
    del state.workers[worker.id]
    state.idle.pop(worker.id, None)


def _grant_lease(state: State, choice: GrantLease) -> None:
    assert choice.lease == state.next_lease, choice
    state.next_lease += 1
    worker = state.workers[choice.worker]
    assert worker.takes_work, worker
    lease = Lease(
        choice.lease,
        choice.worker,
        choice.batch_key,
        choice.tasks,
        state.now_ms,
        tuple(state.tasks[task_id].checkpoint for task_id in choice.tasks),
    )
    state.leases[lease.id] = lease
    state.lease_left[lease.id] = dict.fromkeys(choice.tasks)
    state.put_worker(replace(worker, leases=(*worker.leases, lease.id)))
    runs: dict[RunId, None] = {}
    for task_id in choice.tasks:
        tasks.leased(state, task_id, lease.id)
        runs |= dict.fromkeys(tasks.waiting_runs(state, task_id))
        _charge(state, choice, task_id)
    state.changes.granted.append((lease, tuple(runs)))


def _charge(state: State, choice: GrantLease, task_id: TaskId) -> None:
    """Virtual time: what a task should cost, shared by the tenants that wait for it."""
    known = state.estimates.get(choice.batch_key, estimate.PRIOR)
    seconds = state.tasks[task_id].spec.work * known.unit_s
    waiting = [state.runs[run].tenant for run in tasks.waiting_runs(state, task_id)]
    for tenant_id in waiting:
        tenant = state.tenants[tenant_id]
        share = seconds * VIRTUAL_USD_PER_S / len(waiting) / tenant.weight
        virtual_usd = tenant.virtual_usd + share
        state.tenants[tenant_id] = replace(tenant, virtual_usd=virtual_usd)


#: The rate of virtual time. One for all workers, so that a tenant is not charged for where
#: the policy puts its work.
VIRTUAL_USD_PER_S = 0.001


def _forget_runs(state: State) -> None:
    while state.settled_ms:
        run_id, settled_ms = next(iter(state.settled_ms.items()))
        if state.now_ms - settled_ms < tasks.RETAIN_MS:
            break
        del state.settled_ms[run_id]
