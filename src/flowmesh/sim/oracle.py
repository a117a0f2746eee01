"""What no schedule can undercut: a clairvoyant lower bound in USD, and apart from it in joules.

Every distinct row is paid for once, on the kind of machine where it is cheapest, at the price
that is lowest over time, as a part of the fullest batch that could ever hold it; every engine is
loaded once, and one machine starts once. `docs/oracle.md` derives each term and says why it is a
bound. Noise is left out: the bound is on times without it, which noise does not shorten in the
mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flowmesh.sim import engines
from flowmesh.sim.devices import CPU_CORES, Machine
from flowmesh.sim.engines import Engine, Truth

FloatArray = NDArray[np.float64]

#: Weights of the limit by number, against that by memory, that are tried for the rows at a time.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Offered:
    """A kind of machine that was there: its lowest price over time, for one of its slots.

    Attributes:
        usd_per_hour: of the whole machine.
        slots: batches that it runs at one time, each as fast as alone.
        startup_s: the least that it takes from launch until it works; 0 of a fixed machine.
        fetch_bytes_per_s: the most.
    """

    machine: Machine
    usd_per_hour: float
    slots: int = 1
    startup_s: float = 0.0
    load_bytes_per_s: float = 2e9
    fetch_bytes_per_s: float = 1.25e9

    @property
    def usd_per_s(self) -> float:
        return self.usd_per_hour / 3600 / self.slots


@dataclass(frozen=True, slots=True)
class Work:
    """All distinct rows of one engine.

    Attributes:
        prompt, output: tokens of each row; of training, tokens trained on and none.
        prefix: index of the shared beginning of each row, -1 for none.
        prefix_tokens: of each row, how long that beginning is.
        work: units of each row of a tool.
        max_batch: most rows of one lease.
        fetch_bytes: files that a machine needs before it can load the engine.
        shares_prefixes: its engine reads a shared beginning once a batch.
    """

    engine: Engine
    prompt: FloatArray
    output: FloatArray
    prefix: NDArray[np.int64]
    prefix_tokens: FloatArray
    work: FloatArray | float = 0.0
    max_batch: int = 512
    fetch_bytes: int = 0
    shares_prefixes: bool = True

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, slots=True)
class Bound:
    """In USD and joules; the two need not be reached by one schedule.

    Attributes:
        usd, joules: the bounds.
        exec_usd, load_usd, startup_usd: the parts of `usd`.
        by_engine: USD of execution, by operator and model.
    """

    usd: float
    joules: float
    exec_usd: float
    load_usd: float
    startup_usd: float
    by_engine: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the rows of an engine cost at least on one kind of machine, in one unit.

    Attributes:
        rows: of each row, at least 0; adds up over any batches.
        prefix: a token of a shared beginning, which is read once.
    """

    rows: FloatArray
    prefix: float = 0.0

    def times(self, rate: float) -> "Cost":
        return Cost(rate * self.rows, rate * self.prefix)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.rows + other.rows, self.prefix + other.prefix)


@dataclass(frozen=True, slots=True)
class Least:
    """What an engine's rows take at least on one kind of machine, whatever the batches."""

    seconds: Cost
    joules: Cost


def total(costs: Sequence[Cost]) -> float:
    """What all rows cost at least, shared beginnings apart, each on one of several machines."""
    return float(np.min([one.rows for one in costs], axis=0).sum())


def bound(works: Sequence[Work], offered: Sequence[Offered], truth: Truth) -> Bound:
    """The bound for all rows of all engines. Raises ValueError if a row fits no machine."""
    by_engine: dict[str, float] = {}
    load_usd = joules = 0.0
    used: list[Offered] = []
    for work in works:
        if not len(work):
            continue
        fitting = [(one, least(work, one, truth)) for one in offered if _fits(work, one, truth)]
        if not fitting:
            raise ValueError(f"{work.engine.operator} fits no machine")
        used += [one for one, _ in fitting if one not in used]
        tokens = _prefix_once(work)
        in_usd = [took.seconds.times(one.usd_per_s) for one, took in fitting]
        in_j = [took.joules for _, took in fitting]
        name = work.engine.operator + (f"/{work.engine.model.name}" if work.engine.model else "")
        usd = total(in_usd) + tokens * min(one.prefix for one in in_usd)
        by_engine[name] = by_engine.get(name, 0.0) + usd
        load_usd += min(one.usd_per_s * _load_s(work, one, truth) for one, _ in fitting)
        joules += total(in_j) + tokens * min(one.prefix for one in in_j)
        joules += min(one.machine.idle_w * _load_s(work, one, truth) for one, _ in fitting)
    startup_usd = min((one.usd_per_hour / 3600 * one.startup_s for one in used), default=0.0)
    joules += min((one.machine.idle_w * one.startup_s for one in used), default=0.0)
    exec_usd = sum(by_engine.values())
    usd = exec_usd + load_usd + startup_usd
    return Bound(usd, joules, exec_usd, load_usd, startup_usd, by_engine)


