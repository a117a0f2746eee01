"""How far the roofline prior is from measured engines, and the constants that fit them best.

    python bench/roofline.py [--fit]        (reads the tables under $FLOWMESH_DATA)

Four public profiles are predicted by `core/roofline.py` as it is: Vidur's linear layers
(A100, H100, A40), Helix's layers (A100-40, V100, L4, T4), Splitwise's whole models (A100, H100,
two to eight GPUs), and TensorRT-LLM's published throughputs (A100 to H200). Printed for each is
the median of predicted over measured, and the median and the 90th percentile of the absolute
relative error. With `--fit`, the constants that make the mean error of the four least are
searched for, each profile counting alike.
"""

import argparse
import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmesh.core import roofline
from flowmesh.core.fleet import Device
from flowmesh.core.records import Demand
from flowmesh.core.roofline import Amounts

#: Profiles of single layers: without a step's overhead.
LAYERS = ("vidur", "helix", "helix, joined")
#: Constants of `roofline` that `--fit` searches for.
SEARCHED = ("PROMPT_SHARE", "OUTPUT_SHARE", "BANDWIDTH_SHARE", "STEP_S")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as its public configuration gives it; `heads` and `kv_heads` of attention."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    parameters: float
    gates: int = 3

    @property
    def layer_parameters(self) -> float:
        shared = self.kv_heads / self.heads
        return 2 * self.hidden**2 * (1 + shared) + self.gates * self.hidden * self.inner

    @property
    def cache_bytes_per_token(self) -> int:
        return int(2 * 2 * self.hidden * self.kv_heads / self.heads * self.layers)


SHAPES = {
    "Qwen/Qwen-72B": Shape(8192, 24576, 64, 64, 80, 72e9),
    "codellama/CodeLlama-34b-Instruct-hf": Shape(8192, 22016, 64, 8, 48, 34e9),
    "internlm/internlm-20b": Shape(5120, 13824, 40, 40, 60, 20e9),
    "meta-llama/Llama-2-70b-hf": Shape(8192, 28672, 64, 8, 80, 69e9),
    "meta-llama/Llama-2-7b-hf": Shape(4096, 11008, 32, 32, 32, 6.7e9),
    "meta-llama/Meta-Llama-3-70B": Shape(8192, 28672, 64, 8, 80, 70.6e9),
    "meta-llama/Meta-Llama-3-8B": Shape(4096, 14336, 32, 8, 32, 8.03e9),
    "microsoft/phi-2": Shape(2560, 10240, 32, 32, 32, 2.8e9, gates=2),
    "llama1_30b": Shape(6656, 17920, 52, 52, 60, 32.5e9),
    "llama2_70b": Shape(8192, 28672, 64, 8, 80, 69e9),
    "llama2-70b": Shape(8192, 28672, 64, 8, 80, 69e9),
    "bloom-176b": Shape(14336, 4 * 14336, 112, 112, 70, 176e9, gates=2),
    "GPT-J 6B": Shape(4096, 16384, 16, 16, 28, 6e9, gates=2),
    "LLaMA 7B": Shape(4096, 11008, 32, 32, 32, 6.7e9),
    "LLaMA 70B": Shape(8192, 28672, 64, 8, 80, 69e9),
    "Llama 3.1 8B": Shape(4096, 14336, 32, 8, 32, 8.03e9),
    "Llama 3.3 70B": Shape(8192, 28672, 64, 8, 80, 70.6e9),
}


@dataclass(frozen=True, slots=True)
class Point:
    """A batch that was measured."""

    profile: str
    demand: Demand
    device: Device
    amounts: Amounts
    seconds: float


def table(name: str) -> Iterator[dict[str, str]]:
    with (Path(os.environ["FLOWMESH_DATA"]) / name).open() as file:
        yield from csv.DictReader(file)


def devices() -> dict[str, Device]:
    """By the names that the tables have for them."""
    found = {}
    for row in table("prices/gpu_specs.csv"):
        flops = float(row["fp16_dense_tflops"]) * 1e12
        memory = int(float(row["memory_gb"]) * 1e9)
        bandwidth = float(row["mem_bandwidth_gb_s"]) * 1e9
        found[row["gpu"].lower()] = Device(row["gpu"], flops, bandwidth, memory)
    return found


def many(device: Device, count: int, speed: float = 1.0) -> Device:
    """Several GPUs as one device; `speed` of fewer bits than 16."""
    return Device(
        device.kind,
        device.flops_per_s * count * speed,
        device.bandwidth_bytes_per_s * count,
        device.memory_bytes * count,
    )


def layer(shape: Shape, *, attention: bool) -> Demand:
    parameters = shape.layer_parameters
    cache = shape.cache_bytes_per_token // shape.layers if attention else 0
    return Demand("", (), int(2 * parameters), 2 * parameters, cache)


def whole(shape: Shape, bytes_each: int = 2) -> Demand:
    return Demand(
        weights_bytes=int(bytes_each * shape.parameters),
        flops_per_token=2 * shape.parameters,
        cache_bytes_per_token=shape.cache_bytes_per_token * bytes_each // 2,
    )


def batch(tokens: float, *, decode: bool) -> Amounts:
    if decode:
        return Amounts(0.0, 1.0, tokens, fixed=0.0)
    return Amounts(tokens, fixed=0.0)


