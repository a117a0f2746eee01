"""The policy's index of a state: rows, groups, turns and scores, kept in step by `State.touched`.

It is a cache: whoever meets a state for the first time builds it from the state alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from flowmesh.base.ids import LeaseId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import arrivals, estimate, pool, rows
from flowmesh.core.decisions import GrantLease
from flowmesh.core.fleet import Worker
from flowmesh.core.groups import Group, Groups, without
from flowmesh.core.options import Batch
from flowmesh.core.records import Demand
from flowmesh.core.rows import Floats, Row
from flowmesh.core.state import State
from flowmesh.core.story import RUNNERS_UP, Alternative, Explained, Reasons
from flowmesh.core.table import REASONS, WARM, Table
from flowmesh.core.turns import Turns
from flowmesh.core.utility import PRESETS, Knobs, Option, Score, Weights, priced_as
from flowmesh.core.worth import Worths

#: Reasons to wait that a decision keeps.
HELD_LIMIT = 20
#: All rows are scored again after so long: work gets urgent with time.
FRESH_MS = 250


@dataclass(frozen=True, slots=True)
class Cell:
    """A key on a group of workers at a level, with the best size and its rate."""

    row: Row
    group: Group
    level: int
    size: int
    rate: float


class Board:
    """`look` first; then the others tell of the state that was looked at."""

    def __init__(self, weights: Weights, knobs: Knobs) -> None:
        self.weights = weights
        self._weights: dict[str, Weights] = {}
        self.knobs = knobs
        self.worths = Worths(path=knobs.path)
        self._state: State | None = None
        self._reset()

    def _reset(self) -> None:
        self.groups = Groups()
        self.table = Table(self.knobs)
        self.turns = Turns()
        self.rows: dict[str, Row] = {}
        self._ends: dict[str, dict[LeaseId, int]] = {}
        #: Why keys wait, in words; of those that do no longer too, until they change.
        self.waits: dict[str, str] = {}
        self._at: list[Row | None] = []
        self._by_batch_key: dict[str, dict[str, Row]] = {}
        self._columns = 0
        self._loads_s: dict[tuple[str, int], float] = {}
        #: Rates of the cells that may still be chosen, as `cells` goes on.
        self._open: Floats = np.zeros((0, 0, 3))
        #: What was worked out since the last look.
        self._backlog_s: float | None = None
        self._options: dict[tuple[int, int, int, float], Option] = {}
        #: Virtual time of the tenants that wait, when rows were last scored.
        self.mean_usd = 0.0
        self._scored_ms = -inf

    def of(self, objective: str) -> Weights:
        """The weights of a run's objective; with none, or an unknown one, the deployment's."""
        if not objective or objective not in PRESETS:
            return self.weights
        if objective not in self._weights:
            self._weights[objective] = priced_as(PRESETS[objective], self.weights)
        return self._weights[objective]

    def look(self, state: State) -> None:
        """Take in all that has changed since the last look."""
        touched, self._backlog_s, self._options = state.touched, None, {}
        workers: Iterable[WorkerId] = touched.workers
        keys: dict[str, None] = touched.ready
        first = state is not self._state
        if first:
            self._state = state
            self._reset()
            workers, keys = tuple(state.workers), dict.fromkeys(state.ready)
        late = state.now_ms - self._scored_ms >= FRESH_MS
        if late:
            self.groups.offers(state)
            self.worths.forget(state)
        self._look_at_workers(state, workers)
        if first:
            self._look_at_leases(state)
        learnt = self._learnt(touched.estimates)
        dirty = dict.fromkeys(key for key in (*keys, *learnt) if key in state.ready)
        for name in [name for name in keys if name not in state.ready and name in self.rows]:
            self._drop(state, self.rows[name])
        grown = self._look_at_keys(state, dirty, learnt)
        self._score(state, list(self.rows if late or grown else dirty))
        touched.ready.clear()
        touched.workers.clear()
        touched.estimates.clear()
        if late:
            self._scored_ms = state.now_ms

    def began(self, batch_key: str, group: Group, lease_id: LeaseId, end_ms: int) -> None:
        """A lease was granted: its worker will be free, and its engine warm, at its end."""
        self._ends.setdefault(batch_key, {})[lease_id] = end_ms
        self.groups.began(group, end_ms, lease_id)

    def ends_of(self, state: State, row: Row) -> dict[LeaseId, int]:
        """When leases of a row's batch key should end, on workers that could run its tasks.

        Its engine is warm there, or will be.
        """
        possible: dict[LeaseId, int] = {}
        for lease_id, end_ms in self._running(state, row.batch_key).items():
            worker = state.workers[state.leases[lease_id].worker]
            group = self.groups.group_of(worker.id)
            if not worker.draining and not self.table.why_not(row, group):
                possible[lease_id] = end_ms
        return possible

    def _running(self, state: State, batch_key: str) -> dict[LeaseId, int]:
        ends = self._ends.get(batch_key, {})
        for lease_id in [one for one in ends if one not in state.leases]:
            del ends[lease_id]
        return ends

    def backlog_s(self, state: State, cell: Cell) -> float:
        """How long all workers together have to do with what is ready beside a cell's batch."""
        if self._backlog_s is None:
            rows = self.rows.values()
            self._backlog_s = sum(row.count * row.task_usd / row.usd_per_s for row in rows)
        own_s = cell.size * cell.row.task_usd / cell.row.usd_per_s
        return max(0.0, self._backlog_s - own_s) / max(len(state.workers), 1)

    def option(
        self, state: State, row: Row, group: Group, level: int, tasks: float, wait_s: float
    ) -> Option:
        """So many mean tasks of a row on a group's worker that is free after `wait_s`."""
        what = (row.index, group.column, level, tasks)
        known = self._options.get(what)
        if known is None:
            behind = self.turns.behind(state, row.neediest, self.mean_usd)
            now = (self.of(row.objective), state.now_ms, behind)
            known = self._options[what] = self.table.option(row, group, level, tasks, now)
        return replace(known, wait_s=wait_s) if wait_s else known

    def _look_at_workers(self, state: State, workers: Iterable[WorkerId]) -> None:
        for group, worker, warm in self.groups.look(state, workers):
            if group.column >= self._columns:
                continue
            for batch_key in warm:
                for row in self._by_batch_key.get(batch_key, {}).values():
                    self.table.level(row, group)
            self.table.idle(group)
            if worker.holds:
                for row in self.rows.values():
                    if row.demand.trees:
                        self.table.level(row, group)

    def _look_at_leases(self, state: State) -> None:
        for lease in state.leases.values():
            end_ms = lease.granted_ms + int(1000 * lease.expected.total_s)
            self.began(lease.batch_key, self.groups.group_of(lease.worker), lease.id, end_ms)

    def _learnt(self, batch_keys: Iterable[str]) -> dict[str, None]:
        """Names of the rows whose estimates have changed."""
        names: dict[str, None] = {}
        for batch_key in batch_keys:
            self.table.forget(batch_key)
            for key in [key for key in self._loads_s if key[0] == batch_key]:
                del self._loads_s[key]
            names |= dict.fromkeys(self._by_batch_key.get(batch_key, ()))
        return names

    def _look_at_keys(self, state: State, dirty: dict[str, None], learnt: dict[str, None]) -> bool:
        """Whether there are new columns, so that all rows must be scored."""
        fresh = [name for name in dirty if name not in self.rows]
        for name in fresh:
            self._add(state, name)
        everything = self.table.reserve(len(self._at), len(self.groups.columns))
        columns = self.groups.columns
        for group in columns if everything else columns[self._columns :]:
            self.table.column(group)
        grown = everything or len(columns) > self._columns
        for name in self.rows if grown else dirty:
            row = self.rows[name]
            anew = grown or name in learnt or name in fresh
            self._measure(state, row, anew=anew)
        self._columns = len(columns)
        return grown

    def _add(self, state: State, name: str) -> None:
        index = next((at for at, row in enumerate(self._at) if row is None), len(self._at))
        row = Row(name, index, pool.batch_key(state, state.ready[name]))
        if index == len(self._at):
            self._at.append(row)
        self._at[index] = self.rows[name] = row
        self._by_batch_key.setdefault(row.batch_key, {})[name] = row

    def _drop(self, state: State, row: Row) -> None:
        self.turns.update(state, row.index, {}, row.next_usd)
        self.table.clear(row.index)
        self._at[row.index] = None
        self.waits.pop(row.name, None)
        del self.rows[row.name], self._by_batch_key[row.batch_key][row.name]

    def _measure(self, state: State, row: Row, *, anew: bool) -> None:
        """Take in what a key holds; `anew`: and what its tasks take on which workers."""
        key = state.ready[row.name]
        rows.measure(row, state, key, learnt=anew)
        if anew:
            weights, table = self.of(row.objective), self.table
            for group in self.groups.columns:
                table.pair(state, row, key, group, weights)
            possible = [one for one in self.groups.columns if not table.why_not(row, one)]
            prices = (one.usd_per_hour / one.slots for one in possible)
            engines = (table.engine(state, row, one) for one in possible)
            rows.refer(row, zip(engines, prices, strict=True), weights)
            row.possible = any(not one.offered for one in possible)
        old = row.next_usd
        rows.value(row, state, key, self.worths, lambda one: self.turns.virtual_usd(state, one))
        self.turns.update(state, row.index, row.next_usd if row.possible else {}, old)
        self.table.fill(row)
        self.waits.pop(row.name, None)

    def _score(self, state: State, names: list[str]) -> None:
        if not names:
            return
        mean_usd = self.mean_usd = self.turns.mean_usd(state)
        by_objective: dict[str, list[Row]] = {}
        for name in names:
            row = self.rows[name]
            by_objective.setdefault(row.objective, []).append(row)
        spread = self._spread()
        for group in self.groups.columns:
            self.table.displaces(group, self._least_again_s(state, group))
        for objective, alike in by_objective.items():
            behind = [self.turns.behind(state, row.neediest, mean_usd) for row in alike]
            at = [row.index for row in alike]
            weights = self.of(objective)
            self.table.score(at, weights, state.now_ms, spread, np.array(behind))

    def _least_again_s(self, state: State, group: Group) -> float:
        if group.bare or not group.idle:
            return 0.0
        return min(self.again_s(state, group, batch_key) for batch_key in group.warm)

    def again_s(self, state: State, group: Group, batch_key: str) -> float:
        """What it costs to lose an engine: the time to load it again, if it is wanted again."""
        if not self.knobs.locality:
            return 0.0
        known = self._loads_s.get((batch_key, group.column))
        if known is None:
            demand = state.demands.get(batch_key) or Demand()
            known = estimate.load_s(state, demand, group.device)
            self._loads_s[batch_key, group.column] = known
        if not known or self._by_batch_key.get(batch_key):
            return known
        return known * known / (known + arrivals.next_s(state, batch_key))

    def displaced_s(self, state: State, worker: Worker, row: Row) -> float:
        """The same of what a worker would lose for a row: at best the least of its engines."""
        group = self.groups.group_of(worker.id)
        if row.batch_key in worker.warm:
            return 0.0
        return min((self.again_s(state, group, one) for one in worker.warm), default=0.0)

    def _spread(self) -> Floats:
        """For each column, idle workers that one row may count on."""
        idle = np.array([len(group.idle) for group in self.groups.columns], dtype=float)
        spread: Floats = np.maximum(1.0, idle // max(len(self.rows), 1))
        return spread

    def cells(self, state: State) -> Iterator[Cell]:
        """Cells with idle workers, in the order in which they should be tried."""
        rates = self._open = self._rates(state)
        best = rates.max(axis=(1, 2), initial=-np.inf).tolist()
        if self.knobs.fairness:
            for tenant in self.turns.owed(state):
                yield from self._best(rates, best, sorted(self.turns.rows(tenant)))
        yield from self._best(rates, best, range(len(best)))

    def _best(self, rates: Floats, best: list[float], of_rows: Sequence[int]) -> Iterator[Cell]:
        """Cells of some rows, the best first; of equal ones the first by name.

        `best` is the best rate by row. What is yielded is tried: its rate is taken away.
        """
        while of_rows and (most := max([best[row] for row in of_rows])) > -np.inf:
            ties = [
                (row, int(column), int(level))
                for row in of_rows
                if best[row] == most
                for column, level in np.argwhere(rates[row] == most)
            ]
            at = min(ties, key=self._order)
            yield self._cell(at, rates)
            rates[at] = -np.inf
            best[at[0]] = float(rates[at[0]].max())

    def _order(self, at: tuple[int, int, int]) -> tuple[int, str, object]:
        row = self._at[at[0]]
        assert row is not None, at
        return at[2], row.name, self.groups.columns[at[1]].name[:-1]

    def _cell(self, at: tuple[int, int, int], rates: Floats) -> Cell:
        row = self._at[at[0]]
        assert row is not None, at
        size = self.table.size(at)
        return Cell(row, self.groups.columns[at[1]], at[2], size, float(rates[at]))

    def wait(self, cell: Cell, until_ms: int, reason: str) -> None:
        """Leave a cell alone until then, or until something of its key changes."""
        self.waits[cell.row.name] = reason
        self.table.until_ms[cell.row.index, cell.group.column, cell.level] = until_ms

    def wakes_ms(self, state: State) -> int | None:
        """When the first of the cells that wait should be looked at again."""
        table = self.table
        waits = table.until_ms[table.has & (table.until_ms > state.now_ms)]
        return int(waits.min()) if waits.size else None

    def regret(self, warm: Sequence[str], row: Row) -> tuple[int, int]:
        """What is lost if a worker turns to another key: engines that ready tasks want, others."""
        others = [one for one in warm if one != row.batch_key]
        wanted = sum(bool(self._by_batch_key.get(one)) for one in others)
        return wanted, len(others)

    def granted(self, state: State, cell: Cell, choice: GrantLease, batch: Batch) -> None:
        """A cell became a lease, which the law applies next."""
        usd, batch_key = choice.expected.reference_usd, choice.batch_key
        end_ms = state.now_ms + int(1000 * choice.expected.total_s)
        self.began(batch_key, cell.group, choice.lease, end_ms)
        if len(self._ends[batch_key]) > 2 * len(state.leases) + 16:
            self._running(state, batch_key)
        self.turns.granted(usd)
        for step_id, (step_usd, _) in batch.by_step.items():
            self.worths.granted(state.steps[step_id], step_usd)

    def explained(self, state: State, cell: Cell, choice: GrantLease) -> Explained:
        """A grant, the best of what else could have been granted, and what could not be.

        `cell` is the last that `cells` has given.
        """
        rates = self._open
        rates[cell.row.index, cell.group.column, cell.level] = -np.inf
        possible = np.flatnonzero(rates > -np.inf)
        count = min(RUNNERS_UP, possible.size)
        if possible.size > count:
            possible = possible[np.argpartition(rates.flat[possible], -count)[-count:]]
        spots = [part.tolist() for part in np.unravel_index(possible, rates.shape)]
        places: list[tuple[int, int, int]] = list(zip(*spots, strict=True))
        places.sort(key=lambda at: (-rates[at], self._order(at)))
        others = [self._alternative(at) for at in places]
        weights = self.of(cell.row.objective)
        scores = self.table.scores(places, weights, state.now_ms) if places else list[Score]
        excluded, waits = self._excluded(), dict(self.waits)

        def tell() -> Reasons:
            return Reasons(
                tuple(replace(one, score=it) for one, it in zip(others, scores(), strict=True)),
                excluded(),
                tuple(waits[name] for name in sorted(waits)[:HELD_LIMIT]),
            )

        return Explained(choice, tell)

    def _alternative(self, at: tuple[int, int, int]) -> Alternative:
        """What the best batch of a cell is, but for its score."""
        row, group = self._at[at[0]], self.groups.columns[at[1]]
        assert row is not None, at
        warm = group.warm.get(row.batch_key, {})
        workers = warm if at[2] == WARM else without(group.idle, warm)
        worker = next(iter(workers)) if len(workers) == 1 else ""
        return Alternative(row.batch_key, worker, group.device.kind, self.table.size(at), Score())

    def _excluded(self) -> Callable[[], dict[str, int]]:
        """What tells the pairs of a ready key and a group of workers that are impossible now."""
        groups = [group for group in self.groups.columns if group.members]
        columns = [group.column for group in groups]
        busy = [
            "" if group.idle else "draining" if group.draining == group.members else "busy"
            for group in groups
        ]
        why, held = self.table.why[: len(self._at), columns], len(self.waits)

        def tell() -> dict[str, int]:
            """Numbers of pairs by reason."""
            counts = {
                reason: int(np.count_nonzero(why == place))
                for place, reason in enumerate(REASONS)
                if reason
            }
            for reason, pairs in zip(busy, np.count_nonzero(why == 0, axis=0), strict=True):
                if reason:
                    counts[reason] = counts.get(reason, 0) + int(pairs)
            counts["held"] = held
            return {reason: count for reason, count in counts.items() if count}

        return tell

    def _rates(self, state: State) -> Floats:
        """Of cells with idle workers for which nothing better is waited for; a copy."""
        table, used = self.table, np.s_[: len(self._at), : len(self.groups.columns)]
        open_ = table.has[used] & (table.why[used] == 0)[..., None]
        due = table.until_ms[used] <= state.now_ms
        rates = np.where(open_ & due, table.rates[used], -np.inf)
        # What figures beyond reason come to is no number, and no choice either.
        return np.nan_to_num(rates, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
