"""The scores of all batches that could be: batch key by group of workers by what they have.

One row is a key of the ready pool, one column a group of workers, and for each pair there are
three levels: workers whose engine is warm, those that hold the models, and any. Every cell has
the best batch size and its rate. Rows are scored again where something of them has changed, and
all of them now and then, since work gets urgent with time. No cost here is for one task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
#: Seconds of slack that stand for no deadline.
NO_DEADLINE_S = 1e9

_BY_ROW = ("count", "task_usd", "importance", "path_usd", "submitted", "rest_s", "deadline")
_BY_SIZE = ("tasks", "prompt", "longest", "output", "work")
_BY_PAIR = ("warm", "rows", "load_s", "fetch_s", "watts", "idle_w", "moved_gb")
_BY_COLUMN = ("price", "interruptions", "slots")


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
        self._by: dict[str, NDArray[Any]] = {}
        self._engines: dict[tuple[str, Device, str], Engine] = {}
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
        self._by = {name: np.zeros(room[0]) for name in _BY_ROW}
        self._by |= {name: np.zeros((room[0], len(SIZES))) for name in _BY_SIZE}
        self._by |= {name: np.zeros(room) for name in _BY_PAIR}
        self._by |= {name: np.ones(room[1]) for name in _BY_COLUMN}
        self._by["seconds"] = np.zeros((*room, 5))
        self.rates = np.full((*room, 3), -np.inf)
        self._picks = np.zeros((*room, 3), np.intp)
        self.until_ms = np.zeros((*room, 3))
        self._behind = np.zeros(room[0])
        self.has = np.zeros((*room, 3), bool)
        self.why = np.ones(room, np.int8)
        return True

    def clear(self, index: int) -> None:
        """The row is no more."""
        self.has[index] = False
        self.rates[index] = -np.inf

    def forget(self, batch_key: str) -> None:
        """Estimates of a batch key have changed."""
        for key in [key for key in self._engines if key[0] == batch_key]:
            del self._engines[key]

    def engine(self, state: State, row: Row, group: Group) -> Engine:
        key = (row.batch_key, group.device, group.place)
        known = self._engines.get(key)
        if known is None:
            known = self._engines[key] = options.engine(
                state, row.batch_key, group.device, group.place, row.tokens, self._knobs
            )
        return known

    def why_not(self, row: Row, group: Group) -> str:
        return REASONS[self.why[row.index, group.column]]

    def column(self, group: Group) -> None:
        self._by["price"][group.column] = group.usd_per_hour / group.slots
        self._by["interruptions"][group.column] = group.interruptions_per_hour

    def pair(self, state: State, row: Row, key: ReadyKey, group: Group, weights: Weights) -> None:
        """Fill what depends on the pair alone."""
        made = self.engine(state, row, group)
        at = (row.index, group.column)
        self.why[at] = why_not(group, key, made)
        self._by["seconds"][at] = made.seconds
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
        has[WARM] = row.batch_key in group.warm
        self._by["warm"][row.index, group.column] = len(group.warm.get(row.batch_key, ()))
        trees = row.demand.trees
        has[HELD] = bool(trees) and trees[0].digest in group.holds
        has[COLD] = bool(group.idle)

    def idle(self, group: Group) -> None:
        """Take in whether any worker of a group is idle."""
        self.has[:, group.column, COLD] = bool(group.idle)

    def fill(self, row: Row) -> None:
        """Take in what the row is."""
        index, by = row.index, self._by
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
        at = np.asarray(rows)
        self._behind[at] = behind
        option, tasks = self.options(at, weights, now_ms, behind)
        exec_s = option.exec_s
        found = rate(score(option, weights), weights.floor_s)
        found = np.where((exec_s <= weights.batch_s) | (tasks <= 1), found, -np.inf)
        # Where workers would be idle beside it, what several small batches do counts. A loss
        # is shared by the tasks: what has to be loaded anyway is loaded for as many as can be.
        count = self._by["count"][at][:, None, None, None]
        most = np.repeat(spread[None, :, None], 3, axis=2) * np.ones((len(at), 1, 1))
        most[:, :, WARM] = np.clip(self._by["warm"][at], 1.0, spread)
        several = np.minimum(most[..., None], np.ceil(count / tasks))
        compared = np.where(found > 0, found * several, found / tasks)
        best = compared.max(axis=3, keepdims=True)
        near = compared >= best - NEAR * np.abs(best)
        first = near.argmax(axis=3)
        self._picks[at] = first
        self.rates[at] = np.take_along_axis(found, first[..., None], 3)[..., 0]

    def size(self, at: tuple[int, int, int]) -> int:
        """Tasks of the batch that is best in a cell."""
        return int(self._by["tasks"][at[0], self._picks[at]])

    def scores(
        self, cells: Sequence[tuple[int, int, int]], weights: Weights, now_ms: int
    ) -> list[Score]:
        """The scores of the best batches of some cells."""
        rows, columns, levels = np.array(cells).T
        picks = self._picks[rows, columns, levels]
        by: dict[str, Any] = {name: self._by[name][rows, picks] for name in _BY_SIZE}
        by |= {name: self._by[name][rows, columns] for name in (*_BY_PAIR, "seconds")}
        by |= {name: self._by[name][columns] for name in _BY_COLUMN}
        by |= {name: self._by[name][rows] for name in _BY_ROW}
        needed = (levels != WARM, levels == COLD)
        by["behind"] = self._behind[rows]
        found = score(_option(by, needed, weights, now_ms), weights)
        terms = [np.broadcast_to(getattr(found, one), len(cells)) for one in Score.__slots__]
        return [Score(*map(float, each)) for each in zip(*terms, strict=True)]

    def options(
        self, at: NDArray[np.int64], weights: Weights, now_ms: int, behind: Floats
    ) -> tuple[Option, Floats]:
        """The options of some rows by column, level and size; and how many tasks they have."""
        by = self._by
        pairs = {name: by[name][at][:, :, None, None] for name in _BY_PAIR}
        pairs["seconds"] = by["seconds"][at][:, :, None, None, :]
        pairs |= {name: by[name][None, :, None, None] for name in _BY_COLUMN}
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
        at = (row.index, group.column)
        by: dict[str, Any] = {name: self._by[name][at] for name in (*_BY_PAIR, "seconds")}
        by |= {name: self._by[name][group.column] for name in _BY_COLUMN}
        by |= {name: self._by[name][row.index] for name in _BY_ROW}
        longest = np.interp([tasks], SIZES, row.longest)
        features = row.features(np.array([tasks]), longest)
        by |= zip(_BY_SIZE, (tasks, *(float(one[0]) for one in features)), strict=True)
        needed = (float(level != WARM), float(level == COLD))
        return _option(by | {"behind": behind}, needed, weights, now_ms)

    def each_s(self, row: Row, group: Group) -> float:
        """What a task of a row takes in the largest batch that it could be in."""
        found = self.option(row, group, WARM, float(row.limit), (Weights(), 0, 0.0))
        return float(found.exec_s) / row.limit


def _option(
    by: Mapping[str, Any], needed: tuple[Any, Any], weights: Weights, now_ms: int
) -> Option:
    """`by` has what the arrays of the table have; `needed`: whether to load, and to fetch."""
    seconds = by["seconds"]
    steps = np.maximum(by["longest"], by["output"] / np.maximum(by["rows"], 1.0))
    exec_s = (
        seconds[..., 0]
        + seconds[..., 1] * by["prompt"]
        + seconds[..., 2] * steps
        + seconds[..., 3] * by["output"]
        + seconds[..., 4] * by["work"]
    )
    load_s, fetch_s = by["load_s"] * needed[0], by["fetch_s"] * needed[1]
    busy_s = load_s + fetch_s + exec_s
    slack_s = np.minimum((by["deadline"] - now_ms) / 1000, NO_DEADLINE_S)
    horizon_s = weights.patience_s + by["rest_s"]
    return Option(
        reference_usd=by["task_usd"] * by["tasks"],
        importance=by["importance"],
        urgency=urgency((now_ms - by["submitted"]) / 1000, horizon_s, slack_s),
        path_usd=by["path_usd"] * by["tasks"],
        behind=by["behind"],
        usd_per_hour=by["price"],
        load_s=load_s,
        fetch_s=fetch_s,
        exec_s=exec_s,
        moved_gb=by["moved_gb"] * needed[1],
        joules=by["watts"] * exec_s + by["idle_w"] * (load_s + fetch_s),
        interruptions_per_hour=by["interruptions"],
        redo_s=busy_s / 2,
    )


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
