"""What goes wrong while a training runs: numbers, disks, memory; and when it stops early."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flowmesh.runtimes.base import Done, Failed, FailureKind
from flowmesh.runtimes.training.checkpoints import is_disk_full
from support.training import Bench, FullDisk, Watcher, rows_for, weights_of


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("bench"))


def _failing_step(
    monkeypatch: pytest.MonkeyPatch, at: int, error: Exception | None, times: int = 1
) -> list[int]:
    """Have the training step number `at` raise, or give no number; the sizes of all batches."""
    plain = transformers.Trainer.training_step
    sizes: list[int] = []
    left = [times]

    def step(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> torch.Tensor:
        sizes.append(len(next(iter(inputs.values()))))
        if len(sizes) >= at and left[0]:
            left[0] -= 1
            if error is not None:
                raise error
            return torch.tensor(float("nan"))
        found: torch.Tensor = plain(self, model, inputs, *more, **named)
        return found

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    return sizes


def test_a_loss_that_is_no_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_step(monkeypatch, 3, None)
    watcher = Watcher()
    outcome = bench.outcome(bench.action("sft", checkpoint_steps=1), watcher)
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.INPUT
    assert "the loss is nan at step 3 of 4, at a learning rate of 0.0005" in outcome.message
    assert "the checkpoint of step 2 is kept" in outcome.message
    assert [step for step, _ in watcher.saves] == [1, 2]
    assert watcher.heard[-1].step == 2


def test_a_learning_rate_that_is_much_too_high(bench: Bench) -> None:
    high: dict[str, Any] = {
        "learning_rate": 10,
        "optim": "sgd",
        "max_grad_norm": 1000,
        "weight_decay": 1,
    }
    action = bench.action("dpo", lora=None, max_steps=400, beta=100, **high)
    message = bench.refused(action)
    assert " is nan at step " in message or " is inf at step " in message
    assert "lower `learning_rate`" in message


def test_a_disk_that_is_full_costs_one_checkpoint(bench: Bench) -> None:
    action = bench.action("sft", checkpoint_steps=1)
    plain, blobs = bench.done(action), bench.blobs
    watcher = Watcher()
    bench.blobs = FullDisk(blobs, 2)
    try:
        outputs = bench.done(action, watcher=watcher)
    finally:
        bench.blobs = blobs
    assert [step for step, _ in watcher.saves] == [1, 3]
    assert weights_of(outputs) == weights_of(plain)
    assert bench.summary(outputs)["notes"] == [
        "the disk was full at step 2: that checkpoint was not kept, the one of step 1 was"
    ]


def test_full_disks_are_told_from_other_errors() -> None:
    wrapped = RuntimeError("the file can not be written")
    wrapped.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_disk_full(wrapped)
    assert is_disk_full(RuntimeError("Io error: No space left on device (os error 28)"))
    assert is_disk_full(RuntimeError("[enforce fail at x.cc:672] . unexpected pos 64 vs 0"))
    assert not is_disk_full(OSError(errno.EACCES, "x"))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_out_of_memory_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sizes = _failing_step(monkeypatch, 2, error)
    outcome = bench.outcome(bench.action("sft"))
    assert isinstance(outcome, Done), outcome
    assert outcome.result.numerics == "near"
    summary = bench.summary(outcome.result.outputs)
    assert (summary["effective_batch"], summary["micro_batch"]) == (4, 2)
    assert "went on from step 0 with micro-batches of 2 rows" in summary["notes"][0]
    assert sizes[:2] == [4, 4]
    assert set(sizes[2:]) == {2}
    assert summary["steps"] == 4


def test_out_of_memory_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_step(monkeypatch, 2, MemoryError("too much"), times=2)
    outcome = bench.outcome(bench.action("sft"))
    assert outcome == Failed("task", FailureKind.MEMORY, "too much")


def test_out_of_memory_after_a_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt begins where the first had come to, not where it began."""
    sizes = _failing_step(monkeypatch, 4, MemoryError("too much"))
    watcher = Watcher()
    outputs = bench.done(bench.action("sft", checkpoint_steps=1), watcher=watcher)
    assert sizes == [4, 4, 4, 4, 2, 2]
    assert [step for step, _ in watcher.saves] == [1, 2, 3]
    summary = bench.summary(outputs)
    assert "too much: went on from step 3 with micro-batches of 2 rows" in summary["notes"][0]
    assert (summary["steps"], summary["resumed_from"]) == (4, [])


