"""From a cell of the board to a lease: which worker, which tasks, and the score that is kept."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from heapq import merge, nsmallest
from itertools import chain, islice
from math import inf

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import budgets, estimate, money, needs, options, pool
from flowmesh.core.board import Board, Cell
from flowmesh.core.decisions import GrantLease
from flowmesh.core.fleet import Offer, Worker
from flowmesh.core.groups import without
from flowmesh.core.options import GB, Batch
from flowmesh.core.pool import Lot, Queues
from flowmesh.core.records import Expected, Task
from flowmesh.core.rows import Row
from flowmesh.core.state import ReadyKey, State
from flowmesh.core.table import HELD, WARM
from flowmesh.core.utility import Option, Score, plain, score, urgency
from flowmesh.core.worth import StepWorth

#: Tasks and what each costs for reference, some at a time.
Pieces = Iterator[tuple[list[Task], list[float]]]
#: How long a task waits for another worker than the one it failed on.
AVOID_MS = 5_000
#: Workers of a cell that are tried, where tasks want another one.
TRIED_WORKERS = 4
#: Lots that tasks are mixed from where prefixes shall not count.
MIXED_LOTS = 1_024


def grant(state: State, board: Board, cell: Cell) -> tuple[GrantLease, Batch] | None:
    """A lease of the cell's size, or None where its tasks want another worker or may not run."""
    for worker in _workers(state, board, cell):
        batch = _batch(state, board, cell, worker)
        if not batch.tasks:
            continue
        found, expected = scored(state, board, cell.row, worker, batch)
        choice = GrantLease(
            at_ms=state.now_ms,
            lease=LeaseId(state.next_lease),
            worker=worker.id,
            batch_key=cell.row.batch_key,
            tasks=tuple([task.spec.id for task in batch.tasks]),
            utility=found,
            expected=expected,
        )
        return choice, batch
    return None


def _workers(state: State, board: Board, cell: Cell) -> Iterator[Worker]:
    """The first idle workers of a cell: those whose engines nobody waits for."""
    group, row = cell.group, cell.row
    warm = group.warm.get(row.batch_key, {})
    if cell.level == WARM:
        found = warm
    elif cell.level == HELD:
        found = without(group.holds.get(row.demand.trees[0].digest, {}), warm)
    else:
        found = group.bare or without(group.idle, warm)
    if len(found) > 1 and found is not group.bare:
        regrets: dict[tuple[str, ...], tuple[int, int]] = {}
        order: list[tuple[tuple[int, int], WorkerId]] = []
        for one in found:
            engines = state.workers[one].warm
            if engines not in regrets:
                regrets[engines] = board.regret(engines, row)
            order.append((regrets[engines], one))
        yield from (state.workers[one] for _, one in nsmallest(TRIED_WORKERS, order))
    else:
        yield from (state.workers[one] for one in nsmallest(TRIED_WORKERS, found))


def _batch(state: State, board: Board, cell: Cell, worker: Worker) -> Batch:
    """The first of the ready tasks, but for those that should rather run elsewhere."""
    key, limit = state.ready[cell.row.name], cell.size
    waiting = _in_order(state, board, cell, key)
    quotas = [state.tenants[tenant].quota for tenant in key.queues]
    if state.budgeted or any(quota.leases or quota.usd_per_day for quota in quotas):
        every = chain.from_iterable(piece for piece, _ in waiting)
        open_to = (task for task in every if not _avoids(state, key, task, worker))
        waiting = _affordable(state, board, cell.row, open_to, (worker, limit))
    tasks: list[Task] = []
    costs: list[float] = []
    for piece, usd in waiting:
        for task, each in zip(piece, usd, strict=True):
            if task.avoid is not None and _avoids(state, key, task, worker):
                continue
            if task.batch_limit < limit:
                limit = task.batch_limit
            if len(tasks) >= limit:
                break
            tasks.append(task)
            costs.append(each)
        if len(tasks) >= limit:
            break
    return Batch(tasks, costs)


def _avoids(state: State, key: ReadyKey, task: Task, worker: Worker) -> bool:
    """Whether a task that failed there waits for another worker, if there is one."""
    if task.avoid != worker.id or state.now_ms >= task.due_ms + AVOID_MS:
        return False
    return _others(state, key, worker)


def _others(state: State, key: ReadyKey, worker: Worker) -> bool:
    return any(
        other.id != worker.id and needs.fits(other, key) and not other.draining
        for other in state.workers.values()
    )


