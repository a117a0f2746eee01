"""The objective, as functions of tensors: no model, no state.

Rows are roll-outs and columns are the tokens of their completions, padded at the end. A
mean is never taken directly: each term is multiplied by its share of the whole mini-batch,
so that the parts of a mini-batch may be computed one after another and added up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_WHITEN_FLOOR = 1e-8


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `tokens` `[rows, tokens]`, and the entropies there, without gradient.

    Args:
        logits: `[rows, tokens, vocabulary]`, each for the token of its own column.
        temperature: what the logits are divided by.
    """
    logs = torch.log_softmax(logits.float() / temperature, dim=-1)
    with torch.no_grad():
        entropies = -(logs.exp() * logs).sum(-1)
    return logs.gather(-1, tokens[..., None])[..., 0], entropies


def lengths_mask(lengths: Tensor, width: int) -> Tensor:
    """`[rows, width]`, true for the first `lengths[row]` columns."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def token_shares(lengths: Tensor, loss_type: str, max_completion_length: int) -> Tensor:
    """`[rows]`: what a token of each row counts for in the loss of its mini-batch.

    `grpo` gives each row the same weight, `dapo` each token, and `dr_grpo` each token by a
    constant, so that long completions are not favoured. As TRL's GRPO trainer has them.
    """
    rows = float(lengths.numel())
    if loss_type == "grpo":
        return 1.0 / (lengths.float() * rows)
    total = float(lengths.sum()) if loss_type == "dapo" else rows * max_completion_length
    return torch.full_like(lengths, 1.0 / total, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """For each token: its loss, the ratio of probabilities, and whether that was clipped."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def clipped_surrogate(
    logprobs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float
) -> Surrogate:
    """The clipped surrogate of PPO, `[rows, tokens]`. Source: arXiv:1707.06347, equation 7.

    Args:
        logprobs, old: of each token, by the policy now and when it was drawn.
        advantages: of each token.
        low, high: the ratio of probabilities is held within `[1 - low, 1 + high]`.
    """
    ratio = torch.exp(logprobs - old)
    held = ratio.clamp(1 - low, 1 + high)
    clipped = ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))
    return Surrogate(-torch.min(ratio * advantages, held * advantages), ratio, clipped)


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence to a reference for each token: unbiased, never negative.

    Source: http://joschu.net/blog/kl-approx.html, k3.
    """
    log_ratio = reference - logprobs
    return torch.exp(log_ratio) - log_ratio - 1


def value_losses(values: Tensor, before: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each value, clipped like the policy's: the worse one counts."""
    held = torch.max(torch.min(values, before + clip), before - clip)
    return 0.5 * torch.max((values - returns) ** 2, (held - returns) ** 2)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What generalised advantage estimation gives, all `[rows, tokens]`.

    `steps` is true where there is a value to learn: a roll-out that ended before the longest
    has one more of them than tokens, behind its last token, and gets its reward there. It is
    so in TRL's trainer, whose window is as wide as the longest completion.
    """

    advantages: Tensor
    returns: Tensor
    values: Tensor
    steps: Tensor


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of the roll-outs before an update by PPO.

    `scores` `[rows]` are the rewards; `penalties` `[rows, tokens]` are taken from the reward
    of each token; `values` `[rows, tokens]`, of the state before each token, and `lengths`.
    """

    scores: Tensor
    penalties: Tensor
    values: Tensor
    lengths: Tensor


def estimate(judged: Judged, *, gamma: float, lam: float, whiten: bool) -> Estimate:
    """Generalised advantage estimation. Source: arXiv:1506.02438; details as TRL 1.12 has them."""
    lengths = judged.lengths
    width = judged.values.shape[1]
    tokens, steps = lengths_mask(lengths, width), lengths_mask(lengths + 1, width)
    values = judged.values.masked_fill(~steps, 0)
    rewards = -judged.penalties.masked_fill(~tokens, 0)
    rows = torch.arange(len(lengths), device=lengths.device)
    ends = lengths.clamp(max=width - 1)
    rewards = rewards.index_put((rows, ends), judged.scores, accumulate=True)
    later = torch.zeros_like(judged.scores)
    found = []
    for step in reversed(range(width)):
        following = values[:, step + 1] if step + 1 < width else torch.zeros_like(later)
        later = rewards[:, step] + gamma * following - values[:, step] + gamma * lam * later
        found.append(later)
    raw = torch.stack(found[::-1], dim=1)
    advantages = whitened(raw, tokens) if whiten else raw
    return Estimate(advantages.masked_fill(~tokens, 0), raw + values, values, steps)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """With mean 0 and variance 1 (with n - 1) over `mask`; one value alone only loses its mean."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / (count - 1).clamp(min=1)
    return (values - mean) * torch.rsqrt(variance + _WHITEN_FLOOR)