@pytest.mark.parametrize(("op", "batch", "part"), [("sft", 3, 1), ("kto", 9, 3), ("kto", 6, 3)])
def test_the_largest_part_of_a_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, op: str, batch: int, part: int
) -> None:
    _failing_step(monkeypatch, 1, MemoryError("too much"))
    action = bench.action(op, per_device_train_batch_size=batch, max_steps=1)
    summary = bench.summary(bench.done(action))
    assert (summary["effective_batch"], summary["micro_batch"]) == (batch, part)


@pytest.mark.parametrize(("op", "batch"), [("sft", 1), ("kto", 2), ("kto", 5)])
def test_batches_that_have_no_smaller_part(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, op: str, batch: int
) -> None:
    _failing_step(monkeypatch, 1, MemoryError("too much"))
    outcome = bench.outcome(bench.action(op, per_device_train_batch_size=batch))
    assert outcome == Failed("task", FailureKind.MEMORY, "too much")


def test_the_smaller_batch_is_kept_over_an_interruption(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = bench.action("sft", checkpoint_steps=1)
    with monkeypatch.context() as patch:
        _failing_step(patch, 1, MemoryError("too much"))
        checkpoint = bench.interrupted(action, Watcher(kill_at=2))
    outputs = bench.done(action, checkpoint=checkpoint)
    summary = bench.summary(outputs)
    assert (summary["micro_batch"], summary["resumed_from"]) == (2, [2])
    assert len(summary["notes"]) == 1


def test_a_trainer_that_ends_unasked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop = state.global_step == 2

    monkeypatch.setattr(transformers.trainer_callback.DefaultFlowCallback, "on_step_end", stop)
    outcome = bench.outcome(bench.action("sft"))
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.INTERNAL
    assert outcome.message == "the trainer ended at step 2 of 4, unasked"


def test_the_best_weights_are_kept(bench: Bench) -> None:
    rows = rows_for("sft")
    common: dict[str, Any] = {
        "learning_rate": 1.0, "lora": None, "lr_scheduler_type": "constant", "logging_steps": 1,
    }  # fmt: skip
    tests: dict[str, Any] = {
        "ports": {"eval_data": bench.blobs.put_table(rows[:3])},
        "eval_steps": 1,
    }
    stopped = bench.done(
        bench.action("sft", rows, max_steps=12, early_stopping_patience=2, **tests, **common)
    )
    summary = bench.summary(stopped)
    assert summary["stopped_early"]
    assert summary["steps"] < summary["planned_steps"] == 12
    assert summary["kept_step"] == summary["steps"] - 2
    losses = {row["step"]: row["eval_loss"] for row in bench.blobs.rows(stopped["metrics"])}
    assert min(losses, key=lambda step: losses[step]) == summary["kept_step"]
    assert summary["eval_loss_best"] == losses[summary["kept_step"]]
    short = bench.done(bench.action("sft", rows, max_steps=summary["kept_step"], **common))
    assert weights_of(short) == weights_of(stopped)


def test_progress_tells_what_people_ask_for(bench: Bench) -> None:
    watcher = Watcher()
    bench.done(bench.action("sft"), watcher=watcher)
    assert [(one.step, one.steps) for one in watcher.heard] == [(n, 4) for n in (1, 2, 3, 4)]
    last = watcher.heard[-1].facts
    assert set(last) == {"loss", "learning_rate", "tokens_per_s", "left_s"}
    assert last["left_s"] == 0
    assert watcher.heard[0].facts["left_s"] > 0
    assert last["tokens_per_s"] > 0


@pytest.fixture
def small_scratch(bench: Bench) -> Iterator[Path]:
    """The directory of attempts, on a disk of its own that holds one model but no checkpoint."""
    place = bench.root / "store" / "scratch"
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_disk_that_is_really_full(bench: Bench, small_scratch: Path, devices: int) -> None:
    """torch's, safetensors' and our own writers each have their own words for it."""
    watcher = Watcher()
    action = bench.action("sft", lora=None, checkpoint_steps=1, devices=devices)
    outputs = bench.done(action, watcher=watcher)
    assert watcher.saves == []
    assert bench.summary(outputs)["notes"] == [
        f"the disk was full at step {step}: that checkpoint was not kept, the one of step 0 was"
        for step in (1, 2, 3)
    ]
    assert list(small_scratch.iterdir()) == []
    if devices == 1:
        plain = bench.done(bench.action("sft", lora=None))
        assert weights_of(outputs) == weights_of(plain)
