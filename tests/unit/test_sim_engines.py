"""The truth about times: continuous batching, memory, prefixes, and NVIDIA's published figures."""

import csv
from pathlib import Path

import numpy as np
import pytest

from flowmesh.base.ids import WorkerId
from flowmesh.sim import data
from flowmesh.sim.devices import machine, model
from flowmesh.sim.engines import Engine, Rows, Truth, concurrency, finishing_steps
from flowmesh.sim.machines import Box
from flowmesh.sim.market import machine_of
from flowmesh.sim.profiles import EFFICIENCY, LAYER_PARAMETERS, efficiencies, fitted, points
from flowmesh.sim.scenario import DeviceSpec, Scenario, StepTemplate
from flowmesh.sim.workflows import kind_of

TRUTH = Truth(EFFICIENCY, {})


def engine(name: str, kind: str = "generate") -> Engine:
    one = model(name)
    return Engine(kind, f"{kind}@1", one, 4.0, one.weights_bytes)


def rows(count: int, prompt: int, output: int, saved: int = 0) -> Rows:
    return Rows(np.full(count, prompt), np.full(count, output), saved=saved)


def test_rows_end_when_their_own_tokens_are_out() -> None:
    ends, order = finishing_steps(np.asarray([3, 1, 2]), 8)
    assert ends.tolist() == [1, 2, 3] and order.tolist() == [1, 2, 0]


def test_a_row_that_ends_makes_room_for_the_next() -> None:
    """Two at once: 4 and 1 begin; 5 takes over from 1, and 2 from 4."""
    ends, order = finishing_steps(np.asarray([4, 1, 5, 2]), 2)
    assert dict(zip(order.tolist(), ends.tolist(), strict=True)) == {1: 1, 0: 4, 2: 6, 3: 6}


def test_a_batch_costs_less_a_row_than_single_rows_and_more_in_total() -> None:
    eight = engine("llama-3.1-8b")
    each = [
        TRUTH.batch(eight, machine("A100-80"), rows(n, 500, 200)).exec_s for n in (1, 8, 64, 256)
    ]
    assert each == sorted(each)
    per_row = [seconds / n for seconds, n in zip(each, (1, 8, 64, 256), strict=True)]
    assert per_row == sorted(per_row, reverse=True)
    assert per_row[0] > 10 * per_row[-1]


def test_rows_without_output_are_only_read() -> None:
    took = TRUTH.batch(engine("llama-3.1-8b"), machine("A100-80"), rows(8, 500, 0))
    longer = TRUTH.batch(engine("llama-3.1-8b"), machine("A100-80"), rows(8, 500, 1))
    assert took.decode_steps == 0
    assert 0 < took.exec_s < longer.exec_s


def test_every_row_ends_within_its_batch() -> None:
    rng = np.random.default_rng(1)
    mixed = Rows(rng.integers(10, 3000, 700), rng.integers(1, 900, 700))
    took = TRUTH.batch(engine("qwen2.5-32b"), machine("H100"), mixed)
    assert took.ends_s.max() == pytest.approx(took.exec_s)
    assert took.ends_s.min() > 0
    assert took.decode_steps >= int(mixed.output.max())


def test_a_shared_prefix_is_read_once() -> None:
    eight = engine("llama-3.1-8b")
    plain = TRUTH.batch(eight, machine("L40S"), rows(64, 1000, 20))
    shared = TRUTH.batch(eight, machine("L40S"), rows(64, 1000, 20, saved=63 * 900))
    assert 3 < plain.exec_s / shared.exec_s < 10


def test_memory_bounds_what_runs_together() -> None:
    seventy = engine("llama-3.3-70b")
    assert concurrency(seventy, machine("A100-80"), 1000) == 0
    assert not TRUTH.fits(seventy, machine("2xL40S"), 1000)
    assert 10 < concurrency(seventy, machine("4xL40S"), 1000) < 120
    assert concurrency(engine("llama-3.2-1b"), machine("H100"), 500) == 512


def test_faster_machines_are_faster_and_draw_more() -> None:
    batch = rows(64, 500, 200)
    took = {
        kind: TRUTH.batch(engine("llama-3.1-8b"), machine(kind), batch)
        for kind in ("L4", "A40", "A100-80", "H100")
    }
    seconds = [one.exec_s for one in took.values()]
    assert seconds == sorted(seconds, reverse=True)
    assert 0 < took["H100"].busy_j < 64 * 200 * 0.5


def test_training_takes_its_tokens_arithmetic() -> None:
    """8B, an adapter (4 FLOPs a parameter and token), a million tokens, at 42 % of an A100."""
    job = Rows(np.asarray([1_000_000]), np.asarray([0]))
    took = TRUTH.batch(engine("llama-3.1-8b", "train"), machine("A100-80"), job)
    assert took.exec_s == pytest.approx(8 + 4 * 8.03e15 / (312e12 * 0.681 * 0.62), rel=0.01)