def _in_order(state: State, board: Board, cell: Cell, key: ReadyKey) -> Pieces:
    row, knobs = cell.row, board.knobs

    def age(task_id: TaskId) -> tuple[int, int, int]:
        task = state.tasks[task_id]
        return -task.priority, task.since_ms, task.spec.line

    def mixed(lots: Iterable[Lot]) -> Iterator[TaskId]:
        return merge(*islice(lots, MIXED_LOTS), key=age)

    def whole(lots: Iterable[Lot]) -> Iterator[TaskId]:
        return chain.from_iterable(sorted(lots, key=lambda lot: age(next(iter(lot)))))

    def of_tenant(queues: Queues) -> Iterator[TaskId]:
        return pool.by_priority(queues) if knobs.prefixes else mixed(pool.lots_of(queues))

    if knobs.fairness:
        virtual_usd = partial(board.turns.virtual_usd, state)
        yield from pool.in_fair_order(
            state, key, virtual_usd, row.reference_usd, cell.size, of_tenant
        )
        return
    order = (whole if knobs.prefixes else mixed)(pool.lots(key))
    while piece := [state.tasks[task_id] for task_id in islice(order, cell.size)]:
        yield piece, row.reference_usd(piece)


def _affordable(
    state: State,
    board: Board,
    row: Row,
    tasks: Iterator[Task],
    on: tuple[Worker, int],
) -> Pieces:
    """The first tasks, so many at most, that their runs and tenants can pay for there."""
    worker, limit = on

    def upper_usd(some: Sequence[TaskId]) -> float:
        batch = batch_of(state, row, some)
        return money.upper_usd(options.expected(state, batch, worker, board.knobs)[0])

    named = (task.id for task in tasks)
    paid = budgets.affordable(state, named, upper_usd, limit)
    piece = [state.tasks[task_id] for task_id in paid]
    yield piece, row.reference_usd(piece)


def batch_of(state: State, row: Row, tasks: Iterable[TaskId]) -> Batch:
    """A batch of exactly these tasks, ready or not."""
    batch = [state.tasks[task_id] for task_id in tasks]
    return Batch(batch, row.reference_usd(batch))


def scored(
    state: State, board: Board, row: Row, worker: Worker | Offer, batch: Batch
) -> tuple[Score, Expected]:
    """The score of exactly this batch there, and what it should take."""
    weights = board.of(row.objective)
    made, missing = options.expected(state, batch, worker, board.knobs)
    moved_bytes = missing if worker.place != weights.home else 0
    per_hour = worker.interruptions_per_hour
    option = replace(
        _worth(state, board, row, batch),
        usd_per_hour=worker.usd_per_hour / worker.slots,
        wait_s=0.0 if isinstance(worker, Worker) else estimate.startup_s(state, worker),
        load_s=made.load_s,
        fetch_s=made.fetch_s,
        exec_s=made.exec_s,
        again_s=board.displaced_s(state, worker, row) if isinstance(worker, Worker) else 0.0,
        moved_gb=moved_bytes / GB,
        joules=made.joules,
        interruptions_per_hour=per_hour,
        redo_s=batch.redo_s(made.total_s, per_hour),
    )
    return plain(score(option, weights)), made


def _worth(state: State, board: Board, row: Row, batch: Batch) -> Option:
    """What these tasks are worth: sums and means over their steps."""
    weights = board.of(row.objective)
    value = urgent = path = 0.0
    for step_id, (usd, count) in batch.by_step.items():
        worth = board.worths.of(state, step_id, row.task_usd)
        value += usd * worth.importance
        path += count * worth.path_usd
        urgent += usd * worth.importance * _urgency(worth, row, weights.patience_s, state.now_ms)
    return Option(
        reference_usd=batch.usd,
        importance=value / batch.usd if batch.usd else 1.0,
        urgency=urgent / value if value else 1.0,
        path_usd=path,
        behind=board.turns.behind(state, row.neediest, board.mean_usd),
    )


def _urgency(worth: StepWorth, row: Row, patience_s: float, now_ms: int) -> float:
    slack_s = (worth.deadline_ms - now_ms) / 1000 if worth.deadline_ms < inf else 1e9
    horizon_s = patience_s + worth.rest_usd / row.usd_per_s
    return float(urgency((now_ms - worth.submitted_ms) / 1000, horizon_s, slack_s))
