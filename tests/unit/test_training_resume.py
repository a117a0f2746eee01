"""A training that was interrupted ends in the bytes of one that was not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmesh.runtimes.base import Stopped
from flowmesh.runtimes.pace import interval_s
from support.training import Bench, Watcher, rows_for, weights_of

OPERATORS = ("sft", "dpo", "kto", "reward_model", "grpo", "rloo")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("bench"))


def _check(bench: Bench, op: str, watcher: Watcher, **params: Any) -> dict[str, Any]:
    """Same weights, picture and metrics; the summary of the resumed one."""
    action = bench.action(op, **params)
    whole = bench.done(action)
    resumed = bench.done(action, checkpoint=bench.interrupted(action, watcher))
    assert weights_of(resumed) == weights_of(whole)
    assert resumed["loss_curve"] == whole["loss_curve"]
    first, second = (bench.blobs.rows(one["metrics"]) for one in (whole, resumed))
    assert [{**row, "seconds": 0} for row in first] == [{**row, "seconds": 0} for row in second]
    summary = bench.summary(resumed)
    assert summary["resumed_from"] == [watcher.saves[-1][0]]
    assert summary["seconds"] > 0
    return summary


@pytest.mark.parametrize("op", OPERATORS)
def test_stopped_and_resumed(bench: Bench, op: str) -> None:
    watcher = Watcher(stop_at=2)
    _check(bench, op, watcher)
    assert [step for step, _ in watcher.saves] == [2]


@pytest.mark.parametrize("op", ["sft", "grpo"])
def test_all_weights_killed_and_resumed(bench: Bench, op: str) -> None:
    watcher = Watcher(kill_at=3)
    _check(bench, op, watcher, lora=None, checkpoint_steps=1)
    assert [step for step, _ in watcher.saves] == [1, 2, 3]


@pytest.mark.parametrize(
    ("op", "stop_at", "params"),
    [
        # At the end of an epoch of 3 steps, and in the middle of accumulated batches.
        ("sft", 3, {"max_steps": None, "num_train_epochs": 2, "gradient_accumulation_steps": 2,
                    "per_device_train_batch_size": 2}),
        ("sft", 2, {"packing": True, "max_length": 64}),
        ("dpo", 2, {"gradient_checkpointing": True, "optim": "sgd", "warmup_ratio": 0.5}),
        ("sft", 2, {"lora": {"lora_dropout": 0.2}, "dtype": "bfloat16"}),
        # TRL's sampler would begin its second epoch with the order of the first.
        ("grpo", 4, {"gradient_accumulation_steps": 2, "max_steps": 5}),
        ("rloo", 3, {"eval_split": 0.3, "eval_steps": 2}),
    ],
)  # fmt: skip
def test_whatever_has_a_state_of_its_own(
    bench: Bench, op: str, stop_at: int, params: dict[str, Any]
) -> None:
    _check(bench, op, Watcher(stop_at=stop_at), **params)


def test_completions_that_serve_several_steps_are_not_cut(bench: Bench) -> None:
    watcher = Watcher(stop_at=3)
    _check(bench, "grpo", watcher, num_iterations=2, max_steps=6)
    assert [step for step, _ in watcher.saves] == [4]


def test_early_stopping_goes_on_where_it_was(bench: Bench) -> None:
    params: dict[str, Any] = {
        "eval_split": 0.3, "eval_steps": 1, "early_stopping_patience": 2, "max_steps": 12,
        "learning_rate": 1.0, "lora": None,
    }  # fmt: skip
    whole = bench.summary(bench.done(bench.action("sft", **params)))
    assert whole["stopped_early"]
    assert whole["kept_step"] == whole["steps"] - 2
    stop_at = whole["steps"] - 1
    summary = _check(bench, "sft", Watcher(stop_at=stop_at), **params)
    assert summary["kept_step"] == whole["kept_step"]


@pytest.mark.parametrize("reference", ["start", "base"])
@pytest.mark.parametrize(
    "op", ["dpo", *(pytest.param(op, marks=pytest.mark.slow) for op in ("kto", "grpo", "rloo"))]
)
def test_going_on_from_an_adapter(bench: Bench, op: str, reference: str) -> None:
    start = bench.done(bench.action("sft"))["adapter"]
    _check(bench, op, Watcher(stop_at=2), ports={"adapter": start}, reference=reference, beta=0.5)


def test_two_interruptions(bench: Bench) -> None:
    action = bench.action("sft", max_steps=6)
    whole = bench.done(action)
    first = bench.interrupted(action, Watcher(stop_at=2))
    watcher = Watcher(stop_at=4)
    with pytest.raises(Stopped):
        bench.outcome(action, watcher, first)
    resumed = bench.done(action, checkpoint=watcher.saves[-1][1])
    assert weights_of(resumed) == weights_of(whole)
    assert bench.summary(resumed)["resumed_from"] == [2, 4]


def test_a_checkpoint_holds_no_path_and_no_arguments(bench: Bench, tmp_path: Path) -> None:
    tree = bench.blobs.tree(bench.interrupted(bench.action("sft"), Watcher(stop_at=1)))
    names = {path.name for path in tree.rglob("*")}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "flowmesh.json", "optimizer.pt",
        "rng_state.pth", "scheduler.pt", "trainer_state.json",
    }  # fmt: skip
    assert str(bench.root) not in (tree / "trainer_state.json").read_text()


def test_no_checkpoint_of_the_last_step(bench: Bench) -> None:
    watcher = Watcher()
    bench.done(bench.action("sft", checkpoint_steps=2), watcher=watcher)
    assert [step for step, _ in watcher.saves] == [2]


def test_a_stop_at_the_last_step_comes_too_late(bench: Bench) -> None:
    watcher = Watcher(stop_at=4)
    bench.done(bench.action("sft"), watcher=watcher)
    assert watcher.saves == []


def test_youngs_rule() -> None:
    """2 s a checkpoint and an interruption an hour: sqrt(2 * 2 * 3600)."""
    assert interval_s(2.0, 1.0) == 120.0
    assert interval_s(2.0, 4.0) == 60.0


def test_automatic_checkpoints_follow_the_rate(bench: Bench) -> None:
    watcher = Watcher()
    watcher.interruptions_per_hour = 1e12
    bench.done(bench.action("sft", rows_for("sft")), watcher=watcher)
    assert [step for step, _ in watcher.saves] == [1, 2, 3]
