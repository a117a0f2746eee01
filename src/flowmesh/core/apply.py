"""The law: how each record changes the state. Total, deterministic, replayable.

Settled runs and their steps leave the state at once; the read models keep them.
"""

from collections.abc import Sequence
from itertools import chain
from typing import assert_never

from flowmesh.base.ids import RunId, StepId, TenantId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import arrivals, checkpoints, learning, money, pool, renting, results, tasks
from flowmesh.core.decisions import (
    Decision,
    GrantLease,
    LoseWorker,
    StopRun,
)
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
    TenantChanged,
    Tick,
    WorkerGone,
    WorkerSynced,
)
from flowmesh.core.fleet import Worker
from flowmesh.core.records import (
    Demand,
    Lease,
    OnError,
    Run,
    RunStatus,
    Step,
    StepStatus,
    Task,
    Tenant,
)
from flowmesh.core.state import State

#: Times that a step is taken up again for something lost; then the store is beyond our help.
REOPEN_LIMIT = 3


def apply(state: State, record: Event | Decision) -> None:
    """Change `state` by one record. A clock that went back is taken to stand still."""
    _advance(state, record.at_ms)
    match record:
        case RunSubmitted() | RunCancelled() | TenantChanged():
            _of_runs(state, record)
        case StepExpanded():
            _step_expanded(state, record)
        case StepAssembled():
            _step_assembled(state, record)
        case StepReopened():
            _step_reopened(state, record)
        case WorkerSynced():
            _worker_synced(state, record)
        case TaskProgressed() | ProgressForgotten():
            checkpoints.take(state, record)
        case GrantLease():
            _grant_lease(state, record)
        case LoseWorker() | WorkerGone():
            _remove_worker(state, record.worker, counts=True)
        case StopRun():
            _settle(state, record.run, RunStatus.FAILED, record.reason)
        case PlaneStarted() | Tick():
            _time_passed(state, record)
        case _:
            for worker_id in renting.take(state, record):
                _remove_worker(state, worker_id, counts=False)


def _advance(state: State, at_ms: int) -> None:
    """Time passes: what is due happens."""
    before_ms, state.now_ms = state.now_ms, max(state.now_ms, at_ms)
    if state.now_ms // money.DAY_MS > before_ms // money.DAY_MS:
        money.day_began(state)
    tasks.wake(state)
    _forget_runs(state)


def _of_runs(state: State, event: RunSubmitted | RunCancelled | TenantChanged) -> None:
    match event:
        case RunSubmitted():
            _run_submitted(state, event)
        case RunCancelled():
            _run_cancelled(state, event)
        case TenantChanged():
            money.changed(state, event)
        case _:
            assert_never(event)


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
    if run.budget_usd:
        state.budgeted[run.id] = None
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
    if event.wanted:
        _demanded(state, event.wanted[0].batch_key, event.demand)
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
    if event.wanted:
        new = sum(spec.id not in state.tasks for spec in event.wanted)
        arrivals.note(state, event.wanted[0].batch_key, new)
    done = [spec for spec in event.wanted if not tasks.want(state, step.id, spec)]
    pending = len(event.wanted) - len(done)
    step = replace(step, reused=step.reused + len(done), pending=pending)
    if not pending:
        step = replace(step, status=StepStatus.ASSEMBLING)
        state.todo[step.id] = None
    state.put_step(step)


