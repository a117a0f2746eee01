"""What must hold between any two steps. Run after every step in tests and simulation."""

from math import isclose

from flowmesh.base.ids import LeaseId, RunId
from flowmesh.core import money, pool, renting
from flowmesh.core.fleet import InstanceStatus
from flowmesh.core.records import StepStatus, TaskStatus
from flowmesh.core.state import State


def check(state: State) -> None:
    """Raises AssertionError, naming the record, where an invariant is broken."""
    _tasks(state)
    _leases(state)
    _steps(state)
    _pool(state)
    _checkpoints(state)
    _instances(state)
    _money(state)
    assert not state.failing
    assert all(state.done.values()) and all(state.ended.values())


def _tasks(state: State) -> None:
    known_done = {task_id: None for tasks in state.done.values() for task_id in tasks}
    for task in state.tasks.values():
        key = pool.key_of(task.spec)
        queues = state.ready[key].queues if key in state.ready else {}
        lots = queues.get(task.tenant, {}).get(task.priority, {})
        filed = task.id in lots.get(pool.lot_of(task), {})
        assert filed == (task.status is TaskStatus.READY), task
        delayed = task.id in state.delayed.get(task.due_ms, {})
        assert delayed == (task.status is TaskStatus.DELAYED), task
        assert (task.lease is not None) == (task.status is TaskStatus.LEASED), task
        if task.lease is not None:
            assert task.id in state.lease_left[task.lease], task
        done = task.id in known_done
        assert done == (task.status is TaskStatus.SUCCEEDED), task
        if task.status is not TaskStatus.SUCCEEDED:
            assert task.owner in state.wants[task.id], task
            runs = [state.runs[state.steps[step].run] for step in state.wants[task.id]]
            assert task.priority == max(run.priority for run in runs), task
        assert 1 <= task.batch_limit <= task.spec.max_batch, task


def _leases(state: State) -> None:
    assert state.leases.keys() == state.lease_left.keys()
    for lease in state.leases.values():
        assert lease.id in state.workers[lease.worker].leases, lease
        assert state.lease_left[lease.id], lease
        for task_id in state.lease_left[lease.id]:
            assert state.tasks[task_id].lease == lease.id, lease
    for worker in state.workers.values():
        assert len(worker.leases) <= worker.slots, worker
        assert all(lease in state.leases for lease in worker.leases), worker
        assert (worker.id in state.idle) == worker.takes_work, worker
    assert all(worker_id in state.workers for worker_id in state.idle)


def _steps(state: State) -> None:
    for task_id, steps in state.wants.items():
        assert steps, task_id
        assert all(task_id in state.tasks_of[step] for step in steps), task_id
    for step in state.steps.values():
        waits = state.tasks_of.get(step.id, {})
        assert len(waits) == step.pending, step
        assert all(step.id in state.wants[task_id] for task_id in waits), step
        assert (step.pending > 0) == (step.status is StepStatus.RUNNING), step
        busy = step.status in (StepStatus.EXPANDING, StepStatus.ASSEMBLING)
        assert (step.id in state.todo) == busy, step
        assert step.run in state.runs, step
        assert (step.missing > 0) == (step.status is StepStatus.WAITING), step
    for run in state.runs.values():
        settled = (StepStatus.SUCCEEDED, StepStatus.SKIPPED)
        open_steps = sum(state.steps[step].status not in settled for step in run.steps)
        assert run.open_steps == open_steps > 0, run
    for tenant in state.tenants.values():
        open_runs = sum(run.tenant == tenant.id for run in state.runs.values())
        assert tenant.open_runs == open_runs, tenant


def _pool(state: State) -> None:
    for key in state.ready.values():
        lots = tuple(pool.lots(key))
        filed = [state.tasks[task_id] for lot in lots for task_id in lot]
        assert all(lots), key
        assert key.count == len(filed) > 0, key
        assert isclose(key.work, sum(t.spec.work for t in filed), abs_tol=1e-6), key
        assert key.prompt_tokens == sum(t.spec.prompt_tokens for t in filed), key
        assert key.output_tokens == sum(t.spec.output_tokens for t in filed), key
        assert key.prefix_tokens == sum(t.spec.prefix_tokens for t in filed), key
        prefixed = [bool(state.tasks[next(iter(lot))].spec.prefix) for lot in lots]
        assert key.prefixes == sum(prefixed), key
        assert all(all(queues.values()) and queues for queues in key.queues.values()), key
    for due_ms, tasks in state.delayed.items():
        assert tasks, due_ms


def _checkpoints(state: State) -> None:
    for task in state.tasks.values():
        assert bool(task.checkpoint) == (task.step > 0), task
        assert task.saved_by is None or task.checkpoint, task
        assert task.step >= task.spec.step, task
        assert task.id not in state.left, task
    for lease in state.leases.values():
        assert len(lease.checkpoints) == len(lease.tasks), lease
    for left in state.left.values():
        assert left.checkpoint and left.step > 0, left
    assert not state.stopping.keys() & state.leases.keys()


def _money(state: State) -> None:
    """What is held is what the live leases say, to the last bit."""
    holds: dict[RunId, dict[LeaseId, tuple[int, float]]] = {}
    for lease in state.leases.values():
        for task_id in state.lease_left[lease.id]:
            runs = money.waiting_runs(state, task_id)
            share = money.share_usd(money.task_usd(lease), len(runs))
            for run_id in runs:
                tasks, usd = holds.setdefault(run_id, {}).get(lease.id, (0, 0.0))
                holds[run_id][lease.id] = (tasks + 1, usd + share)
    known = {
        run: {lease: (hold.tasks, hold.usd) for lease, hold in mine.items()}
        for run, mine in state.holds.items()
    }
    assert known == holds
    for run in state.runs.values():
        assert run.held_usd == sum(usd for _, usd in holds.get(run.id, {}).values()), run
        assert run.spent_usd >= 0 and (run.id in state.budgeted) == bool(run.budget_usd), run
    for tenant in state.tenants.values():
        mine = [holds.get(run.id, {}) for run in state.runs.values() if run.tenant == tenant.id]
        assert tenant.held_usd == sum(usd for held in mine for _, usd in held.values()), tenant
        assert tenant.leases == len({lease for held in mine for lease in held}), tenant
        assert tenant.day_usd >= 0, tenant
    assert state.budgeted.keys() <= state.runs.keys()
    assert state.lease_tenants.keys() <= state.leases.keys()


def _instances(state: State) -> None:
    for worker in state.workers.values():
        if worker.instance:
            assert worker.id in state.hosted[worker.instance], worker
    for instance_id, hosted in state.hosted.items():
        assert hosted, instance_id
        assert all(state.workers[one].instance == instance_id for one in hosted), instance_id
    for instance in state.instances.values():
        assert instance.id != renting.next_id(state), instance
        workers = [state.workers[one] for one in state.hosted.get(instance.id, ())]
        busy = any(worker.leases for worker in workers)
        assert bool(instance.quiet_ms) == bool(instance.running_ms and not busy), instance
        assert all(worker.draining for worker in workers if not instance.takes_work), instance
        started = instance.status is not InstanceStatus.LAUNCHING
        assert bool(instance.running_ms) <= started, instance
        assert instance.running_ms or instance.status is not InstanceStatus.RUNNING, instance
        assert instance.listed or not instance.missed, instance
        assert instance.missed < renting.MISSED, instance