def _fits(work: Work, offered: Offered, truth: Truth) -> bool:
    """By the smallest row: one that a large row does not fit is bounded too, only less well."""
    tokens = float((work.prompt + work.output).min())
    return truth.fits(work.engine, offered.machine, tokens)


def _load_s(work: Work, offered: Offered, truth: Truth) -> float:
    load_s = truth.load_s(work.engine, offered.machine, offered.load_bytes_per_s)
    return load_s + work.fetch_bytes / offered.fetch_bytes_per_s


def _prefix_once(work: Work) -> float:
    """Tokens of distinct shared beginnings; of each the shortest that is told."""
    if not work.shares_prefixes:
        return 0.0
    shortest: dict[int, float] = {}
    for index, tokens in zip(work.prefix.tolist(), work.prefix_tokens.tolist(), strict=True):
        if index >= 0:
            shortest[index] = min(tokens, shortest.get(index, tokens))
    return sum(shortest.values())


def _unshared(work: Work) -> FloatArray:
    """Prompt tokens of each row that no other row could have saved it."""
    if not work.shares_prefixes:
        return work.prompt
    return work.prompt - np.where(work.prefix >= 0, work.prefix_tokens, 0.0)


def least(work: Work, offered: Offered, truth: Truth) -> Least:
    """What each row takes at least on a machine of this kind, whatever batch it is in."""
    spec = truth.spec(offered.machine)
    if spec is not None:
        return _by_coefficients(work, offered, truth)
    if work.engine.kind == "generate":
        return _generate(work, offered, truth)
    if work.engine.kind == "train":
        return _train(work, offered, truth)
    return _tool(work, offered)


def _generate(work: Work, offered: Offered, truth: Truth) -> Least:
    model, machine = work.engine.model, offered.machine
    assert model is not None, work
    flops, bandwidth = truth.speeds(machine)
    read, output = _unshared(work), work.output
    a_token = 2 * model.parameters / flops
    attention = 2 * model.layers * model.query_size * work.prompt**2
    share = float((read / np.maximum(work.prompt, 1.0)).min())
    prefill_s = read * a_token + share * attention / flops
    cache_s = model.cache_bytes_per_token / (bandwidth * engines.CACHE_SHARE)
    looking = Cost(output * (engines.ROW_STEP_S + cache_s * (work.prompt + output / 2)))
    step_s = engines.STEP_S + (engines.EXCHANGE_S * 2 * model.layers if machine.gpus > 1 else 0)
    each = Step(model.weights_bytes / bandwidth, a_token, step_s)
    idle_w, above_w = machine.idle_w / offered.slots, machine.busy_w - machine.idle_w
    batch_s = engines.BATCH_S["generate"] / work.max_batch
    decode, decode_j = _decode(work, each, _most_rows(work, machine), (idle_w, above_w))
    low_w = idle_w + engines.DECODE_POWER * above_w
    prefill_w = idle_w + engines.PREFILL_POWER * above_w
    begun = Cost(batch_s + prefill_s, a_token)
    begun_j = Cost(batch_s * idle_w + prefill_s * prefill_w, a_token * prefill_w)
    return Least(begun + decode + looking, begun_j + decode_j + looking.times(low_w))


@dataclass(frozen=True, slots=True)
class Step:
    """Of a decode step: seconds to read the weights, for the arithmetic of a row, and besides."""

    reading_s: float
    row_s: float
    fixed_s: float


@dataclass(frozen=True, slots=True)
class Room:
    """Rows at one time: never above `most`, nor above `tokens` over the mean of theirs."""

    most: int
    tokens: float


