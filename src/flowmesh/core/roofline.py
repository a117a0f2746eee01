"""What a batch should take by data sheets alone: the prior of everything that is learnt.

A roofline model: reading a prompt is bound by arithmetic, writing tokens by memory bandwidth
(the weights are read once for each step) and, in large batches, by arithmetic again. No engine
reaches the figures of a data sheet; the shares that are reached are the constants below.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmesh.core.fleet import Device
from flowmesh.core.records import Demand

Quantity = float | NDArray[np.float64]

# The four constants below are fitted (`bench/roofline.py --fit`) to 19,000 measurements by Vidur,
# Helix, Splitwise and TensorRT-LLM on V100 to H200; the median error that they leave is 8 to
# 25 %, by profile, and the 90th percentile 23 to 54 %. Each was then rounded.

#: Share of the peak FLOP/s while prompts are read, or trained on.
PROMPT_SHARE = 0.62
#: The same of written tokens. More than all of it, as their arithmetic hides behind the reading
#: of the weights, which `BANDWIDTH_SHARE` counts in full.
OUTPUT_SHARE = 1.2
#: Share of the memory bandwidth at which weights and caches are read.
BANDWIDTH_SHARE = 0.7
#: Seconds of each decode step besides: launches, sampling, the engine's own loop. The engine of
#: Splitwise's measurements takes 20 ms, TensorRT-LLM's figures fit best at 6.
STEP_S = 0.008
#: Tokens of the sequence that a written token looks back on: its cache is read.
CONTEXT_TOKENS = 1_000
#: Share of a device's memory for weights and caches, as engines leave by default.
MEMORY_SHARE = 0.9
#: Most rows that an engine runs at once, whatever the memory.
MAX_ROWS = 256
#: Seconds that any batch costs besides: hand over, report.
BATCH_START_S = 0.02
#: Seconds for a unit of work, where nothing is known of it.
UNIT_S = 0.01
#: Seconds to start an engine's process, without its weights.
ENGINE_START_S = 5.0
#: What is assumed where a device says nothing: a small server without a GPU.
UNKNOWN = Device(
    flops_per_s=1e12,
    bandwidth_bytes_per_s=50e9,
    load_bytes_per_s=1e9,
    fetch_bytes_per_s=100e6,
    idle_w=50.0,
    busy_w=150.0,
)
#: Where between idle and busy the mean power of an executing device is, and what of its busy
#: power it draws when idle, if it does not say. By Splitwise's measurements of two and eight
#: A100 (0.74 to 0.79 of the board's limit in batches of 1 to 16 where the GPUs are full, 0.17
#: where they mostly wait); the unit of that table is not documented, so this is a shape only.
POWER_SHARE = 0.7
IDLE_SHARE = 0.17


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a batch is made of; arrays of equal shape for many batches.

    Attributes:
        prompt_tokens: of all rows, less what shared prefixes save; or tokens trained on.
        decode_steps: that the engine makes one after the other, see `decode_steps`.
        output_tokens: of all rows.
        work: summed `TaskSpec.work`; only where the key's `Demand.flops_per_token` is 0.
        fixed: batches.
    """

    prompt_tokens: Quantity = 0.0
    decode_steps: Quantity = 0.0
    output_tokens: Quantity = 0.0
    work: Quantity = 0.0
    fixed: Quantity = 1.0

    def each(self) -> tuple[Quantity, ...]:
        """The features in the order of `Fit.coefficients`."""
        return (
            self.fixed,
            self.prompt_tokens,
            self.decode_steps,
            self.output_tokens,
            self.work,
        )


FEATURES = ("batch", "prompt token", "decode step", "output token", "unit of work")


def seconds(demand: Demand, device: Device) -> tuple[float, ...]:
    """Seconds for each feature of `Amounts`, before anything is learnt."""
    if not demand.flops_per_token:
        return (BATCH_START_S, 0.0, 0.0, 0.0, UNIT_S)
    flops_per_s = device.flops_per_s or UNKNOWN.flops_per_s
    bytes_per_s = BANDWIDTH_SHARE * (device.bandwidth_bytes_per_s or UNKNOWN.bandwidth_bytes_per_s)
    step_s = STEP_S + demand.weights_bytes / bytes_per_s
    cache_s = demand.cache_bytes_per_token * CONTEXT_TOKENS / bytes_per_s
    prompt_s = demand.flops_per_token / (PROMPT_SHARE * flops_per_s)
    output_s = demand.flops_per_token / (OUTPUT_SHARE * flops_per_s) + cache_s
    return (BATCH_START_S, prompt_s, step_s, output_s, 0.0)


def fits(demand: Demand, device: Device, tokens_per_row: float) -> bool:
    """Whether the device's memory holds the weights and the cache of one row."""
    if not device.memory_bytes:
        return True
    needed = demand.weights_bytes + demand.cache_bytes_per_token * tokens_per_row
    return needed <= MEMORY_SHARE * device.memory_bytes


def concurrency(demand: Demand, device: Device, tokens_per_row: float) -> int:
    """Rows that the engine runs at once: as many as their caches fit in memory, at least 1."""
    row_bytes = demand.cache_bytes_per_token * tokens_per_row
    if not device.memory_bytes or row_bytes <= 0:
        return MAX_ROWS
    room_bytes = MEMORY_SHARE * device.memory_bytes - demand.weights_bytes
    return max(1, min(MAX_ROWS, int(room_bytes / row_bytes)))


def decode_steps(
    longest: Quantity, output_tokens: Quantity, rows_at_once: Quantity, rows: Quantity
) -> Quantity:
    """Steps one after the other: engines fill the place of a row that has ended at once.

    So a batch lasts as long as its longest row; and where rows wait for others to end, as long
    again as all tokens at so many a step, but for one mean row: the longest may start last.
    """
    mean = np.asarray(output_tokens) / rows
    turns: Quantity = np.asarray(output_tokens) / rows_at_once - mean
    return longest + np.maximum(0.0, turns)


def load_s(demand: Demand, device: Device) -> float:
    """To start a cold engine."""
    rate = device.load_bytes_per_s or UNKNOWN.load_bytes_per_s
    return ENGINE_START_S + demand.weights_bytes / rate


def fetch_s(size_bytes: float, device: Device) -> float:
    """To bring bytes from the store to the machine's disk."""
    return size_bytes / (device.fetch_bytes_per_s or UNKNOWN.fetch_bytes_per_s)


def idle_w(device: Device) -> float:
    """Power of a device that waits, loads or fetches."""
    if not device.busy_w:
        return UNKNOWN.idle_w
    return device.idle_w or IDLE_SHARE * device.busy_w


def watts(device: Device) -> float:
    """Mean power while a batch executes."""
    idle = idle_w(device)
    return idle + POWER_SHARE * max(0.0, (device.busy_w or UNKNOWN.busy_w) - idle)
