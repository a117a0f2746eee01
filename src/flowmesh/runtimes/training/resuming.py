"""What TRL's trainers lack for a resume that ends in the same bytes."""

from typing import Any

import torch
import transformers
from trl.trainer.utils import RepeatSampler

from flowmesh.runtimes.training.checkpoints import Keeper


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """The order of prompts in each epoch, also in that in which a training goes on.

    TRL's sampler draws one order after the other; after a resume it would begin with that of
    the first epoch again. The orders are those of TRL.
    """

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=self.generator)


class Resumable:
    """Put before a trainer's class: checkpoints are the keeper's business, orders the epoch's."""

    keeper: Keeper

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        assert isinstance(self, transformers.Trainer), self
        self.keeper.save(self, model)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        if not isinstance(sampler, RepeatSampler):
            return sampler
        return EpochSampler(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )
