"""On roll-outs that TRL's last PPO trainer drew, our losses are the ones that it found.

TRL has had no PPO trainer since 1.13. This installs 1.12 into a directory of its own, where
nothing but one process sees it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmesh.operators.policy import PolicyUpdateParams
from flowmesh.runtimes.policy.nets import Source, load_critic, load_policy
from flowmesh.runtimes.policy.rollouts import Rollout
from flowmesh.runtimes.policy.update import Update
from support import trl_ppo_settings as theirs
from support.rollouts import make_brief
from support.tiny_model import make_tiny

SCRIPT = Path(theirs.__file__).with_name("trl_ppo.py")
NO_INDEX = ("No matching distribution", "Could not find a version", "Connection", "resolve")


def _install(target: Path) -> None:
    """TRL 1.12 without what it needs, which is here. Skips where no index can be reached."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(target), "trl==1.12.0"], capture_output=True, text=True
    )
    if done.returncode and any(words in done.stderr for words in NO_INDEX):
        pytest.skip(f"pip reaches no index with trl 1.12.0: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr


def _recorded(model: Path, out: Path, library: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(model), str(out)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((out / "recorded.json").read_text())
    return found


def _rollouts(recorded: dict[str, Any]) -> list[Rollout]:
    found = []
    for row, tokens in enumerate(recorded["sequences"]):
        prompt, completion = tokens[: recorded["start"]], tokens[recorded["start"] :]
        while prompt[0] == recorded["pad"]:
            prompt = prompt[1:]
        while completion[-1] == recorded["pad"]:
            completion = completion[:-1]
        assert recorded["pad"] not in completion, "the draw holds its own padding: another seed"
        logprobs = tuple(recorded["logprobs"][row][: len(completion)])
        found.append(Rollout(tuple(prompt), tuple(completion), recorded["scores"][row], logprobs))
    return found


@pytest.mark.slow
def test_losses_are_those_of_the_last_ppo_trainer(tmp_path: Path) -> None:
    """Policy and value loss of each mini-batch, over all epochs and steps."""
    model = make_brief(make_tiny(tmp_path / "model"))
    out = tmp_path / "out"
    out.mkdir()
    _install(tmp_path / "library")
    recorded = _recorded(model, out, tmp_path / "library")
    rollouts = _rollouts(recorded)
    assert len({len(one.completion) for one in rollouts}) > 2, "lengths do not vary"

    settings = theirs.SETTINGS
    params = PolicyUpdateParams(
        method="ppo",
        lora=None,
        per_device_train_batch_size=len(rollouts),
        max_grad_norm=None,
        epsilon=settings["cliprange"],
        **{name: settings[name] for name in theirs.SAME},
    )
    policy = load_policy(Source(model, "base"), None, seed=0, half=False)
    critic = load_critic(Source(out / "value", "value"), None, policy, seed=0)
    update = Update(params, rollouts, policy, critic)
    prepared = update.prepare(end_tokens=frozenset({recorded["end"]}))

    half = len(rollouts) // settings["num_mini_batches"]
    parts = [o[n : n + half] for o in recorded["orders"] for n in range(0, len(o), half)]
    ours = [update.step(rows, prepared, number=n) for n, rows in enumerate(parts)]
    assert len(ours) == len(recorded["losses"]) == 6
    for figures, found in zip(ours, recorded["losses"], strict=True):
        total = found["policy"] + params.vf_coef * found["value"]
        assert figures.policy_loss == pytest.approx(found["policy"], abs=1e-4)
        assert figures.value_loss == pytest.approx(found["value"], abs=1e-4)
        assert figures.loss == pytest.approx(total, abs=1e-4)
        assert figures.clip_fraction == pytest.approx(found["clipped"], abs=1e-6)
    assert recorded["losses"][-1]["clipped"] > 0.1, "clipping was not compared"
    ended = {one.completion[-1] == recorded["end"] for one in rollouts}
    assert ended == {True, False}, "completions with and without end were not compared"
