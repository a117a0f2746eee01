"""The scores of all batches that could be: batch key by group of workers by what they have.

One row is a key of the ready pool, one column a group of workers, and for each pair there are
three levels: workers whose engine is warm, those that hold the models, and any. Every cell has
the best batch size and its rate. Rows are scored again where something of them has changed, and
all of them now and then, since work gets urgent with time. No cost here is for one task.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmesh.base.replacing import maker
from flowmesh.core import options
from flowmesh.core.fleet import Device
from flowmesh.core.groups import Group
from flowmesh.core.options import GB, Engine
from flowmesh.core.rows import SIZES, Floats, Row
from flowmesh.core.state import ReadyKey, State
from flowmesh.core.utility import Knobs, Option, Score, Weights, rate, score, urgency

#: Of sizes whose rate is within this share of the best, the smallest is taken.
NEAR = 0.02
#: Levels of a cell: what its workers have of the key.
WARM, HELD, COLD = range(3)
#: Why a pair of a key and a group is impossible; `Table.why` holds the index.
REASONS = ("", "runtime", "devices", "memory", "device memory")
#: In `Table.why`, of rows and columns that are not in use.
NO_PAIR = -1
#: Seconds of slack that stand for no deadline.
NO_DEADLINE_S = 1e9

_BY_ROW = (
    *("count", "task_usd", "importance", "path_usd", "submitted", "deadline"),
    *("rest_s", "next_s", "next_tasks"),
)
_BY_SIZE = ("tasks", "prompt", "longest", "output", "work")
_BY_PAIR = ("warm", "rows", "load_s", "fetch_s", "watts", "idle_w", "moved_gb")
_BY_COLUMN = ("price", "interruptions", "slots", "again_s")


class Table:
    """Arrays by row, column, level and size. `rates` and `sizes` are of the best size of a cell.

    Attributes:
        why: index into `REASONS`; 0 where the pair is possible.
        has: whether idle workers of a column are at a level of a row.
        until_ms: until when a cell waits for something better.
    """

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._room = (0, 0)
        #: The same numbers by name.
        self._by: dict[str, NDArray[Any]] = {}
        self._of_rows = self._of_columns = np.zeros((0, 0))
        self._of_sizes = self._of_pairs = self._seconds = np.zeros((0, 0, 0))
        #: By row and column, see `each_s`, as far as it was asked for.
        self._each_s: dict[int, dict[int, float]] = {}
        self._engines: dict[str, dict[tuple[Device, str], Engine]] = {}
        self.rates: Floats = np.zeros((0, 0, 3))
        self._picks: NDArray[np.intp] = np.zeros((0, 0, 3), np.intp)
        self.until_ms: Floats = np.zeros((0, 0, 3))
        self._behind: Floats = np.zeros(0)
        self.has: NDArray[np.bool_] = np.zeros((0, 0, 3), bool)
        self.why: NDArray[np.int8] = np.zeros((0, 0), np.int8)

    def reserve(self, rows: int, columns: int) -> bool:
        """Make room. Says whether anything was moved: then all must be filled anew."""
        if rows <= self._room[0] and columns <= self._room[1]:
            return False
        room = (max(16, 2 * rows), max(8, columns + columns // 2))
        self._room = room
        self._of_rows = np.zeros((len(_BY_ROW), room[0]))
        self._of_sizes = np.zeros((len(_BY_SIZE), room[0], len(SIZES)))
        self._of_pairs = np.zeros((len(_BY_PAIR), *room))
        self._of_columns = np.ones((len(_BY_COLUMN), room[1]))
        self._seconds = np.zeros((5, *room))
        self._by = dict(zip(_BY_ROW, self._of_rows, strict=True))
        self._by |= zip(_BY_SIZE, self._of_sizes, strict=True)
        self._by |= zip(_BY_PAIR, self._of_pairs, strict=True)
        self._by |= zip(_BY_COLUMN, self._of_columns, strict=True)
        self.rates = np.full((*room, 3), -np.inf)
        self._picks = np.zeros((*room, 3), np.intp)
        self.until_ms = np.zeros((*room, 3))
        self._behind = np.zeros(room[0])
        self.has = np.zeros((*room, 3), bool)
        self.why = np.full(room, NO_PAIR, np.int8)
        return True

    def clear(self, index: int) -> None:
        """The row is no more."""
        self.has[index] = False
        self.why[index] = NO_PAIR
        self.rates[index] = -np.inf

    def forget(self, batch_key: str) -> None:
        """Estimates of a batch key have changed."""
        self._engines.pop(batch_key, None)

    def engine(self, state: State, row: Row, group: Group) -> Engine:
        known = self._engines.setdefault(row.batch_key, {})
        where = (group.device, group.place)
        if where not in known:
            known[where] = options.engine(
                state, row.batch_key, group.device, group.place, row.tokens, self._knobs
            )
        return known[where]

    def why_not(self, row: Row, group: Group) -> str:
        return REASONS[self.why[row.index, group.column]]

    def column(self, group: Group) -> None:
        self._by["price"][group.column] = group.usd_per_hour / group.slots
        self._by["interruptions"][group.column] = group.interruptions_per_hour

    def displaces(self, group: Group, again_s: float) -> None:
        """What a group's idle workers would take to load again what they would lose."""
        self._by["again_s"][group.column] = again_s

    def pair(self, state: State, row: Row, key: ReadyKey, group: Group, weights: Weights) -> None:
        """Fill what depends on the pair alone."""
        made = self.engine(state, row, group)
        at = (row.index, group.column)
        self.why[at] = why_not(group, key, made)
        self._seconds[:, row.index, group.column] = made.seconds
        self._by["rows"][at] = made.rows
        self._by["watts"][at] = made.watts
        self._by["idle_w"][at] = made.idle_w
        self._by["load_s"][at] = made.load_s if self._knobs.locality else 0.0
        self._by["fetch_s"][at] = made.fetch_s if self._knobs.locality else 0.0
        size_bytes = sum(tree.size_bytes for tree in row.demand.trees)
        self._by["moved_gb"][at] = size_bytes / GB if group.place != weights.home else 0.0
        self.level(row, group)

    def level(self, row: Row, group: Group) -> None:
        """Take in which idle workers of a group have what the row needs."""
        has = self.has[row.index, group.column]
        warm = group.warm.get(row.batch_key, {})
        has[WARM] = bool(warm)
        self._by["warm"][row.index, group.column] = len(warm)
        trees = row.demand.trees
        holders = group.holds.get(trees[0].digest, {}) if trees else {}
        has[HELD] = len(holders) > len(warm) or any(one not in warm for one in holders)
        has[COLD] = len(group.idle) > len(warm)

    def idle(self, group: Group) -> None:
        """Take in whether any worker of a group is idle, but for those that are warm."""
        self.has[:, group.column, COLD] = len(group.idle) > self._by["warm"][:, group.column]

    def fill(self, row: Row) -> None:
        """Take in what the row is."""
        index, by = row.index, self._by
        self._each_s.pop(index, None)
        sizes = row.sizes(batching=self._knobs.batching)
        prompt, longest, output, work = row.features(sizes, row.longest)
        by["tasks"][index] = sizes
        by["prompt"][index] = prompt
        by["longest"][index] = longest
        by["output"][index] = output
        by["work"][index] = work
        by["count"][index] = row.count
        by["task_usd"][index] = row.task_usd
        by["importance"][index] = row.importance
        by["path_usd"][index] = row.path_usd
        by["submitted"][index] = row.submitted_ms
        by["rest_s"][index] = row.rest_s
        by["next_s"][index] = row.next_s
        by["next_tasks"][index] = row.next_tasks
        by["deadline"][index] = row.deadline_ms
        self.until_ms[index] = 0.0

    def score(
        self,
        rows: Sequence[int],
        weights: Weights,
        now_ms: int,
        spread: Floats,
        behind: Floats,
    ) -> None:
        """Score these rows on all columns. `spread`: idle workers by column for each row."""
        at, used = np.asarray(rows), len(spread)
        self._behind[at] = behind
        option, tasks = self.options(at, weights, now_ms, behind, used)
        found = score(option, weights)
        rates = rate(found, weights.floor_s)
        # Where workers would be idle beside it, what several small batches do counts. A loss
        # is shared by the tasks: what has to be loaded anyway is loaded for as many as can be.
        count = self._by["count"][at][:, None, None, None]
        most = np.repeat(spread[None, :, None], 3, axis=2) * np.ones((len(at), 1, 1))
        most[:, :, WARM] = np.clip(self._by["warm"][at, :used], 1.0, spread)
        several = np.minimum(most[..., None], np.ceil(count / tasks))
        several = several / (1 + found.seconds / self._bearable_s(at, weights))
        compared = np.where(rates > 0, rates * several, rates / tasks)
        best = compared.max(axis=3, keepdims=True)
        near = compared >= best - NEAR * np.abs(best)
        first = near.argmax(axis=3)
        self._picks[at, :used] = first
        self.rates[at, :used] = np.take_along_axis(rates, first[..., None], 3)[..., 0]

    def _bearable_s(self, at: NDArray[np.int64], weights: Weights) -> Floats:
        """How long batches may take, by row and size: who comes meanwhile waits for their end.

        So does the run whose turn it is, where there is more in a batch than its own tasks.
        """
        alone = self._by["tasks"][at] <= self._by["next_tasks"][at][:, None]
        next_s = weights.patience_s + self._by["next_s"][at][:, None]
        bearable_s = np.where(alone, weights.batch_s, np.minimum(weights.batch_s, next_s))
        return bearable_s[:, None, None, :]

    def size(self, at: tuple[int, int, int]) -> int:
        """Tasks of the batch that is best in a cell."""
        return int(self._by["tasks"][at[0], self._picks[at]])

    def scores(
        self, cells: Sequence[tuple[int, int, int]], weights: Weights, now_ms: int
    ) -> Callable[[], list[Score]]:
        """What tells the scores of the best batches of some cells, as they are now."""
        rows, columns, levels = np.array(cells).T
        picks = self._picks[rows, columns, levels]
        by = dict(zip(_BY_SIZE, self._of_sizes[:, rows, picks], strict=True))
        by |= zip(_BY_PAIR, self._of_pairs[:, rows, columns], strict=True)
        by |= zip(_BY_COLUMN, self._of_columns[:, columns], strict=True)
        by |= zip(_BY_ROW, self._of_rows[:, rows], strict=True)
        by |= {"seconds": self._seconds[:, rows, columns], "behind": self._behind[rows]}

        def tell() -> list[Score]:
            needed = (levels != WARM, levels == COLD)
            found = score(_option(by, needed, weights, now_ms), weights)
            terms = [np.broadcast_to(getattr(found, one), len(cells)) for one in Score.__slots__]
            return [Score(*map(float, each)) for each in zip(*terms, strict=True)]

        return tell

    def options(
        self, at: NDArray[np.int64], weights: Weights, now_ms: int, behind: Floats, columns: int
    ) -> tuple[Option, Floats]:
        """The options of some rows by column, level and size; and how many tasks they have."""
        by = self._by
        pairs = {name: by[name][at, :columns, None, None] for name in _BY_PAIR}
        pairs["seconds"] = self._seconds[:, at, :columns, None, None]
        pairs |= {name: by[name][None, :columns, None, None] for name in _BY_COLUMN}
        singles = {name: by[name][at][:, None, None, None] for name in _BY_ROW}
        singles["behind"] = behind[:, None, None, None]
        sized = {name: by[name][at][:, None, None, :] for name in _BY_SIZE}
        option = _option(pairs | singles | sized, (_LOADS, _FETCHES), weights, now_ms)
        return option, sized["tasks"]

    def option(
        self, row: Row, group: Group, level: int, tasks: float, now: tuple[Weights, int, float]
    ) -> Option:
        """One option, of so many mean tasks. `now`: weights, time, and batches behind."""
        weights, now_ms, behind = now
        index, column = row.index, group.column
        by: dict[str, Any] = {"seconds": self._seconds[:, index, column].tolist()}
        by |= zip(_BY_PAIR, self._of_pairs[:, index, column].tolist(), strict=True)
        by |= zip(_BY_COLUMN, self._of_columns[:, column].tolist(), strict=True)
        by |= zip(_BY_ROW, self._of_rows[:, index].tolist(), strict=True)
        longest = float(np.interp(tasks, SIZES, row.longest))
        by |= zip(_BY_SIZE, (tasks, *row.features(tasks, longest)), strict=True)
        needed = (float(level != WARM), float(level == COLD))
        return _option(by | {"behind": behind}, needed, weights, now_ms)

    def each_s(self, row: Row, group: Group) -> float:
        """What a task of a row takes in the largest batch that it could be in."""
        known = self._each_s.setdefault(row.index, {})
        if group.column not in known:
            found = self.option(row, group, WARM, float(row.limit), (Weights(), 0, 0.0))
            known[group.column] = float(found.exec_s) / row.limit
        return known[group.column]