def _most_rows(work: Work, machine: Machine) -> Room:
    model = work.engine.model
    assert model is not None, work
    memory = machine.gpus * machine.gpu.memory_bytes * engines.MEMORY_SHARE
    tokens = (memory - work.engine.resident_bytes) / model.cache_bytes_per_token
    most = min(engines.SEQUENCES_LIMIT, work.max_batch, len(work))
    return Room(most, tokens)


def _decode(work: Work, step: Step, room: Room, watts: tuple[float, float]) -> tuple[Cost, Cost]:
    """Seconds and joules of the decode steps, without looking back on the context."""
    idle_w, above_w = watts
    low_w = idle_w + engines.DECODE_POWER * above_w
    output, all_output = work.output, float(work.output.sum())
    tokens = np.minimum(work.prompt + output, room.tokens)
    mean = float((output * tokens).sum()) / max(1.0, all_output)
    counted_j = Cost(least_joules(step, room.most, watts) * output)
    seconds = [
        Cost(output * _token_s(step, share / room.most, (1 - share) * tokens / room.tokens, at))
        for share in SHARES
        for at in [share / room.most + (1 - share) * mean / room.tokens]
    ]
    best = max(seconds, key=lambda one: total([one]))
    return best, max(counted_j, best.times(low_w), key=lambda one: total([one]))


def _token_s(step: Step, by_count: float, by_memory: FloatArray, at: float) -> FloatArray:
    """Of a token's step whose part is the sum of two: the tangent at `at`, below what it takes."""
    least_s = float(np.hypot(step.reading_s * at, step.row_s))
    slope = step.reading_s**2 * at / least_s + step.fixed_s
    found: FloatArray = step.row_s**2 / least_s + slope * (by_count + by_memory)
    return found


def least_joules(step: Step, most: int, watts: tuple[float, float]) -> float:
    """Of one generated token, over all mean numbers of rows at one time, from 1 to `most`.

    Between two whole numbers the time is taken of the upper and the power of the lower one.
    """
    idle_w, above_w = watts
    rows = np.arange(1, most + 1, dtype=np.float64)
    seconds = np.hypot(step.reading_s / rows, step.row_s) + step.fixed_s / rows
    fill = np.minimum(1.0, 4 * rows / engines.SEQUENCES_LIMIT)
    share = engines.DECODE_POWER + (engines.DECODE_POWER_FULL - engines.DECODE_POWER) * fill
    power = idle_w + share * above_w
    return float(min((seconds[1:] * power[:-1]).min(initial=np.inf), seconds[-1] * power[-1]))


def _train(work: Work, offered: Offered, truth: Truth) -> Least:
    model, machine = work.engine.model, offered.machine
    assert model is not None, work
    flops, _ = truth.speeds(machine)
    each = work.engine.flops_per_parameter * model.parameters / (flops * engines.TRAINING_SHARE)
    seconds = work.prompt * each + engines.BATCH_S["train"] / work.max_batch
    above_w = engines.TRAINING_POWER * (machine.busy_w - machine.idle_w)
    watts = machine.idle_w / offered.slots + above_w
    return Least(Cost(seconds), Cost(seconds * watts))


def _tool(work: Work, offered: Offered) -> Least:
    machine = offered.machine
    a_row = work.work / CPU_CORES + engines.BATCH_S["tool"] / work.max_batch
    seconds = np.zeros(len(work)) + a_row
    above_w = (machine.busy_w - machine.idle_w) if machine.is_cpu else engines.TOOL_W
    watts = machine.idle_w / offered.slots + engines.TOOL_POWER * above_w
    return Least(Cost(seconds), Cost(seconds * watts))


def _by_coefficients(work: Work, offered: Offered, truth: Truth) -> Least:
    machine, engine = offered.machine, work.engine
    spec = truth.spec(machine)
    assert spec is not None, machine

    def of(name: str) -> float:
        return truth.coefficient(machine, engine, name)

    rows = min(spec.concurrency or work.max_batch, work.max_batch, len(work))
    seconds = of("prompt_s") * _unshared(work) + work.work * of("work_s")
    seconds = seconds + work.output * (of("output_s") + of("step_s") / rows)
    seconds = seconds + of("fixed_s") / work.max_batch
    watts = spec.idle_w / offered.slots + (spec.busy_w - spec.idle_w)
    prefix_s = of("prompt_s")
    return Least(Cost(seconds, prefix_s), Cost(seconds * watts, prefix_s * watts))
