"""What sets the six operators apart, as a table; everything else they share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trl

from flowmesh.runtimes.training import settings


@dataclass(frozen=True, slots=True)
class Kind:
    """One operator's trainer.

    Attributes:
        trainer, config: TRL's classes.
        more: the arguments of the configuration that only this one takes.
        scores: what is trained is a model with a head of one number.
        draws: it writes completions while it trains, and is rewarded for them.
        least_batch: rows that it needs at once; KTO compares them with each other.
        compares: it has a reference, from which an adapter that goes on can be told apart.
    """

    trainer: Any
    config: Any
    more: Callable[[Any, int], dict[str, Any]]
    scores: bool = False
    least_batch: int = 1
    draws: bool = False
    compares: bool = False


KINDS: Mapping[str, Kind] = {
    "sft": Kind(trl.SFTTrainer, trl.SFTConfig, settings.sft),
    "dpo": Kind(trl.DPOTrainer, trl.DPOConfig, settings.dpo, compares=True),
    "kto": Kind(trl.KTOTrainer, trl.KTOConfig, settings.kto, least_batch=2, compares=True),
    "reward_model": Kind(trl.RewardTrainer, trl.RewardConfig, settings.reward_model, scores=True),
    "grpo": Kind(trl.GRPOTrainer, trl.GRPOConfig, settings.grpo, draws=True, compares=True),
    "rloo": Kind(trl.RLOOTrainer, trl.RLOOConfig, settings.rloo, draws=True, compares=True),
}
