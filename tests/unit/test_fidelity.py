"""The simulator against reality: coefficients from calibration runs, and the session simulated."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
TRUE = {"fixed_s": 0.3, "prompt_s": 0.002, "step_s": 0.05, "output_s": 0.004}
DEVICE = {"flops_per_s": 5e10, "bandwidth_bytes_per_s": 1e10, "memory_bytes": 8_000_000_000}


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, which finds its neighbours beside it."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("fidelity")


def batch(fidelity: Any, operator: str, rows: int, granted_ms: int, slower: float = 1.0) -> Any:
    """As a worker tells it whose times follow `TRUE`."""
    model = operator in ("generate@2", "choose@2")
    prompt, steps = (40 * rows, 30 if operator == "generate@2" else 1) if model else (0, 0)
    output = steps * rows
    exec_s = 0.02
    if model:
        exec_s = TRUE["fixed_s"] + TRUE["prompt_s"] * prompt + TRUE["step_s"] * steps
        exec_s += TRUE["output_s"] * output
    timing = {
        "exec_s": slower * exec_s, "load_s": 0.0, "cpu_s": exec_s, "prompt_tokens": prompt,
        "decode_steps": steps, "output_tokens": output, "fetch_s": 0.01, "fetch_bytes": 100,
    }  # fmt: skip
    return fidelity.Batch(operator, "one", granted_ms, rows, timing)


def session(fidelity: Any, shape: Any, slower: float = 1.0) -> Any:
    operators = ("dedupe@1", "generate@2", "choose@2", "transform@1")
    batches = [
        batch(fidelity, operator, rows if operator.endswith("@2") else 1, n, slower)
        for n, rows in enumerate(fidelity.CALIBRATION_ROWS)
        for operator in operators
    ]
    batches[1].timing.update(fetch_s=5.0, fetch_bytes=500_000_000, load_s=7.0)
    late = [batch(fidelity, "generate@2", 7, 1000, slower=50.0)]  # must not count
    measured = fidelity.Compared(10.0, 12, 3.0, 8.0)
    return fidelity.Done((shape,), batches + late, 500, measured, {shape.name: DEVICE})


def test_coefficients_are_found_again(fidelity: Any) -> None:
    told = [batch(fidelity, "generate@2", rows, 0) for rows in (1, 2, 4, 8, 16)]
    found = fidelity.fitted(told)["by"]["generate@2"]
    for rows in (3, 12, 32):
        expected = batch(fidelity, "generate@2", rows, 0).timing
        names = {"prompt_s": "prompt_tokens", "step_s": "decode_steps"}
        names["output_s"] = "output_tokens"
        seconds = found["fixed_s"] + sum(found[a] * expected[b] for a, b in names.items())
        assert seconds == pytest.approx(expected["exec_s"], rel=0.02)


def test_processor_seconds_are_those_of_warm_batches(fidelity: Any) -> None:
    warm = batch(fidelity, "generate@2", 4, 0, slower=2.0)
    cold = batch(fidelity, "generate@2", 4, 0)
    cold.timing["load_s"] = 30.0
    assert fidelity.cpu_per_second([warm, cold]) == pytest.approx(0.5)
    assert fidelity.cpu_per_second([cold]) < 0.1


def test_sessions_are_simulated_from_what_came_before(fidelity: Any) -> None:
    one, slow = (session(fidelity, fidelity.ONE), session(fidelity, fidelity.SLOW, slower=2.0))
    both = fidelity.Done((fidelity.ONE, fidelity.SLOW), one.batches, 500, one.measured, one.devices)
    assert fidelity._gbit_per_s(one) == pytest.approx(0.27 * 8 / 5, rel=0.01)
    figures = fidelity.compared([one, slow, both], 6)
    assert [figure["workers"] for figure in figures] == ["one", "slow", "one+slow"]
    took = [figure["makespan_s"]["simulated"] for figure in figures]
    assert 1.3 < took[1] / took[0] < 2.2  # twice as slow, but tenants come when they come
    assert took[2] < took[1]  # though the slow one has to load the model first
    for figure in figures:
        # Three distinct tables of four steps, six rows each; whole tables are single tasks.
        tasks = figure["batches"]["simulated"] * figure["mean_batch"]["simulated"]
        assert tasks == pytest.approx(3 * (2 + 2 * 6))
        assert figure["makespan_s"]["measured"] == 10.0
    cpu = [figure["cpu_s"]["simulated"] for figure in figures]
    assert cpu[0] == pytest.approx(cpu[1], rel=0.25)
