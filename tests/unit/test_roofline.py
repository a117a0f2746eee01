"""The prior: what data sheets say a batch takes."""

from dataclasses import replace

import numpy as np
import pytest

from flowmesh.core import estimate, roofline
from flowmesh.core.datasheet import GPUS
from flowmesh.core.fleet import Device
from flowmesh.core.records import Demand
from flowmesh.core.roofline import Amounts
from flowmesh.core.state import State
from support.learning import A100, MODEL, PLAIN


def exec_s(demand: Demand, device: Device, amounts: Amounts) -> float:
    state = State(demands={"k": demand})
    return float(estimate.coefficients(state, "k", device).exec_s(amounts))


def test_a_prompt_is_bound_by_arithmetic_and_an_output_by_bandwidth() -> None:
    seconds = roofline.seconds(MODEL, A100)
    twice_flops = roofline.seconds(MODEL, replace(A100, flops_per_s=2 * A100.flops_per_s))
    twice_bytes = roofline.seconds(
        MODEL, replace(A100, bandwidth_bytes_per_s=2 * A100.bandwidth_bytes_per_s)
    )
    assert twice_flops[1] == seconds[1] / 2 and twice_flops[2] == seconds[2]
    assert twice_bytes[1] == seconds[1]
    cache_s = 131_072 * 1000 / (0.7 * 2039e9)
    assert seconds[3] == pytest.approx(16e9 / (1.2 * 312e12) + cache_s)
    step_s, half_s = seconds[2] - roofline.STEP_S, twice_bytes[2] - roofline.STEP_S
    assert half_s == pytest.approx(step_s / 2)


def test_the_order_of_gpus_is_that_of_their_data_sheets() -> None:
    writing = Amounts(100.0, 500.0, 500.0)
    times = {kind: exec_s(MODEL, device, writing) for kind, device in GPUS.items()}
    for slower, faster in (
        ("L4", "A10"), ("A10", "A40"), ("A40", "L40S"), ("L40S", "A100-40"),
        ("A100-40", "A100-80"), ("A100-80", "H100"), ("H100", "H200"), ("H100-PCIe", "H100"),
    ):  # fmt: skip
        assert times[slower] > times[faster], (slower, faster)
    reading = Amounts(100_000.0)
    order = sorted(GPUS, key=lambda kind: GPUS[kind].flops_per_s)
    times = {kind: exec_s(MODEL, GPUS[kind], reading) for kind in order}
    by_time = sorted(order, key=lambda kind: -times[kind])
    assert [GPUS[kind].flops_per_s for kind in by_time] == [
        GPUS[kind].flops_per_s for kind in order
    ]


