"""The ready pool: which tasks could run now, by batch key and needs, tenant, priority and lot.

Law: `file` and `withdraw` keep it in step with the tasks. The others only read. Nothing here
costs time for a task that is not near the head of its queue.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice

from flowmesh.base.ids import TaskId, TenantId
from flowmesh.core.records import Task, TaskSpec
from flowmesh.core.state import ReadyKey, State

Lot = Mapping[TaskId, None]
#: Of one tenant, by priority and name.
Queues = Mapping[int, Mapping[str, Lot]]


def key_of(spec: TaskSpec) -> str:
    """The place of a task in the pool: what has equal keys fits the same workers."""
    if spec.devices == 1 and spec.memory_bytes == 0:
        return spec.batch_key
    return f"{spec.batch_key} {spec.devices} {spec.memory_bytes}"


def lot_of(task: Task) -> str:
    """What tasks are kept together by: those of one step, of which some share a prefix."""
    prefix = task.spec.prefix
    return f"{task.owner} {prefix}" if prefix else task.owner


def file(state: State, task: Task) -> None:
    """Put a ready task at the end of its lot."""
    spec = task.spec
    task_id, name = spec.id, key_of(spec)
    key = state.ready.get(name)
    if key is None:
        key = ReadyKey(spec.runtime, devices=spec.devices, memory_bytes=spec.memory_bytes)
        state.ready[name] = key
    by_priority = key.queues.get(task.tenant)
    if by_priority is None:
        by_priority = key.queues[task.tenant] = {}
    lots = by_priority.get(task.priority)
    if lots is None:
        lots = by_priority[task.priority] = {}
    lot_name = lot_of(task)
    lot = lots.get(lot_name)
    if lot is None:
        lot = lots[lot_name] = {}
        key.prefixes += bool(spec.prefix)
    assert task_id not in lot, task
    lot[task_id] = None
    key.count += 1
    key.work += spec.work
    key.prompt_tokens += spec.prompt_tokens
    key.output_tokens += spec.output_tokens
    key.prefix_tokens += spec.prefix_tokens
    state.touched.ready[name] = None


def withdraw(state: State, task: Task) -> None:
    """Take a ready task out; empty lots, queues and keys go with it."""
    withdraw_all(state, (task,))


def withdraw_all(state: State, tasks: Sequence[Task]) -> None:
    """Take ready tasks of one key out, as `withdraw` does."""
    name = key_of(tasks[0].spec)
    key = state.ready[name]
    for tenant, priority, lot_name, alike in _lots_of(tasks):
        by_priority = key.queues[tenant]
        lots = by_priority[priority]
        lot = lots[lot_name]
        for task in alike:
            spec = task.spec
            del lot[spec.id]
            key.work -= spec.work
            key.prompt_tokens -= spec.prompt_tokens
            key.output_tokens -= spec.output_tokens
            key.prefix_tokens -= spec.prefix_tokens
        if not lot:
            del lots[lot_name]
            key.prefixes -= bool(alike[0].spec.prefix)
            if not lots:
                del by_priority[priority]
                if not by_priority:
                    del key.queues[tenant]
    key.count -= len(tasks)
    state.touched.ready[name] = None
    if not key.count:
        del state.ready[name]


def _lots_of(tasks: Sequence[Task]) -> Iterator[tuple[TenantId, int, str, Sequence[Task]]]:
    """Tasks that come one after another in one lot."""
    first = 0
    for at in range(1, len(tasks) + 1):
        task, last = tasks[first], tasks[at] if at < len(tasks) else None
        if (
            last is not None
            and last.owner == task.owner
            and last.spec.prefix == task.spec.prefix
            and last.tenant == task.tenant
            and last.priority == task.priority
        ):
            continue
        yield task.tenant, task.priority, lot_of(task), tasks[first:at]
        first = at


def lots(key: ReadyKey) -> Iterator[Lot]:
    """All lots of a key; each has its oldest task first."""
    for queues in key.queues.values():
        yield from lots_of(queues)


def lots_of(queues: Queues) -> Iterator[Lot]:
    """Of one tenant."""
    for queue in queues.values():
        yield from queue.values()


def heads(key: ReadyKey) -> Iterator[TaskId]:
    """The first task of every queue of a key."""
    for by_priority in key.queues.values():
        for queue in by_priority.values():
            yield next(iter(next(iter(queue.values()))))


def head(key: ReadyKey, tenant: TenantId) -> Lot:
    """The lot that is a tenant's next: of its highest priority the oldest."""
    by_priority = key.queues[tenant]
    return next(iter(by_priority[max(by_priority)].values()))


def batch_key(state: State, key: ReadyKey) -> str:
    """The one batch key of all tasks of a key."""
    return state.tasks[next(heads(key))].spec.batch_key


def by_priority(queues: Queues) -> Iterator[TaskId]:
    """The tasks of one tenant in their order."""
    lots = chain.from_iterable(queues[one].values() for one in sorted(queues, reverse=True))
    return chain.from_iterable(lots)


def in_fair_order(
    state: State,
    key: ReadyKey,
    virtual_usd: Callable[[TenantId], float],
    usd_of: Callable[[Sequence[Task]], list[float]],
    most: int,
    within: Callable[[Queues], Iterator[TaskId]] = by_priority,
) -> Iterator[tuple[list[Task], list[float]]]:
    """Weighted fair queueing: always the tenant next that has received the least.

    `within` is the order of one tenant's tasks: usually the higher priority comes first, then the
    older lot. What is yielded, with
    its cost, is charged to its tenant as if it ran, so that a long batch is shared fairly too.
    Tasks come by the piece, of up to `most`.
    """
    waiting = {tenant: within(queues) for tenant, queues in key.queues.items()}
    virtual = {tenant: virtual_usd(tenant) for tenant in waiting}
    while len(waiting) > 1:
        tenant = min(waiting, key=lambda name: (virtual[name], name))
        least = min((virtual[name], name) for name in waiting if name != tenant)
        weight, known = state.tenants[tenant].weight, virtual[tenant]
        piece: list[Task] = []
        costs: list[float] = []
        for task_id in waiting[tenant]:
            task = state.tasks[task_id]
            (usd,) = usd_of((task,))
            piece.append(task)
            costs.append(usd)
            known += usd / weight
            if (known, tenant) > least or len(piece) >= most:
                break
        else:
            del waiting[tenant]
        virtual[tenant] = known
        yield piece, costs
    for rest in waiting.values():
        while piece := [state.tasks[task_id] for task_id in islice(rest, most)]:
            yield piece, usd_of(piece)


def shared_tokens(specs: Sequence[TaskSpec]) -> int:
    """Prompt tokens that need no reading, as an earlier task has the same prefix."""
    seen: dict[str, None] = {}
    shared = 0
    for spec in specs:
        if spec.prefix:
            shared += spec.prefix_tokens if spec.prefix in seen else 0
            seen[spec.prefix] = None
    return shared
