"""The measures of `evaluate` on one row: by passes over it alone, or by what was written."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowmesh.runtimes.choosing import choose
from flowmesh.runtimes.prefixes import Prompt
from flowmesh.runtimes.weights import BadPrompt, BrokenModel, Weights
from flowmesh.spec.action import Usage

Row = dict[str, Any]

#: Tokens whose logits are in memory at once; whole blocks, so that a row's sums are its own.
_BLOCK_TOKENS = 64
_PLACES = 6
_MOST_EXPONENT = 700.0
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def perplexity(weights: Weights, params: Mapping[str, Any]) -> tuple[Row, Usage]:
    """How surprising a text is: behind a prompt, or from its second token on.

    The score is the mean log-probability of a token. The end of the answer is not scored.

    Raises BadPrompt, BrokenModel, MemoryError.
    """
    if "text" in params:
        both = list(weights.tokenizer(params["text"])["input_ids"])
        prompt, tokens = tuple(both[:1]), both[1:]
        if not tokens:
            raise BadPrompt("the text has less than two tokens, so there is nothing to predict")
    else:
        prompt, tokens = weights.prompt_tokens(params), weights.tokens(params["completion"])
        if not tokens:
            raise BadPrompt("the completion is empty, so there is nothing to predict")
    if len(prompt) + len(tokens) > weights.context:
        raise BadPrompt(
            f"the text has {len(prompt) + len(tokens)} tokens but the model's context holds "
            f"{weights.context}; split it"
        )
    read = weights.read(prompt)
    nll = surprise(weights, read, tokens)
    mean = nll / len(tokens)
    row = {
        "score": round(-mean, _PLACES),
        "nll": round(nll, _PLACES),
        "tokens": len(tokens),
        "perplexity": round(math.exp(min(mean, _MOST_EXPONENT)), _PLACES),
    }
    read_tokens = len(prompt) + len(tokens)
    return row, Usage(prompt_tokens=read_tokens, cached_tokens=read.remembered)


def surprise(weights: Weights, prompt: Prompt, tokens: Sequence[int]) -> float:
    """The negative log-likelihood of tokens behind a prompt, in natural-logarithm units."""
    parts = [_loglikelihood(prompt.logits, tokens[:1])]
    for start in range(0, len(tokens) - 1, _BLOCK_TOKENS):
        block = tokens[start : min(start + _BLOCK_TOKENS, len(tokens) - 1)]
        logits = weights.extend(block, prompt.cache, keep=len(block))
        parts.append(_loglikelihood(logits, tokens[start + 1 : start + 1 + len(block)]))
    nll = -math.fsum(parts)
    if math.isnan(nll):
        raise BrokenModel
    if math.isinf(nll):
        raise BadPrompt("the model rules out a token of this text: its perplexity has no number")
    return nll


def _loglikelihood(logits: torch.Tensor, tokens: Sequence[int]) -> float:
    table = torch.log_softmax(logits.double(), dim=-1)
    return math.fsum(float(table[at, token]) for at, token in enumerate(tokens))


def choice_accuracy(weights: Weights, params: Mapping[str, Any]) -> tuple[Row, Usage]:
    """Whether the likeliest of the choices is the right one. Raises as `choose` does."""
    choices, answer = params["choices"], params["answer"]
    if answer not in choices:
        raise BadPrompt(
            f"`answer` is {answer!r:.80}, which is none of the choices: {choices!r:.300}"
        )
    prompt = weights.prompt_tokens(params)
    choice = choose(weights, prompt, choices, by_length=params["normalise"] == "length")
    correct = choice.text == answer
    row = {
        "score": float(correct),
        "correct": correct,
        "choice": choice.text,
        "probability": choice.probabilities[answer],
    }
    read_tokens = len(prompt) + choice.read_tokens
    return row, Usage(prompt_tokens=read_tokens, cached_tokens=choice.cached_tokens)


def matched(params: Mapping[str, Any], completion: str) -> Row:
    """Whether a written answer is the reference. Raises BadPrompt for one that is empty."""
    reference = plain(params["reference"], params["ignore"])
    if not reference:
        raise BadPrompt(
            f"the reference {params['reference']!r:.80} is empty, so nothing matches it"
        )
    answer = plain(completion, params["ignore"])
    if params["match"] == "contains":
        correct = re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", answer) is not None
    else:
        correct = answer == reference
    return {"score": float(correct), "correct": correct, "completion": completion}


def plain(text: str, ignore: Sequence[str]) -> str:
    """A text without the differences that do not count."""
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = "".join(one for one in text if not unicodedata.category(one).startswith("P"))
    if "articles" in ignore:
        text = _ARTICLES.sub(" ", text)
    if "whitespace" in ignore:
        text = " ".join(text.split())
    return text