#: Of the public profiles named: device, demand, batch, seconds that were measured.
MEASURED = {
    # Splitwise, perf_model.csv: llama2-70b, two GPUs, 512 tokens in, 128 out, 1 and 16 rows.
    "70B on 2 A100, 1 row": (2, "A100-80", 138e9, 138e9, 327_680, (512, 128, 128), 7.17),
    "70B on 2 A100, 16 rows": (2, "A100-80", 138e9, 138e9, 327_680, (8192, 128, 2048), 11.62),
    "70B on 2 H100, 16 rows": (2, "H100", 138e9, 138e9, 327_680, (8192, 128, 2048), 6.55),
    # Helix: one layer of llama2-70b on one L4, 2,000 tokens of a prompt, without a step.
    "a layer on an L4": (1, "L4", 1.71e9, 1.71e9, 4096, (2000, 0, 0), 0.072),
    # TensorRT-LLM v1.0: Llama 3.1 8B in FP8 (taken as twice the GPUs' FLOP/s and half the bytes),
    # 1,000 tokens in and out, 488 rows at once by memory, 15,220 tokens/s.
    "8B on an H100": (1, "H100", 8.03e9, 8.03e9, 65_536, (488_000, 1000, 488_000), 32.1),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_prior_is_within_a_factor_of_two_of_what_was_measured(name: str) -> None:
    count, kind, weights, flops, cache, (prompt, steps, output), seconds = MEASURED[name]
    gpu = GPUS[kind]
    device = Device(kind, count * gpu.flops_per_s, count * gpu.bandwidth_bytes_per_s)
    demand = Demand("generate@1", (), int(weights), flops, cache)
    predicted = exec_s(demand, device, Amounts(float(prompt), float(steps), float(output)))
    assert seconds / 2 < predicted < seconds * 2


def test_batching_pays_until_arithmetic_is_the_bound() -> None:
    def rate(rows: int) -> float:
        return rows / exec_s(MODEL, A100, Amounts(10.0 * rows, 100.0, 100.0 * rows))

    assert rate(64) > 10 * rate(1)
    assert rate(4096) < 1.3 * rate(1024)


def test_what_has_no_model_costs_by_work_alone() -> None:
    assert exec_s(PLAIN, A100, Amounts(work=3.0)) == pytest.approx(0.05)
    assert exec_s(PLAIN, A100, Amounts(500.0, 10.0, 10.0, work=3.0)) == pytest.approx(0.05)


def test_a_device_that_says_nothing_is_taken_for_a_small_server() -> None:
    unknown = exec_s(MODEL, Device("?"), Amounts(100.0, 10.0, 10.0))
    assert exec_s(MODEL, roofline.UNKNOWN, Amounts(100.0, 10.0, 10.0)) == unknown
    assert unknown > exec_s(MODEL, GPUS["T4"], Amounts(100.0, 10.0, 10.0))


def test_arrays_give_what_single_batches_give() -> None:
    state = State(demands={"k": MODEL})
    known = estimate.coefficients(state, "k", A100)
    rows = np.array([1.0, 2.0, 64.0])
    many = known.exec_s(Amounts(100 * rows, 10 + rows, 50 * rows))
    each = [float(known.exec_s(Amounts(100 * n, 10 + n, 50 * n))) for n in rows]
    assert isinstance(many, np.ndarray) and many.tolist() == pytest.approx(each)


def test_memory_bounds_what_fits_and_how_many_rows_run_at_once() -> None:
    assert roofline.fits(MODEL, A100, 1000)
    assert not roofline.fits(MODEL, GPUS["T4"], 1000)
    tight = int((16e9 + 131_072 * 1000) / 0.9) + 1
    assert roofline.fits(MODEL, Device("?", memory_bytes=tight), 1000)
    assert not roofline.fits(MODEL, Device("?", memory_bytes=tight - 10), 1000)
    assert roofline.fits(MODEL, Device("?"), 1000)
    one_row = 131_072 * 10_000
    assert roofline.concurrency(MODEL, A100, 10_000) == int((72e9 - 16e9) / one_row)
    assert roofline.concurrency(MODEL, A100, 1) == roofline.MAX_ROWS
    assert roofline.concurrency(MODEL, GPUS["T4"], 1000) == 1
    assert roofline.concurrency(PLAIN, A100, 1000) == roofline.MAX_ROWS


def test_a_batch_lasts_as_long_as_its_longest_row_and_the_turns_before_it() -> None:
    assert roofline.decode_steps(100.0, 400.0, 8, 8) == 100.0
    assert roofline.decode_steps(100.0, 4000.0, 8, 80) == 550.0
    steps = roofline.decode_steps(np.array([100.0, 10.0]), np.array([400.0, 400.0]), 8, 40)
    assert isinstance(steps, np.ndarray) and steps.tolist() == [140.0, 50.0]


def test_loading_is_a_start_and_the_weights() -> None:
    assert roofline.load_s(MODEL, A100) == roofline.ENGINE_START_S + 8.0
    assert roofline.load_s(PLAIN, A100) == roofline.ENGINE_START_S
    assert roofline.fetch_s(2e9, A100) == 2.0
    assert roofline.fetch_s(2e8, Device("?")) == 2.0


def test_power_lies_between_idle_and_busy() -> None:
    assert roofline.watts(A100) == pytest.approx(298.0)
    assert roofline.idle_w(GPUS["H100"]) == pytest.approx(0.17 * 700)
    assert roofline.idle_w(GPUS["H100"]) < roofline.watts(GPUS["H100"]) < 700
    assert roofline.idle_w(Device("?")) == 50.0 and roofline.watts(Device("?")) == 120.0
