"""The truth about times: what a batch takes on a machine, row by row, and what it draws.

The control plane's estimates know nothing of this module, nor this module of them: they have
other formulas, other constants, and here is noise. An engine prefills, then decodes with
continuous batching: at most as many rows at once as its memory holds; a row that ends makes
room for the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapreplace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flowmesh.sim.devices import CPU_CORES, Machine, Model
from flowmesh.sim.profiles import Efficiency, together

if TYPE_CHECKING:
    from flowmesh.sim.scenario import DeviceSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Most rows that an engine decodes at once, whatever its memory (vLLM's default on an H100).
SEQUENCES_LIMIT = 512
#: Share of the memory that an engine takes; the rest is activations and fragments.
MEMORY_SHARE = 0.9
#: Of one decode step: launching kernels and sampling; of each row in it, and of each layer's
#: exchange between GPUs.
STEP_S, ROW_STEP_S, EXCHANGE_S = 2.5e-3, 12e-6, 25e-6
#: Of the bandwidth that reading weights reaches, attention reaches this share too.
CACHE_SHARE = 1.0
#: Share of prefill's arithmetic that training reaches: optimiser, exchange, padding.
TRAINING_SHARE = 0.62
#: An engine starts (kernels, graphs, memory), beside reading its weights.
START_S = {"generate": 18.0, "train": 12.0, "tool": 0.0}
#: Of a batch: request handling, tokenising.
BATCH_S = {"generate": 0.05, "train": 8.0, "tool": 0.02}
#: Power above idle, as a share of what there is up to the limit, by what the engine does:
#: Splitwise's A100 rows (prefill at the limit, decoding at 0.59-0.79 of it by batch size).
PREFILL_POWER, DECODE_POWER, DECODE_POWER_FULL = 1.0, 0.52, 0.78
TRAINING_POWER, LOAD_POWER, TOOL_POWER = 0.9, 0.15, 0.8
#: Of a tool on the host of a GPU machine: what its processors draw above idle.
TOOL_W = 80.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What a batch's rows are: prompt tokens (or tokens trained on), outputs, units of work.

    `saved` prompt tokens are shared prefixes that are computed once.
    """

    prompt: Ints
    output: Ints
    work: float = 0.0
    saved: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the tasks of one batch key: its kind, and its model if it has one.

    Attributes:
        kind: as of a step's template.
        flops_per_parameter: of a token trained on.
        resident_bytes: of weights, and for training of optimiser state and activations.
    """

    kind: str
    operator: str
    model: Model | None = None
    flops_per_parameter: float = 2.0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Took:
    """A batch, carried out.

    `ends_s[i]` is when row i ends, after the batch's start; `busy_j` is beyond idle power.
    """

    exec_s: float
    ends_s: Floats
    decode_steps: int
    busy_j: float


def concurrency(engine: Engine, machine: Machine, tokens_per_row: float) -> int:
    """Rows that an engine holds at once; 0 if not one fits."""
    if engine.model is None:
        return SEQUENCES_LIMIT
    if machine.is_cpu:
        return 0  # its worker has no runtime for models
    room = machine.gpus * machine.gpu.memory_bytes * MEMORY_SHARE - engine.resident_bytes
    if room <= 0:
        return 0
    if engine.kind == "train":
        return 1
    rows = room / (engine.model.cache_bytes_per_token * max(1.0, tokens_per_row))
    return min(SEQUENCES_LIMIT, int(rows))


class Truth:
    """Times by machine and engine, from profiles or given coefficients, without noise.

    `specs`: devices that a scenario describes by coefficients, by kind of machine.
    """

    def __init__(
        self, efficiency: Mapping[str, Efficiency], specs: Mapping[str, "DeviceSpec"]
    ) -> None:
        self._efficiency = efficiency
        self._specs = specs

    def spec(self, machine: Machine) -> "DeviceSpec | None":
        """Of a machine that a scenario describes by coefficients."""
        return self._specs.get(machine.kind)

    def load_s(self, engine: Engine, machine: Machine, load_bytes_per_s: float) -> float:
        """Of a cold engine whose files are on the machine's disk."""
        if machine.kind in self._specs:
            return self.coefficient(machine, engine, "load_s")
        if engine.model is None:
            return START_S[engine.kind]
        return START_S[engine.kind] + engine.model.weights_bytes / load_bytes_per_s

    def fits(self, engine: Engine, machine: Machine, tokens_per_row: float) -> bool:
        return machine.kind in self._specs or concurrency(engine, machine, tokens_per_row) > 0

    def batch(self, engine: Engine, machine: Machine, rows: Rows) -> Took:
        """What rows take together. They fit, see `fits`."""
        if machine.kind in self._specs:
            return self._by_coefficients(engine, machine, rows)
        if engine.kind == "generate":
            return self._generate(engine, machine, rows)
        if engine.kind == "train":
            return self._train(engine, machine, rows)
        return self._tool(machine, rows)

    def speeds(self, machine: Machine) -> tuple[float, float]:
        """FLOP/s and bytes/s that the whole machine reaches."""
        gpu, reached = machine.gpu, self._efficiency[machine.gpu.name]
        compute, memory = together(machine.gpus, gpu.nvlink)
        return (
            machine.gpus * gpu.flops_per_s * reached.compute * compute,
            machine.gpus * gpu.bandwidth_bytes_per_s * reached.memory * memory,
        )

    def _generate(self, engine: Engine, machine: Machine, rows: Rows) -> Took:
        model = engine.model
        assert model is not None, engine
        flops, bandwidth = self.speeds(machine)
        prompt, count = int(rows.prompt.sum()), len(rows.prompt)
        # A row looks back on its context, and takes up memory, in each of its own steps.
        steps = rows.output if rows.output.any() else np.ones(count)
        context = float(np.average(rows.prompt + rows.output / 2, weights=steps))
        tokens = float(np.average(rows.prompt + rows.output, weights=steps))
        room = max(1, concurrency(engine, machine, tokens))
        ends, order = finishing_steps(rows.output, room)
        active = np.minimum(room, count - np.arange(count)).astype(np.float64)
        reading = model.weights_bytes / bandwidth
        a_token = 2 * model.parameters / flops
        cache_s = context * model.cache_bytes_per_token / (bandwidth * CACHE_SHARE)
        step_s = np.hypot(reading, active * a_token) + active * (cache_s + ROW_STEP_S)
        step_s += STEP_S + (EXCHANGE_S * 2 * model.layers if machine.gpus > 1 else 0.0)
        spans = np.diff(ends, prepend=0)
        decode_s = np.cumsum(spans * step_s)
        read = max(0, prompt - rows.saved)
        attention = 2 * model.layers * model.query_size * float((rows.prompt**2).sum())
        attention *= read / max(1, prompt)
        prefill_s = float(np.hypot(read * a_token + attention / flops, reading))
        admitted = np.minimum(count, room + np.arange(count)) / count
        ends_s = np.empty(count)
        ends_s[order] = BATCH_S["generate"] + prefill_s * admitted + decode_s
        total_s = BATCH_S["generate"] + prefill_s + float(decode_s[-1])
        fill = float((active * spans).sum()) / max(1.0, float(spans.sum())) / SEQUENCES_LIMIT
        share = DECODE_POWER + (DECODE_POWER_FULL - DECODE_POWER) * min(1.0, 4 * fill)
        watts = machine.busy_w - machine.idle_w
        joules = watts * (prefill_s * PREFILL_POWER + float(decode_s[-1]) * share)
        return Took(total_s, ends_s, int(ends[-1]), joules)

    def _train(self, engine: Engine, machine: Machine, rows: Rows) -> Took:
        model = engine.model
        assert model is not None, engine
        flops, _ = self.speeds(machine)
        work = rows.prompt * (engine.flops_per_parameter * model.parameters)
        seconds = work / (flops * TRAINING_SHARE)
        ends = BATCH_S["train"] + np.cumsum(seconds)
        joules = float(ends[-1]) * TRAINING_POWER * (machine.busy_w - machine.idle_w)
        return Took(float(ends[-1]), ends, 0, joules)

    def _tool(self, machine: Machine, rows: Rows) -> Took:
        """Rows on all cores of a host; one that stands beside GPUs has as many."""
        seconds = BATCH_S["tool"] + rows.work / CPU_CORES
        ends = np.linspace(0, seconds, len(rows.prompt) + 1)[1:]
        above = (machine.busy_w - machine.idle_w) if machine.is_cpu else TOOL_W
        return Took(seconds, ends, 0, seconds * TOOL_POWER * above)

    def coefficient(self, machine: Machine, engine: Engine, name: str) -> float:
        spec = self._specs[machine.kind]
        for key in (_full(engine), engine.operator, engine.kind):
            if key in spec.by and name in spec.by[key]:
                return spec.by[key][name]
        return float(getattr(spec, name))

    def _by_coefficients(self, engine: Engine, machine: Machine, rows: Rows) -> Took:
        def of(name: str) -> float:
            return self.coefficient(machine, engine, name)

        count = len(rows.prompt)
        room = self._specs[machine.kind].concurrency or count
        ends, order = finishing_steps(rows.output, room)
        shares = np.cumsum(np.full(count, 1 / count))
        prompt = max(0, int(rows.prompt.sum()) - rows.saved)
        each_s = prompt * of("prompt_s") + rows.work * of("work_s")
        each_s += int(rows.output.sum()) * of("output_s")
        ends_s = np.empty(count)
        ends_s[order] = of("fixed_s") + each_s * shares + ends * of("step_s")
        spec = self._specs[machine.kind]
        total_s = float(ends_s.max())
        return Took(total_s, ends_s, int(ends[-1]), total_s * (spec.busy_w - spec.idle_w))


def _full(engine: Engine) -> str:
    return f"{engine.operator}:{engine.model.name}" if engine.model else engine.operator


def finishing_steps(output: Ints, room: int) -> tuple[Floats, Ints]:
    """The decode step at which each row ends, sorted, and the rows in that order.

    Rows start in their order, `room` at once; each that ends makes room for the next.
    """
    if len(output) <= room:
        order = np.argsort(output, kind="stable")
        return output[order].astype(np.float64), order
    running = sorted(output[:room].tolist())
    ends = output.astype(np.float64)
    for row, tokens in enumerate(output[room:].tolist(), room):
        ends[row] = running[0] + tokens
        heapreplace(running, ends[row])
    order = np.argsort(ends, kind="stable")
    return ends[order], order