def vidur(known: dict[str, Device]) -> Iterator[Point]:
    kinds = {"a100": "a100-80", "h100": "h100", "a40": "a40"}
    for row in table("gpu_profiles/vidur_mlp_summary.csv"):
        tokens, shape = int(row["num_tokens"]), SHAPES.get(row["model"])
        if shape is None or 256 < tokens < 512:
            continue
        device = many(known[kinds[row["gpu"]]], int(row["tensor_parallel"]))
        seconds = float(row["linear_ops_ms_per_layer_median_sum"]) / 1000
        demand = layer(shape, attention=False)
        yield Point("vidur", demand, device, batch(tokens, decode=tokens <= 256), seconds)


def helix(known: dict[str, Device]) -> Iterator[Point]:
    kinds = {"a100": "a100-40", "v100": "v100", "l4": "l4", "t4": "t4"}
    for row in table("gpu_profiles/helix_layer_time.csv"):
        amount, seconds = float(row["batch_size_or_tokens"]), float(row["time_ms"]) / 1000
        kind, _, count = row["machine"].partition("x")
        if not seconds or (row["phase"] == "decode" and amount > 256):
            continue
        device = many(known[kinds[kind]], int(count or 1))
        amounts = batch(amount, decode=row["phase"] == "decode")
        demand = layer(SHAPES[row["model"]], attention=True)
        yield Point("helix, joined" if count else "helix", demand, device, amounts, seconds)


def splitwise(known: dict[str, Device]) -> Iterator[Point]:
    kinds = {"a100-80gb": "a100-80", "h100-80gb": "h100"}
    for row in table("gpu_profiles/splitwise_perf_model.csv"):
        # Longer outputs ended by themselves, earlier; 64 rows did not fit in memory at once.
        if row["hardware"] not in kinds or row["token_size"] != "128" or row["batch_size"] == "64":
            continue
        device = many(known[kinds[row["hardware"]]], int(row["tensor_parallel"]))
        demand, rows = whole(SHAPES[row["model"]]), int(row["batch_size"])
        prompt, output = int(row["prompt_size"]) * rows, int(row["token_size"])
        amounts = Amounts(float(prompt), float(output), float(output * rows))
        yield Point("splitwise", demand, device, amounts, float(row["e2e_time"]) / 1000)


def tensorrt(known: dict[str, Device]) -> Iterator[Point]:
    for row in table("gpu_profiles/trtllm_published_throughput.csv"):
        bits8 = row["precision"] == "FP8"
        count = int(row["tensor_parallel"])
        device = many(known[row["gpu"].lower()], count, 2.0 if bits8 else 1.0)
        demand = whole(SHAPES[row["model"]], 1 if bits8 else 2)
        prompt, output = int(row["input_len"]), int(row["output_len"])
        if row["batch"] == "max":
            room = roofline.MEMORY_SHARE * device.memory_bytes - demand.weights_bytes
            rows = int(room / (demand.cache_bytes_per_token * (prompt + output)))
        else:
            rows = int(row["batch"])
        amounts = Amounts(float(prompt * rows), float(output), float(output * rows))
        per_s = float(row["output_tok_per_s"])
        if "v0.5" in row["source_doc"]:
            per_s *= count  # these tables are per GPU
        yield Point("tensorrt-llm", demand, device, amounts, rows * output / per_s)


def ratios(points: list[Point]) -> dict[str, np.ndarray]:
    """Predicted over measured, by profile."""
    found: dict[str, list[float]] = {}
    for point in points:
        seconds = list(roofline.seconds(point.demand, point.device))
        if point.profile in LAYERS:
            seconds[2] -= roofline.STEP_S
        predicted = sum(s * float(a) for s, a in zip(seconds, point.amounts.each(), strict=True))
        found.setdefault(point.profile, []).append(predicted / point.seconds)
    return {profile: np.asarray(one) for profile, one in found.items()}


def loss(points: list[Point]) -> float:
    """GPUs that are joined by PCIe are left out: a device does not say how its GPUs are joined."""
    points = [point for point in points if point.profile != "helix, joined"]
    return float(np.mean([np.abs(np.log(one)).mean() for one in ratios(points).values()]))


def fit(points: list[Point]) -> None:
    """Descend along one constant at a time, on a grid that gets finer."""
    vidur_points = [point for point in points if point.profile == "vidur"]
    thin = vidur_points[::10] + [point for point in points if point.profile != "vidur"]
    for step in (1.25, 1.1, 1.03):
        improved = True
        while improved:
            improved = False
            for name in SEARCHED:
                for factor in (step, 1 / step):
                    old, before = getattr(roofline, name), loss(thin)
                    setattr(roofline, name, old * factor)
                    if loss(thin) < before - 1e-6:
                        improved = True
                    else:
                        setattr(roofline, name, old)
    print({name: float(f"{getattr(roofline, name):.3g}") for name in SEARCHED})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="search for better constants first")
    known = devices()
    sources: tuple[Callable[[dict[str, Device]], Iterator[Point]], ...]
    sources = (vidur, helix, splitwise, tensorrt)
    points = [point for source in sources for point in source(known)]
    if parser.parse_args().fit:
        fit(points)
    print(f"{'profile':<14}{'points':>8}{'bias':>8}{'median':>8}{'p90':>8}")
    for profile, ratio in ratios(points).items():
        errors = np.abs(ratio - 1)
        figures = (float(np.median(ratio)), np.median(errors), np.quantile(errors, 0.9))
        print(f"{profile:<14}{len(ratio):>8}" + "".join(f"{one:>8.2f}" for one in figures))


if __name__ == "__main__":
    main()
