"""On the same roll-outs our losses are those of TRL's GRPO trainer, step after step."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmesh.runtimes.training.isolation import isolated
from flowmesh.spec.action import Artifact
from support.blobs import DirBlobs
from support.rollouts import make_brief, updated
from support.tiny_model import make_tiny

from datasets import Dataset  # isort: skip
from transformers import AutoModelForCausalLM, AutoTokenizer  # isort: skip
from trl import GRPOConfig, GRPOTrainer  # isort: skip

ITERATIONS = 4
PROMPTS = ["What is the name of the mountain?", "Which of the two roads is shorter?"]


class _Recorder(GRPOTrainer):
    """TRL's trainer, which tells what it was given and what loss it found."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: list[tuple[dict[str, Any], float, float]] = []

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        given = copy.deepcopy(inputs)
        loss = super()._compute_loss(model, inputs)
        clipped = self._metrics["train"]["clip_ratio/region_mean"][-1]
        self.seen.append((given, float(loss.detach()), clipped))
        return loss


def _reward(completions: list[str], **more: Any) -> list[float]:
    """Some number that differs from text to text: without, rounding would decide the steps."""
    return [float(sum(text.encode()) % 97) for text in completions]


def _trained(folder: Path, root: Path, **settings: Any) -> _Recorder:
    """Roll-outs and steps of TRL's trainer on the tiny model."""
    config = GRPOConfig(
        output_dir=str(root),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=10,
        max_steps=ITERATIONS,
        num_iterations=ITERATIONS,
        lr_scheduler_type="constant",
        seed=3,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=False,
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    trainer = _Recorder(
        model=AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32),
        reward_funcs=_reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS * 4]),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def _rows(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch of TRL's trainer as a table."""
    found = []
    for row in range(len(inputs["prompt_ids"])):
        tokens = {
            f"{part}_tokens": inputs[f"{part}_ids"][row][inputs[f"{part}_mask"][row] == 1].tolist()
            for part in ("prompt", "completion")
        }
        found.append({**tokens, "advantage": float(inputs["advantages"][row])})
    return found


@pytest.mark.parametrize(
    ("loss_type", "beta", "more"),
    [
        ("grpo", 0.0, {}),
        ("dapo", 0.3, {}),
        ("dapo", 0.3, {"use_bias_correction_kl": False}),
        ("dr_grpo", 0.3, {"epsilon_high": 0.3}),
        ("grpo", 0.3, {"temperature": 0.7}),
    ],
)
def test_losses_are_those_of_trl(
    tmp_path: Path, loss_type: str, beta: float, more: dict[str, Any]
) -> None:
    """From the first step, where the ratio is 1, to the last ones, where it is clipped."""
    folder = make_brief(make_tiny(tmp_path / "model"))
    settings = {"loss_type": loss_type, "beta": beta, "learning_rate": 3e-4, **more}
    with isolated():
        theirs = _trained(folder, tmp_path / "trl", **settings)
    assert theirs.seen[-1][2] > 0.1, "nothing was clipped, so clipping was not compared"
    assert len(set(theirs.seen[0][0]["completion_mask"].sum(1).tolist())) > 2

    blobs = DirBlobs(tmp_path / "blobs")
    ports = {
        "rollouts": blobs.put_table(_rows(theirs.seen[0][0])),
        "model": Artifact("tree", str(blobs.put_tree(folder))),
    }
    ours = updated(
        blobs,
        ports,
        lora=None,
        num_iterations=ITERATIONS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_completion_length=10,
        **settings,
    )
    metrics = blobs.rows(ours["metrics"])
    losses = [row["loss"] for row in metrics]
    assert losses == pytest.approx([loss for _, loss, _ in theirs.seen], abs=1e-4)
    clipped = [row["clip_fraction"] for row in metrics]
    assert clipped == pytest.approx([part for _, _, part in theirs.seen], abs=1e-6)
