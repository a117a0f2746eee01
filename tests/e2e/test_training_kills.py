"""Trainings whose worker or server is killed end in the bytes of those that nobody disturbed."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flowmesh.sdk.client import Client
from flowmesh.sdk.runs import Run
from support.fabric import Fabric, fabric, until
from support.training_runs import PATIENCE_S, digests, settled, step_of, submit

pytestmark = pytest.mark.model

#: Steps of a training, and between its checkpoints; it is killed in its first third.
STEPS, EVERY = 120, 5
COUNT = 12
#: A busy machine may be late by so much.
SLACK_S = 10.0
DRAWS = {"num_generations": 2, "max_completion_length": 6, "function": "scored"}


@pytest.fixture(scope="module")
def stormy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    """Where workers are killed; what nobody disturbs runs on `trainers`, in another home."""
    with fabric(tmp_path_factory.mktemp("stormy") / "home", workers=2) as running:
        yield running


@dataclass(frozen=True)
class Training:
    """A training by one operator; each call of its reward function leaves a mark."""

    op: str
    model: Path
    folder: Path
    every: int = EVERY
    seed: int = 0

    @property
    def draws(self) -> bool:
        return self.op in ("grpo", "rloo")

    @property
    def calls(self) -> Path:
        return self.folder / "calls"

    def attempts(self) -> list[int]:
        """Steps of each attempt: the rewards of a step are asked for once, by one process."""
        written = self.calls.read_text().split() if self.calls.exists() else []
        return list(Counter(written).values())

    def count(self) -> int:
        return sum(self.attempts())

    def params(self) -> dict[str, Any]:
        shared: dict[str, Any] = {"learning_rate": 1e-3, "per_device_train_batch_size": 4}
        shared |= {"checkpoint_steps": self.every, "seed": self.seed}
        if self.op == "policy_update":
            # 3 steps go through the 12 roll-outs once.
            return {**shared, "num_iterations": STEPS // 3, "rollouts": "${inputs.rows}"}
        shared |= {"max_steps": STEPS, "logging_steps": 20, "data": "${inputs.rows}"}
        if not self.draws:
            return shared
        code = (
            "import os\n\n\n"
            "def scored(completions, **more):\n"
            f"    with open({str(self.calls)!r}, 'a') as calls:\n"
            "        calls.write(f'{os.getpid()}\\n')\n"
            "    return [text.count('e') - len(text) / 10 for text in completions]\n"
        )
        (self.folder / "rewards.py").write_text(code)
        return {**shared, **DRAWS, "file": str(self.folder / "rewards.py")}

    def rows(self) -> list[dict[str, Any]]:
        return [self.row(n) for n in range(COUNT)]

    def row(self, n: int) -> dict[str, Any]:
        question, good, bad = f"What is {n}?", f" The mountain {n}.", f" no {n}"
        match self.op:
            case "sft":
                return {"prompt": question, "completion": good}
            case "dpo" | "reward_model":
                return {"prompt": question, "chosen": good, "rejected": bad}
            case "kto":
                return {"prompt": question, "completion": good, "label": n % 2 == 0}
            case "policy_update":
                tokens = {"prompt_tokens": [n + 3, 50], "completion_tokens": [n + 9, 60, 2]}
                return {**tokens, "advantage": (-1.0) ** n}
            case _:
                return {"prompt": question}

    def start(self, client: Client) -> Run:
        steps = {"tune": {"op": self.op, "model": "${models.chat}", **self.params()}}
        outputs = {name: f"tune.{name}" for name in ("adapter", "summary", "loss_curve")}
        return submit(client, self.model, steps, outputs, rows=self.rows())


def saved_step(run: Run) -> int:
    seen = step_of(run, "tune").progress
    return seen.saved_step if seen is not None else 0


def resumed_from(run: Run) -> list[int]:
    settled(run)
    (summary,) = run.output("summary").rows()
    assert summary["steps"] == STEPS
    found: list[int] = summary["resumed_from"]
    return found


def made(run: Run) -> dict[str, str]:
    """What follows from the action alone: the summary holds times."""
    found = digests(settled(run))
    return {name: found[name] for name in ("adapter", "loss_curve")}


def busy_worker(client: Client) -> int:
    """The process of the one local worker that has something to do."""
    (busy,) = [one.worker for one in client.workers() if one.running]
    return int(busy.split("-")[2])


OPERATORS = ("dpo", "kto", "reward_model", "grpo", "rloo", "policy_update")
SLOW = [pytest.param(op, marks=pytest.mark.slow) for op in OPERATORS]


@pytest.mark.parametrize("op", ["sft", *SLOW])
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(
    trainers: Fabric, stormy: Fabric, tiny_model: Path, tmp_path: Path, op: str
) -> None:
    training = Training(op, tiny_model, tmp_path)
    client = stormy.client(op)
    run = training.start(client)
    target = Random(f"kill {op}").randrange(1, STEPS // 3)
    until(lambda: saved_step(run) >= target, f"a checkpoint of step {target}", PATIENCE_S)
    stormy.kill_worker(busy_worker(client))
    known = saved_step(run)
    # Side by side, unless both would leave their marks in one file.
    calm = None if training.draws else training.start(trainers.client(op))
    (went_on_at,) = resumed_from(run)
    assert known <= went_on_at < STEPS
    assert went_on_at % EVERY == 0
    if training.draws:
        first, second = training.attempts()
        assert (first >= went_on_at, second) == (True, STEPS - went_on_at)
    assert made(run) == made(calm or training.start(trainers.client(op)))


@pytest.mark.slow
def test_a_training_does_not_feel_that_the_server_is_killed(
    trainers: Fabric, stormy: Fabric, tiny_model: Path, tmp_path: Path
) -> None:
    training = Training("rloo", tiny_model, tmp_path, seed=1)
    run = training.start(stormy.client("server"))
    target = Random("server").randrange(1, STEPS // 3)
    until(lambda: saved_step(run) >= target, f"a checkpoint of step {target}", PATIENCE_S)
    stormy.restart_server()
    assert resumed_from(run) == []
    assert training.count() == STEPS
    assert made(run) == made(training.start(trainers.client("server")))


@pytest.mark.slow
def test_a_worker_that_is_asked_to_leave_saves_its_last_step(
    trainers: Fabric, stormy: Fabric, tiny_model: Path, tmp_path: Path
) -> None:
    """It is the only checkpoint, and no step is done twice."""
    training = Training("grpo", tiny_model, tmp_path, every=STEPS, seed=2)
    client = stormy.client("leaving")
    run = training.start(client)
    target = Random("leaving").randrange(1, STEPS // 3)
    until(lambda: training.count() >= target, f"step {target}", PATIENCE_S)
    os.kill(busy_worker(client), signal.SIGTERM)
    (went_on_at,) = resumed_from(run)
    assert target <= went_on_at < STEPS
    assert training.count() == STEPS
    assert made(run) == made(training.start(trainers.client("leaving")))


@pytest.mark.slow
def test_a_cancelled_training_goes_on_when_it_is_asked_for_again(
    trainers: Fabric, stormy: Fabric, tiny_model: Path, tmp_path: Path
) -> None:
    training = Training("grpo", tiny_model, tmp_path, every=STEPS, seed=3)
    client = stormy.client("cancelling")
    run = training.start(client)
    target = Random("cancelling").randrange(1, STEPS // 3)
    until(lambda: training.count() >= target, f"step {target}", PATIENCE_S)
    began_s = time.monotonic()
    assert run.cancel(checkpoint=True).status == "cancelled"
    until(lambda: not any(one.running for one in client.workers()), "idle workers", PATIENCE_S)
    assert time.monotonic() - began_s < 5 + SLACK_S
    again = training.start(client)
    (went_on_at,) = resumed_from(again)
    assert target <= went_on_at < STEPS
    assert training.count() == STEPS
    assert made(again) == made(training.start(trainers.client("cancelling")))
