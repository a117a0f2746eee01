"""Run by itself, with TRL 1.12 first on the path: its PPO trainer on the tiny model, recorded.

    python trl_ppo.py MODEL OUT

Writes into OUT: `value/`, the value model it began with; `recorded.json`, its roll-outs with
all that it made of them, and the losses and rows of every mini-batch. Nothing of FlowMesh is
imported: this is a run of theirs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_ppo_settings import RESPONSE_TOKENS, ROWS, SETTINGS


def record(seen: dict[str, Any]) -> None:
    """Have the module's own functions tell what passes through them."""
    means: list[float] = []
    mean, permutation, rewarded = (
        ppo_trainer.masked_mean,
        np.random.permutation,
        ppo_trainer.get_reward,
    )
    generate = ppo_trainer.batch_generation

    def masked_mean(*args: Any, **more: Any) -> Any:
        found = mean(*args, **more)
        means.append(float(found))
        # Of each mini-batch: value loss, its clipped part, policy loss, its clipped part.
        if len(seen["orders"]) and len(means) == 4:
            value, _, policy, clipped = means
            seen["losses"].append({"policy": policy, "value": 0.5 * value, "clipped": clipped})
            means.clear()
        return found

    def permuted(count: int) -> Any:
        found = permutation(count)
        if not seen["orders"]:
            means.clear()  # those before are of whitening
        seen["orders"].append(found.tolist())
        return found

    def get_reward(model: Any, sequences: Any, pad: int, start: int) -> Any:
        found = rewarded(model, sequences, pad, start)
        if model is seen["reward_model"]:
            seen["scores"] += found[1].tolist()
            seen["sequences"] += sequences.tolist()
        return found

    def batch_generation(*args: Any, **more: Any) -> Any:
        found = generate(*args, **more)
        start = args[1].shape[1]
        logs = torch.log_softmax(found[1].float(), -1)
        tokens = found[0][:, start:, None]
        seen["logprobs"] += logs.gather(-1, tokens)[..., 0].tolist()
        seen["start"] = start
        return found

    ppo_trainer.masked_mean = masked_mean
    ppo_trainer.get_reward = get_reward
    ppo_trainer.batch_generation = batch_generation
    np.random.permutation = permuted


def scorers(folder: str, pad: int) -> list[Any]:
    """A value model and a reward model, whose heads are random."""
    found = []
    for _ in range(2):
        scorer = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, pad_token_id=pad
        )
        torch.nn.init.normal_(scorer.score.weight, std=0.2)
        found.append(scorer)
    return found


def prompts() -> Dataset:
    chance = np.random.default_rng(5)
    lengths = [int(chance.integers(3, 8)) for _ in range(ROWS)]
    rows = [{"input_ids": chance.integers(3, 400, length).tolist()} for length in lengths]
    return Dataset.from_list(rows)


def config(out: Path) -> PPOConfig:
    return PPOConfig(
        output_dir=str(out / "trl"),
        # One step for each mini-batch: with accumulation, accelerate would hold steps back.
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        total_episodes=ROWS,
        response_length=RESPONSE_TOKENS,
        temperature=1.0,
        stop_token="eos",
        report_to=[],
        use_cpu=True,
        bf16=False,
        num_sample_generations=0,
        save_strategy="no",
        seed=7,
        disable_tqdm=True,
        gradient_checkpointing=False,
        **SETTINGS,
    )


def main(folder: str, out: Path) -> None:
    assert trl.__version__ == "1.12.0", trl.__version__
    set_seed(11)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = "<|endoftext|>"
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2)
    )
    value, reward = scorers(folder, tokenizer.pad_token_id)
    value.save_pretrained(out / "value")
    seen: dict[str, Any] = {
        name: [] for name in ("orders", "losses", "scores", "sequences", "logprobs")
    }
    seen["reward_model"] = reward
    record(seen)
    PPOTrainer(
        args=config(out),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=prompts(),
    ).train()
    del seen["reward_model"]
    seen |= {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}
    (out / "recorded.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
