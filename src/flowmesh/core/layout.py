"""Steps laid out on workers and offers, one batch after the other, by the policy's utility.

The places fill up as steps are put on them; a batch goes where its utility per second is highest,
at the size that the policy would take.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from flowmesh.core import estimate, needs
from flowmesh.core.estimate import Amounts
from flowmesh.core.fleet import Device, Worker
from flowmesh.core.records import Demand
from flowmesh.core.state import State
from flowmesh.core.table import NEAR
from flowmesh.core.utility import Option, Weights, rate, score


@dataclass(frozen=True, slots=True)
class Ahead:
    """A step as far as it can be foreseen: what its tasks are like on average.

    Attributes:
        tasks: distinct ones, to be executed.
        prompt_tokens, prefix_tokens, work: of one task; of `prompt_tokens`, those that tasks of
            one batch have in common.
        output_tokens: the most that a task may generate.
        doubt: standard deviation of `tasks`, relative to it.
        unsure: share of `tasks` that may turn out to be done already.
    """

    name: str
    upstream: tuple[str, ...] = ()
    tasks: int = 0
    runtime: str = ""
    batch_key: str = ""
    demand: Demand = field(default_factory=Demand)
    devices: int = 1
    memory_bytes: int = 0
    max_batch: int = 1
    prompt_tokens: float = 0.0
    prefix_tokens: float = 0.0
    output_tokens: int = 0
    work: float = 1.0
    doubt: float = 0.0
    unsure: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """A worker, or a machine that could be rented, and when its slots are free.

    `free_s` are seconds from now, one for each slot; of a machine to be rented, from its start.
    """

    worker: Worker
    name: str
    free_s: tuple[float, ...]
    startup_s: float = 0.0
    is_offer: bool = False


@dataclass(frozen=True, slots=True)
class StepForecast:
    """What a step should take.

    Attributes:
        seconds: of workers, loading and fetching included.
        sigma: standard deviation of `seconds`, `usd` and `joules`, relative to them.
        start_s, end_s: from now.
        where: batches by place.
        why_not: places that cannot run it, by reason; counted.
        impossible: no place can, or it waits for a step that none can run.
    """

    name: str
    batches: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    joules: float = 0.0
    sigma: float = 0.0
    start_s: float = 0.0
    end_s: float = 0.0
    where: Mapping[str, int] = field(default_factory=dict)
    why_not: Mapping[str, int] = field(default_factory=dict)
    impossible: bool = False


@dataclass(slots=True)
class _Alike:
    """Places where a step's batches take equal times and cost the same; slots by when free."""

    worker: Worker
    wait_s: float
    sigma: float
    sizes: NDArray[np.float64]
    #: One batch of each size in such a place, but for the time until a slot is free.
    batch: Option
    slots: list[tuple[float, int, int]] = field(default_factory=list)

    def best(self, ready_s: float, left: int, tasks: float, weights: Weights) -> tuple[float, int]:
        """The USD per second of the best size, and its place among the sizes.

        The size is that which the policy would take. Among places, an engine is loaded for all of
        the `tasks` that may follow, not for the first batch alone.
        """
        # The first size that takes all that is left is the last that makes sense.
        sizes = self.sizes[: int(np.searchsorted(self.sizes, left)) + 1]
        rates = rate(score(self.batch, weights), weights.floor_s)
        too_long = np.asarray(self.batch.exec_s) > weights.batch_s
        too_long[0] = False  # a task that takes longer alone
        at = _size(sizes, np.where(too_long, -inf, rates)[: len(sizes)], left, self._idle(ready_s))
        wait_s = max(0.0, self.slots[0][0] - ready_s) + self.wait_s
        follow = np.maximum(1.0, tasks / self.sizes)
        load_s, fetch_s = self.batch.load_s / follow, self.batch.fetch_s / follow
        batch = replace(self.batch, wait_s=wait_s, load_s=load_s, fetch_s=fetch_s)
        return float(rate(score(batch, weights), weights.floor_s)[at]), at

    def _idle(self, ready_s: float) -> int:
        """Slots that are free by then; at least the one that is chosen."""
        return max(1, sum(free_s <= ready_s for free_s, _, _ in self.slots))

    def cold_s(self) -> float:
        return float(self.batch.load_s + self.batch.fetch_s)

    def exec_s(self, at: int) -> float:
        return float(np.asarray(self.batch.exec_s)[at])

    def joules(self, at: int) -> float:
        return float(np.asarray(self.batch.joules)[at])


