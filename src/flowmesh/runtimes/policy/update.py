"""An update: steps of AdamW on roll-outs, each a pure function of the state before it.

Everything that a step reads is either in `Prepared`, which is computed once with the
starting weights, or in the weights and the optimisers. So an update that goes on from a
checkpoint of these ends in the same bytes as one that was never interrupted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmesh.operators.policy import PolicyUpdateParams
from flowmesh.runtimes.policy.nets import Batch, Critic, Network, Policy, asking
from flowmesh.runtimes.policy.objective import (
    Judged,
    clipped_surrogate,
    estimate,
    kl_k3,
    lengths_mask,
    token_shares,
    value_losses,
)
from flowmesh.runtimes.policy.rollouts import Rollout
from flowmesh.runtimes.training.refused import Diverged


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known of the roll-outs before the first step: `[rows, longest completion]` each.

    Attributes:
        old: log-probabilities of the tokens when they were drawn.
        advantages: of each token.
        reference: log-probabilities by the reference, or None if nothing asks for them.
        returns, values, steps: of the value model, see `objective.Estimate`; None without one.
    """

    old: Tensor
    advantages: Tensor
    reference: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None
    steps: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name, those that are there."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(slots=True)
class Figures:
    """What one step measured, as means over the tokens of its batch.

    None where it has no such figure, or, of `kl`, where it is beyond all floats.
    """

    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float | None = None
    kl: float | None = None
    clip_fraction: float = 0.0
    entropy: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0


class Update:
    """The networks, their optimisers and the roll-outs of one `policy_update`."""

    def __init__(
        self,
        params: PolicyUpdateParams,
        rollouts: Sequence[Rollout],
        policy: Policy,
        critic: Critic | None = None,
    ) -> None:
        self.params, self.rollouts = params, rollouts
        self.policy, self.critic = policy, critic
        self.lengths = torch.tensor([len(one.completion) for one in rollouts])
        self.optimisers = {"policy": _adamw(policy, params.learning_rate, params.weight_decay)}
        if critic is not None:
            rate = params.value_learning_rate or params.learning_rate
            self.optimisers["value"] = _adamw(critic, rate, params.weight_decay)

    @property
    def networks(self) -> dict[str, Network]:
        found: dict[str, Network] = {"policy": self.policy}
        return found if self.critic is None else found | {"value": self.critic}

    @property
    def steps(self) -> int:
        batches = math.ceil(len(self.rollouts) / self.params.batch_size)
        return self.params.num_iterations * batches

    @property
    def old_known(self) -> bool:
        """Whether the roll-outs say how likely they were: what they say is for temperature 1."""
        given = all(one.logprobs is not None for one in self.rollouts)
        return given and self.params.temperature == 1

    @property
    def needs_reference(self) -> bool:
        weight = self.params.beta if self.critic is None else self.params.kl_coef
        return weight > 0

    def rows_of(self, step: int) -> list[int]:
        """The roll-outs of a step, counted from 0: each iteration has an order of its own."""
        batch = self.params.batch_size
        iteration, number = divmod(step, math.ceil(len(self.rollouts) / batch))
        order = np.random.default_rng([self.params.seed, iteration])
        chosen = order.permutation(len(self.rollouts))[number * batch : (number + 1) * batch]
        return [int(row) for row in chosen]

    def prepare(
        self, reference: Policy | None = None, end_tokens: frozenset[int] = frozenset()
    ) -> Prepared:
        """Ask the starting weights, and the reference if the objective has one.

        Args:
            reference: a policy other than the one that is trained.
            end_tokens: what a completion ends with, for `missing_eos_penalty`.

        Raises MemoryError.
        """
        old = self._given() if self.old_known else self._asked(self.policy)
        told = self._reference(reference) if self.needs_reference else None
        mask = lengths_mask(self.lengths, old.shape[1])
        if self.critic is None:
            signals = torch.tensor([one.signal for one in self.rollouts])
            return Prepared(old, signals[:, None] * mask, told)
        return self._estimated(self.critic, old, told, end_tokens)

    def _estimated(
        self, critic: Critic, old: Tensor, told: Tensor | None, end_tokens: frozenset[int]
    ) -> Prepared:
        params = self.params
        penalties = torch.zeros_like(old)
        if told is not None:
            k1 = params.kl_estimator == "k1"
            penalties = params.kl_coef * (old - told if k1 else kl_k3(old, told))
        judged = Judged(self._scores(end_tokens), penalties, self._values(critic), self.lengths)
        found = estimate(
            judged, gamma=params.gamma, lam=params.lam, whiten=params.whiten_advantages
        )
        return Prepared(old, found.advantages, told, found.returns, found.values, found.steps)

    def _scores(self, end_tokens: frozenset[int]) -> Tensor:
        penalty = self.params.missing_eos_penalty or 0.0
        scores = [
            one.signal - (0.0 if one.completion[-1] in end_tokens else penalty)
            for one in self.rollouts
        ]
        return torch.tensor(scores)

    def _given(self) -> Tensor:
        found = torch.zeros(len(self.rollouts), int(self.lengths.max()))
        for row, one in enumerate(self.rollouts):
            assert one.logprobs is not None, row
            found[row, : len(one.logprobs)] = torch.tensor(one.logprobs)
        return found

    def _reference(self, reference: Policy | None) -> Tensor:
        if reference is not None:
            return self._asked(reference)
        return self._asked(self.policy, base=self.params.reference == "base")

    def _asked(self, policy: Policy, *, base: bool = False) -> Tensor:
        found = torch.zeros(len(self.rollouts), int(self.lengths.max()))
        with asking(policy, base=base):
            for rows, batch in self._micro(range(len(self.rollouts)), policy.device):
                logprobs, _ = policy.logprobs(batch, self.params.temperature)
                found[rows, : batch.width] = logprobs.cpu()
        return found.masked_fill(~lengths_mask(self.lengths, found.shape[1]), 0)

    def _values(self, critic: Critic) -> Tensor:
        width = int(self.lengths.max())
        found = torch.zeros(len(self.rollouts), width)
        with asking(critic):
            for rows, batch in self._micro(range(len(self.rollouts)), critic.device):
                values = critic.values(batch).cpu()[:, :width]
                found[rows, : values.shape[1]] = values
        return found

    def _micro(
        self, rows: Sequence[int], device: torch.device
    ) -> Iterator[tuple[list[int], Batch]]:
        size = self.params.per_device_train_batch_size
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            yield part, Batch.of([self.rollouts[row] for row in part], device)

    def step(self, rows: Sequence[int], prepared: Prepared, *, number: int) -> Figures:
        """One step of the optimisers on some of the roll-outs.

        Raises Diverged, with the weights as they were before; MemoryError.
        """
        figures = Figures()
        for network in self.networks.values():
            network.model.zero_grad(set_to_none=True)
        self._learn_policy(rows, prepared, figures)
        if self.critic is not None:
            self._learn_values(self.critic, rows, prepared, figures)
        norms = [self._clip(network) for network in self.networks.values()]
        figures.grad_norm = norms[0]
        self._check(figures.loss, norms, number)
        for optimiser in self.optimisers.values():
            optimiser.step()
        return figures

    def _learn_policy(self, rows: Sequence[int], prepared: Prepared, figures: Figures) -> None:
        params, device = self.params, self.policy.device
        lengths = self.lengths[list(rows)]
        shares = dict(zip(rows, self._shares(lengths).tolist(), strict=True))
        total = int(lengths.sum())
        divergence = 0.0
        high = params.epsilon if params.epsilon_high is None else params.epsilon_high
        for part, batch in self._micro(rows, device):
            cut = slice(None, batch.width)
            logprobs, entropies = self.policy.logprobs(batch, params.temperature)
            mask = lengths_mask(self.lengths[part], batch.width).to(device)
            # Padding has the ratio 1: if it were infinite, zero times it would be no number.
            logprobs = logprobs.masked_fill(~mask, 0)
            share = torch.tensor([shares[row] for row in part], device=device)[:, None] * mask
            found = clipped_surrogate(
                logprobs,
                prepared.old[part, cut].to(device),
                prepared.advantages[part, cut].to(device),
                params.epsilon,
                high,
            )
            policy_loss = _sum(found.loss, share)
            loss = policy_loss
            if prepared.reference is not None:
                kl = kl_k3(logprobs, prepared.reference[part, cut].to(device))
                if params.beta > 0:
                    if params.use_bias_correction_kl:
                        kl = kl * found.ratio
                    loss = loss + params.beta * _sum(kl, share)
                divergence += float(_sum(kl.detach(), mask))
            loss.backward()
            figures.loss += float(loss.detach())
            figures.policy_loss += float(policy_loss.detach())
            figures.clip_fraction += float(_sum(found.clipped.float(), mask)) / total
            figures.entropy += float(_sum(entropies, mask)) / total
            figures.tokens += int(batch.mask.sum())
        if prepared.reference is not None and math.isfinite(divergence):
            figures.kl = divergence / total

    def _shares(self, lengths: Tensor) -> Tensor:
        # PPO takes the mean over tokens, as TRL's trainer did.
        loss_type = self.params.loss_type if self.critic is None else "dapo"
        return token_shares(lengths, loss_type, self.params.max_completion_length)

    def _learn_values(
        self, critic: Critic, rows: Sequence[int], prepared: Prepared, figures: Figures
    ) -> None:
        params, device = self.params, critic.device
        before, returns, steps = prepared.values, prepared.returns, prepared.steps
        assert before is not None and returns is not None and steps is not None
        total = float(steps[list(rows)].sum())
        mean = 0.0
        for part, batch in self._micro(rows, device):
            cut = slice(None, min(batch.width + 1, before.shape[1]))
            losses = value_losses(
                critic.values(batch)[:, cut],
                before[part, cut].to(device),
                returns[part, cut].to(device),
                params.cliprange_value,
            )
            loss = _sum(losses, steps[part, cut].to(device)) / total
            (params.vf_coef * loss).backward()
            mean += float(loss.detach())
        figures.value_loss = mean
        figures.loss += params.vf_coef * mean

    def _clip(self, network: Network) -> float:
        limit = math.inf if self.params.max_grad_norm is None else self.params.max_grad_norm
        gradients = network.trained().values()
        return float(torch.nn.utils.clip_grad_norm_(gradients, limit))

    def _check(self, loss: float, norms: Sequence[float], number: int) -> None:
        figures = {"loss": loss, "norm of the gradient": sum(norms)}
        for name, value in figures.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"the {name} is {value} at step {number + 1} of {self.steps}, with the "
                    f"learning rate {self.params.learning_rate:g}: the update has diverged; lower "
                    "`learning_rate`, and look at the roll-outs' rewards for outliers"
                )


def _sum(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum()


def _adamw(network: Network, rate: float, decay: float) -> Any:
    return torch.optim.AdamW(
        list(network.trained().values()), lr=rate, weight_decay=decay, foreach=False
    )
