"""Hold or go: whether a batch should wait for a better worker, or for others to fill it.

Both are options like any other, with a wait: a worker that is busy with the same key, and so
warm, competes by the time at which it will be free and has worked off what is before the batch;
a batch that lingers competes by what is expected to come. Only waits that end are waited for.
"""

from dataclasses import dataclass

import numpy as np

from flowmesh.base.ids import LeaseId
from flowmesh.core import arrivals
from flowmesh.core.board import Board, Cell
from flowmesh.core.groups import Group
from flowmesh.core.state import State
from flowmesh.core.table import COLD, WARM
from flowmesh.core.utility import rate, score

#: Least time between two looks at what waits, and most.
LOOK_MS, LONGEST_LOOK_MS = 50, 5_000
#: Nothing that is held may end later than in so many times the seconds that going now takes:
#: an idle worker is paid for anyway.
LATEST = 2.0
#: A lease that is late is taken to need as long again as it is late, and this share of its time.
LATE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait until then, and look again."""

    until_ms: int
    reason: str


def better(state: State, board: Board, cell: Cell) -> Hold | None:
    """Something worth more than going now, if there is."""
    if not board.knobs.hold:
        return None
    return _linger(state, board, cell) or _warm(state, board, cell) or _kind(state, board, cell)


def _linger(state: State, board: Board, cell: Cell) -> Hold | None:
    row = cell.row
    wait_s = (row.linger_until_ms - state.now_ms) / 1000
    if wait_s <= 0 or row.count >= row.limit or not board.knobs.batching:
        return None
    coming = arrivals.rate_per_s(state, row.batch_key) * wait_s
    tasks = min(float(row.limit), row.count + coming)
    now = _rate(state, board, cell, cell.group, cell.level, float(row.count), 0.0)
    if _rate(state, board, cell, cell.group, cell.level, tasks, wait_s) <= now:
        return None
    return Hold(row.linger_until_ms, f"{row.batch_key} lingers: {coming:.1f} more are expected")


def _warm(state: State, board: Board, cell: Cell) -> Hold | None:
    """Wait for one of the workers that are busy with this very key."""
    row = cell.row
    ends = {} if cell.level == WARM else board.ends_of(state, row)
    if not ends:
        return None
    lease_id = min(ends, key=lambda one: (ends[one], one))
    group = board.groups.group_of(state.leases[lease_id].worker)
    each_s = board.table.each_s(row, group)
    # What goes now would otherwise come last: a deep backlog opens one more engine.
    tasks = float(cell.size)
    ahead_s = max(0.0, row.count - tasks) * each_s / len(ends)
    wait_s = _free_s(state, lease_id, ends[lease_id]) + ahead_s
    return _wait(state, board, cell, (group, WARM), tasks, wait_s)


def _kind(state: State, board: Board, cell: Cell) -> Hold | None:
    """Wait for a busy worker of a better kind, if the fleet has little to do."""
    ahead_s = board.backlog_s(state, cell)
    for group in board.groups.columns:
        if group.offered or group.idle or not group.members or group is cell.group:
            continue
        soonest = board.groups.soonest(state, group)
        if soonest is None or board.table.why_not(cell.row, group):
            continue
        wait_s = _free_s(state, soonest[1], soonest[0]) + ahead_s
        hold = _wait(state, board, cell, (group, COLD), float(cell.size), wait_s)
        if hold is not None:
            return hold
    return None


def _wait(
    state: State,
    board: Board,
    cell: Cell,
    there: tuple[Group, int],
    tasks: float,
    wait_s: float,
) -> Hold | None:
    """Hold so many tasks for another group, at a level, if that is better."""
    group, level = there
    weights = board.of(cell.row.objective)
    later = score(board.option(state, cell.row, group, level, tasks, wait_s), weights)
    now = score(board.option(state, cell.row, cell.group, cell.level, tasks, 0.0), weights)
    if later.seconds > LATEST * now.seconds:
        return None
    if rate(later, weights.floor_s) <= rate(now, weights.floor_s):
        return None
    look_ms = int(np.clip(wait_s * 500, LOOK_MS, LONGEST_LOOK_MS))
    what = "warm" if level == WARM else "better"
    who = f"a {what} {group.device.kind or 'worker'}"
    return Hold(state.now_ms + look_ms, f"{cell.row.batch_key} waits {wait_s:.1f} s for {who}")


def _rate(
    state: State, board: Board, cell: Cell, group: Group, level: int, tasks: float, wait_s: float
) -> float:
    weights = board.of(cell.row.objective)
    option = board.option(state, cell.row, group, level, tasks, wait_s)
    return float(rate(score(option, weights), weights.floor_s))


def _free_s(state: State, lease_id: LeaseId, end_ms: int) -> float:
    """Until a lease should have ended; one that is late says little of when it will."""
    late_s = (state.now_ms - end_ms) / 1000
    if late_s < 0:
        return -late_s
    return late_s + LATE_SHARE * state.leases[lease_id].expected.total_s