def _demanded(state: State, batch_key: str, demand: Demand) -> None:
    """What is known of a key; of those whose tasks wait or run, it is never let go."""
    if state.demands.get(batch_key) != demand:
        state.touched.estimates[batch_key] = None
    state.demands.pop(batch_key, None)
    state.demands[batch_key] = demand
    if len(state.demands) > learning.KEPT:
        wanted = {task.spec.batch_key for task in state.tasks.values()}
        oldest = next((key for key in state.demands if key not in wanted), None)
        if oldest is not None:
            del state.demands[oldest]


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
    steps = state.runs[step.run].steps
    again = {step.id: None}
    for step_id in steps:
        if any(before in again for before in state.steps[step_id].upstream):
            again[step_id] = None
    for step_id in again:
        _back_to_waiting(state, step_id)
    for step_id in again:
        _wait_for(state, step_id)
    done = sum(state.steps[step_id].status in SETTLED for step_id in steps)
    state.put_run(replace(state.runs[step.run], open_steps=len(steps) - done))
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
    state.put_run(replace(state.runs[run_id], status=status, message=message))
    del state.runs[run_id]
    state.budgeted.pop(run_id, None)
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
            device=event.device,
            place=event.place,
            holds=event.holds,
            instance=event.instance,
            interruptions_per_hour=event.interruptions_per_hour,
        )
    )
    renting.heard(state, state.workers[event.worker])
    results.take(state, event.results, event.worker)
    _fail_steps_with_failures(state)
    if event.leaving:
        _remove_worker(state, event.worker, counts=False)


def _remove_worker(state: State, worker_id: WorkerId, *, counts: bool) -> None:
    worker = state.workers.get(worker_id)
    if worker is None:
        return
    for lease_id in worker.leases:
        tasks.lost(state, lease_id, counts=counts)
    _fail_steps_with_failures(state)
    assert not state.workers[worker.id].leases, worker
    state.remove_worker(worker.id)


def _grant_lease(state: State, choice: GrantLease) -> None:
    assert choice.lease == state.next_lease, choice
    state.next_lease += 1
    worker = state.workers[choice.worker]
    assert worker.takes_work, worker
    batch = [state.tasks[task_id] for task_id in choice.tasks]
    lease = Lease(
        choice.lease,
        choice.worker,
        choice.batch_key,
        choice.tasks,
        state.now_ms,
        tuple([task.checkpoint for task in batch]),
        choice.expected,
        worker.device.kind,
        _prompt_tokens(state, choice.batch_key, batch),
    )
    state.leases[lease.id] = lease
    state.lease_left[lease.id] = dict.fromkeys(choice.tasks)
    state.put_worker(replace(worker, leases=(*worker.leases, lease.id)))
    tasks.leased(state, batch, lease.id)
    waiting = [money.waiting_runs(state, task_id) for task_id in choice.tasks]
    _charge(state, choice, [task.spec.work for task in batch], waiting)
    money.granted(state, lease, waiting)
    runs = dict.fromkeys(chain.from_iterable(waiting))
    state.changes.granted.append((lease, tuple(runs)))


def _prompt_tokens(state: State, batch_key: str, batch: Sequence[Task]) -> int:
    specs = [task.spec for task in batch]
    tokens = sum([spec.prompt_tokens for spec in specs])
    shares = (state.demands.get(batch_key) or Demand()).shares_prefixes
    return tokens - pool.shared_tokens(specs) if tokens and shares else tokens


def _charge(
    state: State,
    choice: GrantLease,
    amounts: list[float],
    waiting: Sequence[tuple[RunId, ...]],
) -> None:
    """Virtual time: what each task should cost, by its work, for the tenants that wait for it."""
    total = sum(amounts)
    if not total:
        amounts, total = [1.0] * len(amounts), float(len(amounts))
    charged: dict[TenantId, float] = {}
    whole_usd = choice.expected.reference_usd
    for runs, amount in zip(waiting, amounts, strict=True):
        usd = whole_usd * amount / total / len(runs)
        for run in runs:
            tenant = state.runs[run].tenant
            charged[tenant] = charged.get(tenant, 0.0) + usd
    for tenant_id, usd in charged.items():
        known = state.tenants[tenant_id]
        virtual_usd = known.virtual_usd + usd / known.weight
        state.tenants[tenant_id] = replace(known, virtual_usd=virtual_usd)


def _forget_runs(state: State) -> None:
    while state.settled_ms:
        run_id, settled_ms = next(iter(state.settled_ms.items()))
        if state.now_ms - settled_ms < tasks.RETAIN_MS:
            break
        del state.settled_ms[run_id]
