"""What devices reach of their data sheets: two numbers each, fitted to measured profiles.

The time of the layers for n tokens at once is `hypot(reading the weights, the arithmetic)`:
reading at `memory` times the data sheet's bandwidth, arithmetic at `compute` times its FLOP/s.
Over 19,925 measured points (7 models, 1-8 GPUs, A100, H100, A40) that is off by 4 % in the
median (`tests/unit/test_sim_profiles.py` holds it to the files).

Sources: Vidur (MIT), sum of a layer's operators without attention, for A100-80, H100, A40;
Helix (Apache-2.0), per layer, for A100-40, V100, L4, T4. All others are extrapolated from the
nearest of those, and say so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from flowmesh.base.errors import Problem, SpecError
from flowmesh.sim import data
from flowmesh.sim.devices import GPUS

#: Tokens at once from which arithmetic rules, and up to which reading does.
MANY, FEW = 1024, 16


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the data sheet; `source` says whence, `measured` whether on that very GPU."""

    compute: float
    memory: float
    source: str
    measured: bool = True


_VIDUR, _HELIX = "Vidur profiles", "Helix profiles"
EFFICIENCY: dict[str, Efficiency] = {
    "A100-80": Efficiency(0.681, 0.727, _VIDUR),
    "H100": Efficiency(0.625, 0.808, _VIDUR),
    "A40": Efficiency(0.724, 0.770, _VIDUR),
    "A100-40": Efficiency(0.779, 0.749, _HELIX),
    "V100": Efficiency(0.707, 0.696, _HELIX),
    "L4": Efficiency(0.415, 0.792, _HELIX),
    "T4": Efficiency(0.403, 0.690, _HELIX),
    "H200": Efficiency(0.625, 0.808, "as H100", measured=False),
    "L40S": Efficiency(0.5, 0.770, "between A40 and L4", measured=False),
    "A10G": Efficiency(0.7, 0.770, "as A40", measured=False),
    "RTX4090": Efficiency(0.6, 0.780, "between A40 and L4", measured=False),
    "RTX3090": Efficiency(0.7, 0.770, "as A40", measured=False),
    "cpu": Efficiency(0.5, 0.6, "a guess", measured=False),
}

#: What is left of (compute, memory) where several GPUs share each layer: medians of Vidur's
#: A100 for NVLink, of Helix' L4 and T4 for PCIe.
TOGETHER = {
    True: {1: (1.0, 1.0), 2: (0.98, 0.96), 4: (0.94, 0.85), 8: (0.85, 0.73)},
    False: {1: (1.0, 1.0), 2: (0.73, 0.92), 4: (0.52, 0.81), 8: (0.35, 0.65)},
}


def together(gpus: int, nvlink: bool) -> tuple[float, float]:
    """What is left of compute and memory; of counts that were not measured, the next higher."""
    table = TOGETHER[nvlink]
    return table[next((count for count in table if count >= gpus), 8)]


#: Parameters of one layer, attention and MLP, of the models in Vidur's file.
LAYER_PARAMETERS = {
    "Qwen/Qwen-72B": 872_415_232,
    "codellama/CodeLlama-34b-Instruct-hf": 692_060_160,
    "internlm/internlm-20b": 317_194_240,
    "meta-llama/Llama-2-70b-hf": 855_638_016,
    "meta-llama/Llama-2-7b-hf": 202_375_168,
    "meta-llama/Meta-Llama-3-70B": 855_638_016,
    "meta-llama/Meta-Llama-3-8B": 218_103_808,
}
NAMES = {"a100": "A100-80", "h100": "H100", "a40": "A40"}


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: `seconds` of one layer of `parameters` for `tokens` at once."""

    gpu: str
    gpus: int
    parameters: float
    tokens: int
    seconds: float


def points(path: Path) -> list[Point]:
    """A profile in Vidur's columns: gpu, model, tensor_parallel, num_tokens, milliseconds.

    A column `layer_parameters` tells of models that are not known here. Raises SpecError.
    """
    found: list[Point] = []
    for number, row in enumerate(data.rows(path), 2):
        parameters = row.get("layer_parameters") or LAYER_PARAMETERS.get(row.get("model", ""))
        if parameters is None:
            continue
        try:
            ms = float(row.get("ms") or row["linear_ops_ms_per_layer_median_sum"])
            gpus, tokens = int(row["tensor_parallel"]), int(row["num_tokens"])
            gpu, size = NAMES.get(row["gpu"], row["gpu"]), float(parameters)
        except KeyError as error:
            raise SpecError(Problem(f"a profile lacks {error}", str(path), number)) from None
        except (ValueError, TypeError) as error:
            raise SpecError(Problem(f"bad measurement: {error}", str(path), number)) from None
        if ms > 0 and tokens > 0:
            found.append(Point(gpu, gpus, size, tokens, ms / 1000))
    if not found:
        raise SpecError(Problem("the profile has no usable row", str(path)))
    return found


def fitted(measured: Iterable[Point], source: str) -> dict[str, Efficiency]:
    """The two numbers of every GPU that was measured alone."""
    compute: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for one in measured:
        gpu = GPUS.get(one.gpu)
        if gpu is None or one.gpus != 1:
            continue
        if one.tokens >= MANY:
            flops = 2 * one.parameters * one.tokens / one.seconds
            compute.setdefault(one.gpu, []).append(flops / gpu.flops_per_s)
        elif one.tokens <= FEW:
            read = 2 * one.parameters / one.seconds
            memory.setdefault(one.gpu, []).append(read / gpu.bandwidth_bytes_per_s)
    return {
        name: Efficiency(median(compute[name]), median(memory[name]), source)
        for name in compute
        if name in memory
    }


def efficiencies(profiles: Path | None) -> Mapping[str, Efficiency]:
    """The table, with what a profile says in place of what is built in."""
    if profiles is None:
        return EFFICIENCY
    return EFFICIENCY | fitted(points(profiles), str(profiles.name))