def test_a_device_may_be_given_by_coefficients() -> None:
    spec = DeviceSpec(
        fixed_s=1.0, prompt_s=0.01, step_s=0.1, output_s=0.02, work_s=2.0, load_s=3.0,
        by={"train": {"prompt_s": 0.5}},
    )  # fmt: skip
    truth = Truth(EFFICIENCY, {"mine": spec})
    scenario = Scenario(
        name="s",
        mix={"chat-8b": 1.0},
        devices={"mine": spec},
        fleet=({"kind": "mine"},),  # type: ignore[arg-type]
    )
    own = machine_of(scenario, "mine")
    took = truth.batch(engine("smollm2-135m"), own, rows(4, 10, 5))
    assert took.exec_s == pytest.approx(1.0 + 0.4 + 0.5 + 0.4)
    trained = truth.batch(engine("smollm2-135m", "train"), own, rows(1, 10, 0))
    assert trained.exec_s == pytest.approx(1.0 + 5.0)
    assert truth.load_s(engine("smollm2-135m"), own, 1e9) == 3.0
    tool = truth.batch(Engine("tool", "tool@1"), own, Rows(np.zeros(2), np.zeros(2), work=3.0))  # type: ignore[arg-type]
    assert tool.exec_s == pytest.approx(7.0)


PUBLISHED = data.folder()


@pytest.mark.skipif(data.find(data.VIDUR) is None, reason="needs $FLOWMESH_DATA")
def test_the_table_is_what_the_profiles_say() -> None:
    path = data.find(data.VIDUR)
    assert path is not None
    measured = points(path)
    for name, one in fitted(measured, "").items():
        assert one.compute == pytest.approx(EFFICIENCY[name].compute, rel=0.02), name
        assert one.memory == pytest.approx(EFFICIENCY[name].memory, rel=0.02), name
    assert efficiencies(path)["H100"].source == path.name
    errors = []
    for point in measured:
        gpu, reached = machine(point.gpu).gpu, EFFICIENCY[point.gpu]
        if point.gpus != 1:
            continue
        read_s = 2 * point.parameters / (gpu.bandwidth_bytes_per_s * reached.memory)
        think_s = 2 * point.parameters * point.tokens / (gpu.flops_per_s * reached.compute)
        errors.append(abs(np.hypot(read_s, think_s) / point.seconds - 1))
    assert len(errors) > 4700
    assert np.median(errors) < 0.05 and np.mean(errors) < 0.08
    assert len(LAYER_PARAMETERS) == 7


@pytest.mark.skipif(PUBLISHED is None, reason="needs $FLOWMESH_DATA")
def test_whole_batches_come_near_to_published_throughput() -> None:
    """TensorRT-LLM on A100, FP16: none of it was used to fit anything."""
    assert PUBLISHED is not None
    path = Path(PUBLISHED) / "gpu_profiles" / "trtllm_published_throughput.csv"
    ratios = []
    with path.open() as file:
        for row in csv.DictReader(file):
            if (row["gpu"], row["precision"]) != ("A100-80", "FP16") or "LLaMA" not in row["model"]:
                continue
            gpus = int(row["tensor_parallel"])
            if gpus == 2:
                continue
            name = {"LLaMA 7B": "llama-2-7b", "LLaMA 70B": "llama-2-70b"}[row["model"]]
            count, output = int(row["batch"]), int(row["output_len"])
            took = TRUTH.batch(
                engine(name), machine("A100-80", gpus), rows(count, int(row["input_len"]), output)
            )
            per_gpu = count * output / took.exec_s / gpus
            # The 70B rows are printed per GPU, as the others with one GPU are.
            ratios.append(per_gpu / float(row["output_tok_per_s"]))
    assert len(ratios) >= 5
    assert all(0.55 < ratio < 1.3 for ratio in ratios), ratios
    assert 0.75 < float(np.median(ratios)) < 1.2, ratios


def test_a_machine_holds_as_many_engines_as_it_may() -> None:
    """And says which: what is warm needs no loading, what is held no fetching."""
    truth = Truth(EFFICIENCY, {})
    made = machine("H100")
    box = Box(WorkerId("w"), made, made.device(1e9), "home", 2.0, 0)
    kinds = [kind_of(StepTemplate(name="s", model=name)) for name in ("llama-3.1-8b", "llama-2-7b")]
    fetch_s, fetched, load_s, loaded = box.prepare(kinds[0], {}, truth)
    assert fetched == loaded == 16_060_000_000
    assert [fetch_s, load_s] == pytest.approx([16.06, 18 + 8.03])
    assert box.prepare(kinds[0], {"adapter": 10**9}, truth) == (1.0, 10**9, 0.0, 0)
    box.prepare(kinds[1], {}, truth)
    assert tuple(box.synced(5).warm) == (kinds[1].key,)
    assert box.prepare(kinds[0], {}, truth)[:2] == (0.0, 0)
    two = Truth(EFFICIENCY, {"H100": DeviceSpec(load_s=2.0, engines=2)})
    for kind in (*kinds, *kinds):
        box.prepare(kind, {}, two)
    assert sorted(box.warm) == sorted(kind.key for kind in kinds)
