"""Trainings on two devices, which are two processes here: the same machinery as for GPUs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowmesh.runtimes.base import Failed, FailureKind
from flowmesh.runtimes.training import launch
from support.fabric import until
from support.training import Bench, Watcher, rows_for, weights_of

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]

_TESTS = Path(__file__).parents[1]
_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.training import Bench, Watcher
class Vanishing(Watcher):
    def progress(self, progress):
        os.kill(os.getpid(), signal.SIGKILL)
bench = Bench(Path(sys.argv[2]))
bench.done(bench.action("sft", devices=2), watcher=Vanishing())
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def hurt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(launch, "PROCESS", "support.failing_process")
    monkeypatch.setenv("PYTHONPATH", str(_TESTS))
    return monkeypatch


def _weights(bench: Bench, outputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return dict(
        load_file(bench.blobs.tree(outputs["adapter"].address) / "adapter_model.safetensors")
    )


def _resumed(bench: Bench, op: str, rows: Rows | None = None, **params: Any) -> dict[str, Any]:
    """Outputs of a training that was stopped and went on, equal to those of one that was not."""
    action = bench.action(op, rows, devices=2, **params)
    whole, watcher = bench.done(action), Watcher(stop_at=2)
    checkpoint = bench.interrupted(action, watcher)
    assert [step for step, _ in watcher.saves] == [2]
    names = {path.name for path in bench.blobs.tree(checkpoint).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} < names
    resumed = bench.done(action, checkpoint=checkpoint)
    assert weights_of(resumed) == weights_of(whole)
    assert resumed["loss_curve"] == whole["loss_curve"]
    assert bench.summary(resumed)["resumed_from"] == [2]
    assert not list((bench.root / "store" / "scratch").iterdir())
    return whole


def test_two_devices_make_the_steps_of_two_batches(bench: Bench) -> None:
    """What two compute at once, one computes one after the other; but for rounding."""
    rows = rows_for("sft", 16)
    outputs = _resumed(bench, "sft", rows)
    alone = bench.done(bench.action("sft", rows, gradient_accumulation_steps=2))
    summary, single = bench.summary(outputs), bench.summary(alone)
    assert (summary["devices"], summary["effective_batch"], summary["micro_batch"]) == (2, 8, 4)
    assert (single["devices"], single["effective_batch"]) == (1, 8)
    for name in ("steps", "tokens", "epochs", "rows"):
        assert summary[name] == single[name]
    assert summary["train_loss_last"] == pytest.approx(single["train_loss_last"], rel=1e-4)
    ours, theirs = _weights(bench, outputs), _weights(bench, alone)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_draws_and_rewards_on_two_devices(bench: Bench) -> None:
    _resumed(bench, "grpo", max_steps=4, eval_split=0.4, eval_steps=2)


def test_one_device_without_memory(bench: Bench, hurt: pytest.MonkeyPatch) -> None:
    hurt.setenv("HURT", "1:3:memory")
    watcher = Watcher()
    outputs = bench.done(bench.action("sft", devices=2, checkpoint_steps=1), watcher=watcher)
    summary = bench.summary(outputs)
    assert (summary["effective_batch"], summary["micro_batch"]) == (8, 2)
    assert summary["notes"] == [
        "too much: went on from step 2 with micro-batches of 2 rows, and accumulates the more of"
        " them"
    ]
    assert [step for step, _ in watcher.saves] == [1, 2, 3]


def test_one_process_is_killed(bench: Bench, hurt: pytest.MonkeyPatch) -> None:
    hurt.setenv("HURT", "1:2:kill")
    outcome = bench.outcome(bench.action("sft", devices=2))
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.TRANSIENT
    assert "ended with status 1 before the training did; they were killed" in outcome.message
    assert "Traceback" not in outcome.message


def test_what_is_refused_is_said_once(bench: Bench) -> None:
    message = bench.refused(bench.action("sft", [{"text": "a"}], devices=2))
    assert message == "`data` has one row; a training needs at least 2"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
def test_a_worker_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(_TESTS), str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    until(lambda: not _processes_of(tmp_path), "the end of all processes", 20)


def _processes_of(folder: Path) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