class Layout:
    """Places as they fill up."""

    def __init__(
        self, state: State, places: Sequence[Place], weights: Weights, batches: int
    ) -> None:
        self._state = state
        self._places = places
        self._weights = weights
        self._batches = max(16, batches)
        self._free_s = [list(place.free_s) for place in places]
        self._warm: list[dict[str, None]] = [dict.fromkeys(one.worker.warm) for one in places]
        self._holds = [dict.fromkeys(one.worker.holds) for one in places]
        self._started: dict[int, None] = {}

    def startup_usd(self) -> float:
        used = (self._places[number] for number in self._started)
        return sum(one.startup_s * one.worker.usd_per_hour / 3600 for one in used)

    def place(self, step: Ahead, ready_s: float) -> StepForecast:
        """Lay out all batches of a step."""
        reasons: dict[str, int] = {}
        open_to = []
        for number, place in enumerate(self._places):
            if words := _why_not(place.worker, step):
                reasons[words] = reasons.get(words, 0) + 1
            else:
                open_to.append(number)
        if not open_to:
            return StepForecast(step.name, start_s=ready_s, why_not=reasons, impossible=True)
        return self._filled(step, ready_s, open_to, reasons)

    def _filled(
        self, step: Ahead, ready_s: float, open_to: list[int], reasons: dict[str, int]
    ) -> StepForecast:
        groups = self._groups(step, open_to)
        left, batches, end_s = step.tasks, 0, ready_s
        seconds = usd = joules = deviation = 0.0
        where: dict[str, int] = {}
        lot = max(1, -(-step.tasks // (step.max_batch * self._batches)))
        begun_s = inf
        while left:
            alike, at = self._best(groups, ready_s, left)
            free_s, number, slot = heapq.heappop(alike.slots)
            size = min(int(alike.sizes[at]), left)
            count = min(lot, max(1, left // size))
            taken_s = alike.cold_s() + alike.exec_s(at) * count
            start_s = max(free_s, ready_s) + alike.wait_s
            left -= size * count
            batches += count
            seconds += taken_s
            usd += taken_s * alike.worker.usd_per_hour / 3600
            joules += alike.joules(at) * count
            deviation += taken_s * alike.sigma
            place = self._places[number]
            where[place.name] = where.get(place.name, 0) + count
            begun_s, end_s = min(begun_s, start_s), max(end_s, start_s + taken_s)
            self._take(step, groups, (number, slot), start_s + taken_s)
        spread = self._output_spread(step)
        sigma = sqrt((deviation / seconds) ** 2 + spread**2 + step.doubt**2) if seconds else 0.0
        took = (batches, seconds, usd, joules, sigma)
        return StepForecast(step.name, *took, begun_s, end_s, where, reasons)

    def _best(
        self, groups: dict[tuple[object, ...], _Alike], ready_s: float, left: int
    ) -> tuple[_Alike, int]:
        """The places and size of the highest rate; of equal ones the first."""
        best: tuple[_Alike, int] | None = None
        highest = -inf
        slots = sum(len(alike.slots) for alike in groups.values())
        for alike in groups.values():
            if not alike.slots:
                continue
            found, at = alike.best(ready_s, left, left / slots, self._weights)
            if best is None or found > highest:
                best, highest = (alike, at), found
        assert best is not None, "a step is placed where there are slots"
        return best

    def _take(
        self,
        step: Ahead,
        groups: dict[tuple[object, ...], _Alike],
        slot: tuple[int, int],
        until_s: float,
    ) -> None:
        """A slot is taken until then; its place is warm from now on, and has been started."""
        number, which = slot
        self._free_s[number][which] = until_s
        self._started |= {number: None} if self._places[number].is_offer else {}
        if step.batch_key not in self._warm[number]:
            self._warm[number][step.batch_key] = None
            self._holds[number] |= dict.fromkeys(tree.digest for tree in step.demand.trees)
            for alike in groups.values():
                if any(one[1] == number for one in alike.slots):
                    alike.slots = [one for one in alike.slots if one[1] != number]
                    heapq.heapify(alike.slots)
            for each in range(len(self._free_s[number])):
                self._file(step, groups, number, each)
        else:
            self._file(step, groups, number, which)

    def _groups(self, step: Ahead, open_to: list[int]) -> dict[tuple[object, ...], _Alike]:
        groups: dict[tuple[object, ...], _Alike] = {}
        for number in open_to:
            for slot in range(len(self._free_s[number])):
                self._file(step, groups, number, slot)
        return groups

    def _file(
        self, step: Ahead, groups: dict[tuple[object, ...], _Alike], number: int, slot: int
    ) -> None:
        place, held = self._places[number], self._holds[number]
        worker = place.worker
        missing = sum(tree.size_bytes for tree in step.demand.trees if tree.digest not in held)
        wait_s = place.startup_s if number not in self._started else 0.0
        is_warm = step.batch_key in self._warm[number]
        price = (worker.usd_per_hour, worker.interruptions_per_hour)
        key = (worker.device, *price, is_warm, missing, wait_s)
        if key not in groups:
            groups[key] = self._alike(step, worker, (is_warm, missing, wait_s))
        heapq.heappush(groups[key].slots, (self._free_s[number][slot], number, slot))

    def _alike(self, step: Ahead, worker: Worker, cold: tuple[bool, int, float]) -> _Alike:
        is_warm, missing, wait_s = cold
        state, device = self._state, worker.device
        load_s = 0.0 if is_warm else estimate.load_s(state, step.demand, device)
        fetch_s = estimate.fetch_s(state, missing, device, worker.place)
        known = estimate.coefficients(state, step.batch_key, device)
        sizes = _sizes(step)
        exec_s = np.asarray(known.exec_s(_amounts(state, step, device, sizes)))
        batch = Option(
            reference_usd=self._reference_usd(step) * sizes,
            usd_per_hour=worker.usd_per_hour / worker.slots,
            load_s=load_s,
            fetch_s=fetch_s,
            exec_s=exec_s,
            joules=estimate.joules(device, known, exec_s, load_s + fetch_s),
            interruptions_per_hour=worker.interruptions_per_hour,
            redo_s=load_s + fetch_s + exec_s,
        )
        return _Alike(worker, wait_s, known.sigma, sizes, batch)

    def _reference_usd(self, step: Ahead) -> float:
        """Of one task in a full batch, on the cheapest place that fits."""
        size = np.asarray([float(step.max_batch)])
        cheapest = inf
        seen: dict[tuple[Device, float], None] = {}
        for place in self._places:
            worker = place.worker
            if (worker.device, worker.usd_per_hour) in seen or _why_not(worker, step):
                continue
            seen[worker.device, worker.usd_per_hour] = None
            known = estimate.coefficients(self._state, step.batch_key, worker.device)
            amounts = _amounts(self._state, step, worker.device, size)
            exec_s = float(np.asarray(known.exec_s(amounts))[0])
            price = max(worker.usd_per_hour, self._weights.floor_usd_per_hour)
            cheapest = min(cheapest, exec_s * price / 3600 / step.max_batch)
        return cheapest

    def _output_spread(self, step: Ahead) -> float:
        """Relative deviation of the output tokens of all tasks, where outputs count at all."""
        if not step.output_tokens:
            return 0.0
        limit, key = step.output_tokens, step.batch_key
        mean = estimate.expected_output(self._state, key, limit)
        longest = float(estimate.longest_output(self._state, key, limit, 2))
        # Of two draws, the expected maximum is 0.56 deviations above the mean.
        return (longest - mean) / 0.564 / max(mean, 1e-9) / sqrt(step.tasks)


def _why_not(worker: Worker, step: Ahead) -> str:
    return needs.why_not(worker, step, step.demand, step.prompt_tokens + step.output_tokens)


def _size(sizes: NDArray[np.float64], rates: NDArray[np.float64], left: int, idle: int) -> int:
    """The place of the size that the policy takes, see `table.Table.score`.

    Where slots would be idle beside it, several small batches count; a loss is shared by the
    tasks. Of sizes that are about as good, the smallest.
    """
    several = np.minimum(idle, np.ceil(left / sizes))
    compared = np.where(rates > 0, rates * several, rates / sizes)
    best = compared.max()
    return int((compared >= best - NEAR * abs(best)).argmax())


def _sizes(step: Ahead) -> NDArray[np.float64]:
    """1, 2, 4 ... and the largest batch."""
    powers = [2**n for n in range(step.max_batch.bit_length()) if 2**n < step.max_batch]
    return np.asarray([*powers, step.max_batch], dtype=float)


def _amounts(state: State, step: Ahead, device: Device, sizes: NDArray[np.float64]) -> Amounts:
    if not step.demand.flops_per_token:
        return Amounts(work=step.work * sizes)
    key, limit = step.batch_key, step.output_tokens
    shared = step.prefix_tokens * (sizes - 1) if step.demand.shares_prefixes else 0.0
    prompts = step.prompt_tokens * sizes - shared
    if not limit:
        return Amounts(prompt_tokens=prompts)
    each = estimate.expected_output(state, key, limit)
    at_once = estimate.concurrency(step.demand, device, step.prompt_tokens + each)
    outputs = each * sizes
    longest = np.asarray(estimate.longest_output(state, key, limit, sizes))
    return Amounts(prompts, estimate.decode_steps(longest, outputs, at_once, sizes), outputs)
