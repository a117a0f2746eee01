"""The ready pool: which tasks could run now, by batch key and needs, tenant and priority.

Law: `file` and `withdraw` keep it in step with the tasks. `in_fair_order` only reads.
"""

from collections.abc import Iterator, Mapping
from itertools import chain

from flowmesh.base.ids import TaskId
from flowmesh.core.records import Task, TaskSpec
from flowmesh.core.state import ReadyKey, State


def key_of(spec: TaskSpec) -> str:
    """The place of a task in the pool: what has equal keys fits the same workers."""
    if (spec.devices, spec.memory_bytes) == (1, 0):
        return spec.batch_key
    return f"{spec.batch_key} {spec.devices} {spec.memory_bytes}"


def file(state: State, task: Task) -> None:
    """Put a ready task at the end of its queue."""
    spec = task.spec
    fresh = ReadyKey(spec.runtime, devices=spec.devices, memory_bytes=spec.memory_bytes)
    key = state.ready.setdefault(key_of(spec), fresh)
    queue = key.queues.setdefault(task.tenant, {}).setdefault(task.priority, {})
    assert task.id not in queue, task
    queue[task.id] = None
    key.count += 1
    key.work += spec.work


def withdraw(state: State, task: Task) -> None:
    """Take a ready task out; empty queues and keys go with it."""
    spec = task.spec
    key = state.ready[key_of(spec)]
    by_priority = key.queues[task.tenant]
    del by_priority[task.priority][task.id]
    if not by_priority[task.priority]:
        del by_priority[task.priority]
    if not by_priority:
        del key.queues[task.tenant]
    key.count -= 1
    key.work -= spec.work
    if not key.count:
        del state.ready[key_of(spec)]


def heads(key: ReadyKey) -> Iterator[TaskId]:
    """The first task of every queue of a key: its oldest are among them."""
    for by_priority in key.queues.values():
        for queue in by_priority.values():
            yield next(iter(queue))


def batch_key(state: State, key: ReadyKey) -> str:
    """The one batch key of all tasks of a key."""
    return state.tasks[next(heads(key))].spec.batch_key


def in_fair_order(state: State, key: ReadyKey, usd_per_work: float) -> Iterator[TaskId]:
    """Weighted fair queueing: always the tenant next that has received the least.

    Within a tenant the higher priority comes first, then the older task. What is yielded
    is charged to its tenant as if it ran, so that a long batch is shared fairly too.
    """
    waiting = {tenant: _by_priority(queues) for tenant, queues in key.queues.items()}
    virtual = {tenant: state.tenants[tenant].virtual_usd for tenant in waiting}
    while waiting:
        tenant = min(waiting, key=lambda name: (virtual[name], name))
        task_id = next(waiting[tenant], None)
        if task_id is None:
            del waiting[tenant]
            continue
        work = state.tasks[task_id].spec.work
        virtual[tenant] += work * usd_per_work / state.tenants[tenant].weight
        yield task_id


def _by_priority(queues: Mapping[int, Mapping[TaskId, None]]) -> Iterator[TaskId]:
    return chain.from_iterable(queues[priority] for priority in sorted(queues, reverse=True))
