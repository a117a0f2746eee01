"""Score given continuations of a prompt and pick the likeliest.

Every pass is over one task alone, so no result depends on a batch. Little is lost: on a
CPU, reading prompts gains next to nothing from company.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from flowmesh.runtimes.prefixes import Prompt
from flowmesh.runtimes.weights import BadPrompt, BrokenModel, Weights

#: Most memory for the logits of the choices that are scored together.
_LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest choice, and the probability of each, rounded to six places.

    `read_tokens`: tokens of all choices, which were read beside the prompt's; `cached_tokens` of
    the prompt's were remembered.
    """

    text: str
    probabilities: dict[str, float]
    read_tokens: int
    cached_tokens: int = field(default=0, compare=False)


def choose(
    weights: Weights, prompt: tuple[int, ...], choices: Sequence[str], *, by_length: bool
) -> Choice:
    """Compare `choices` as continuations of a prompt, by total log-probability or per token.

    A softmax over the scores gives the probabilities. Equal scores go to the earlier choice.
    Raises BadPrompt, BrokenModel, MemoryError.
    """
    tokens = [weights.tokens(choice) for choice in choices]
    _check(weights, prompt, choices, tokens)
    read = weights.read(prompt)
    scores = np.array(_scores(weights, read, tokens))
    if np.isnan(scores).any():
        raise BrokenModel
    if by_length:
        scores /= [len(one) for one in tokens]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    probabilities = [round(float(share), 6) for share in shares]
    return Choice(
        choices[int(np.argmax(scores))],
        dict(zip(choices, probabilities, strict=True)),
        sum(map(len, tokens)),
        read.remembered,
    )


def _check(
    weights: Weights,
    prompt: tuple[int, ...],
    choices: Sequence[str],
    tokens: Sequence[Sequence[int]],
) -> None:
    for number, choice in enumerate(choices):
        if choice in choices[:number]:
            raise BadPrompt(
                f"choices {choices.index(choice) + 1} and {number + 1} are both {choice!r:.80} "
                "in this row; they must differ"
            )
        if not tokens[number]:
            raise BadPrompt(f"choice {number + 1} is empty in this row and can not be scored")
    longest = max(map(len, tokens))
    if len(prompt) + longest > weights.context:
        raise BadPrompt(
            f"prompt and longest choice have {len(prompt)} + {longest} tokens but the model's "
            f"context holds {weights.context}; shorten the prompt"
        )


def _scores(weights: Weights, prompt: Prompt, tokens: Sequence[Sequence[int]]) -> list[float]:
    """The sum of the log-probabilities of each choice's tokens behind the prompt."""
    first = torch.log_softmax(prompt.logits[-1].double(), dim=-1)
    scores = [float(first[one[0]]) for one in tokens]
    longer = [number for number, one in enumerate(tokens) if len(one) > 1]
    if not longer:
        return scores
    width = max(len(tokens[number]) for number in longer) - 1
    group = max(1, _LOGITS_BYTES // (width * first.numel() * 8))
    for at in range(0, len(longer), group):
        numbers = longer[at : at + group]
        for number, more in zip(numbers, _tails(weights, prompt, tokens, numbers), strict=True):
            scores[number] += more
    return scores


def _tails(
    weights: Weights, prompt: Prompt, tokens: Sequence[Sequence[int]], numbers: Sequence[int]
) -> list[float]:
    """The log-probability of all but the first token of some choices, in one pass.

    Choices are padded on the right: no token sees what stands behind it.
    """
    width = max(len(tokens[number]) for number in numbers) - 1
    read = [list(tokens[n][:-1]) + [0] * (width + 1 - len(tokens[n])) for n in numbers]
    start = int(prompt.cache.get_seq_length())
    positions = [list(range(start, start + width))] * len(numbers)
    logits = weights.forward(
        read, _repeated(prompt.cache, len(numbers)), positions=positions, keep=width
    )
    found = torch.log_softmax(logits.double(), dim=-1)
    return [
        sum(float(found[row, at, token]) for at, token in enumerate(tokens[number][1:]))
        for row, number in enumerate(numbers)
    ]


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    copies = DynamicCache()
    for number, layer in enumerate(cache.layers):
        shape = (rows, -1, -1, -1)
        copies.update(layer.keys.expand(shape), layer.values.expand(shape), number)
    return copies