def _option(
    by: Mapping[str, Any], needed: tuple[Any, Any], weights: Weights, now_ms: int
) -> Option:
    """`by` has what the arrays of the table have; `needed`: whether to load, and to fetch."""
    fixed, prompt, step, output, work = by["seconds"]
    turns = by["output"] / np.maximum(by["rows"], 1.0) - by["output"] / np.maximum(by["tasks"], 1.0)
    steps = by["longest"] + np.maximum(0.0, turns)
    exec_s = (
        fixed + prompt * by["prompt"] + step * steps + output * by["output"] + work * by["work"]
    )
    load_s, fetch_s = by["load_s"] * needed[0], by["fetch_s"] * needed[1]
    busy_s = load_s + fetch_s + exec_s
    slack_s = np.minimum((by["deadline"] - now_ms) / 1000, NO_DEADLINE_S)
    horizon_s = weights.patience_s + by["rest_s"]
    return _made(
        reference_usd=by["task_usd"] * by["tasks"],
        importance=by["importance"],
        urgency=urgency((now_ms - by["submitted"]) / 1000, horizon_s, slack_s),
        path_usd=by["path_usd"] * by["tasks"],
        behind=by["behind"],
        usd_per_hour=by["price"],
        load_s=load_s,
        fetch_s=fetch_s,
        exec_s=exec_s,
        again_s=by["again_s"] * needed[0],
        moved_gb=by["moved_gb"] * needed[1],
        joules=by["watts"] * exec_s + by["idle_w"] * (load_s + fetch_s),
        interruptions_per_hour=by["interruptions"],
        redo_s=busy_s / 2,
    )


_made = maker(Option)
_LOADS: Floats = np.array([0.0, 1.0, 1.0])[None, None, :, None]
_FETCHES: Floats = np.array([0.0, 0.0, 1.0])[None, None, :, None]


def why_not(group: Group, key: ReadyKey, engine: Engine) -> int:
    """Why no worker of a group could ever run tasks of a key: an index into `REASONS`."""
    if key.runtime not in group.runtimes:
        return REASONS.index("runtime")
    if key.devices > group.devices:
        return REASONS.index("devices")
    if group.memory_bytes and key.memory_bytes > group.memory_bytes:
        return REASONS.index("memory")
    return 0 if engine.fits else REASONS.index("device memory")
