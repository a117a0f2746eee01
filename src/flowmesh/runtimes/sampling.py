"""Which token comes next: decisions that hold in spite of rounding noise, in plain numpy.

Logits computed in a batch differ in their last digits from those of the same row alone,
so a batch could tip a decision. Here each decision is *settled*: it comes with the proof
that no logits within `noise` of the given ones would have led to another token. Whoever
gets an unsettled decision computes the row alone, where nothing depends on a batch, and
takes `decide`'s answer from that. So a row's text is a function of the row.

A draw is `argmax(logits + temperature * gumbel)`, which has the distribution of a softmax
(Gumbel-max). The noise of a draw comes from a counter-based generator keyed by seed,
sample and prompt, so neither what else is in the batch nor the order of draws matters.

Truncation (top-k, top-p) keeps the tokens above a floor:
* top-k: those that fewer than k tokens exceed (so ties at the edge stay in);
* top-p, over what top-k left: those for which the tokens that exceed them have together
  less than p of the probability at this temperature.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating[Any]]

#: Beyond this a bound on probabilities says nothing, and `exp` would overflow.
_MOST_DELTA = 300.0
#: One 32-bit draw, moved off 0 and 1, where a logarithm has no value.
_DRAW_SCALE = 2.0**-32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy and ignores all else.

    Attributes:
        key: names the stream of random numbers; see `stream_key`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    key: bytes = b""


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Decision:
    """A token, and whether every row within the noise would have chosen it too."""

    token: int
    settled: bool


def stream_key(seed: int | str, sample: int, prompt: Sequence[int]) -> bytes:
    """The stream of one answer. The prompt is in it, or rows of one seed would draw alike."""
    text = f"flowmesh draws 1/{seed}/{sample}/{','.join(map(str, prompt))}"
    return hashlib.sha256(text.encode()).digest()


def gumbel(key: bytes, step: int, size: int) -> NDArray[np.float64]:
    """`size` standard Gumbel numbers for a step of a stream; random access, no state.

    Made from the generator's raw bits: these, unlike numpy's distributions, are promised
    never to change.
    """
    words = np.frombuffer(key, dtype=np.uint64, count=2)
    raw = np.random.Philox(key=words, counter=[0, 0, 0, step]).random_raw((size + 1) // 2)
    uniform = np.ascontiguousarray(raw).view(np.uint32)[:size].astype(np.float64)
    uniform += 0.5
    uniform *= _DRAW_SCALE
    np.log(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    np.log(uniform, out=uniform)
    return np.negative(uniform, out=uniform)


def settle(logits: Logits, sampling: Sampling, step: int, noise: float) -> Decision:
    """Decide on a row whose logits may each be off by up to `noise`.

    Args:
        logits: `[vocabulary]`, raw.
        step: tokens generated before this one.
        noise: bound on the error of each logit, in logits.
    """
    if sampling.temperature == 0:
        return _clear_winner(logits, logits, -np.inf, 2 * noise)
    sure, possible = floors(logits, sampling, noise)
    scores = sampling.temperature * gumbel(sampling.key, step, len(logits))
    scores += logits
    if possible > -np.inf:
        scores[logits < possible] = -np.inf
    return _clear_winner(scores, logits, sure, 2 * noise)


def decide(logits: Logits, sampling: Sampling, step: int) -> int:
    """Decide on a row whose logits are taken as they are; equal scores go to the lowest id."""
    return settle(logits, sampling, step, 0.0).token


def floors(logits: Logits, sampling: Sampling, noise: float) -> tuple[float, float]:
    """Bounds on truncation: a token at or above the first is in, one below the second is out.

    Both are in logits. Without noise, `logits >= second` are the tokens that are in. The
    temperature must be above 0: greedy decoding has nothing to truncate.
    """
    size = len(logits)
    cut_k = 0 < sampling.top_k < size
    if not cut_k and sampling.top_p >= 1:
        return -np.inf, -np.inf
    ranked = _Ranked(logits)
    sure = possible = size
    if cut_k:
        sure = ranked.above(ranked.value(sampling.top_k) + 2 * noise)
        possible = ranked.from_(ranked.value(sampling.top_k - 1) - 2 * noise)
    if sampling.top_p < 1:
        sure, possible = _nucleus(ranked, sampling, noise, sure, possible)
    return ranked.floor(sure), ranked.floor(possible)


class _Ranked:
    """Logits from the highest down; ranks count from 0."""

    def __init__(self, logits: Logits) -> None:
        self.lowered = np.sort(-logits).astype(np.float64)

    def value(self, rank: int) -> float:
        return -float(self.lowered[rank])

    def above(self, value: float) -> int:
        return int(np.searchsorted(self.lowered, -value, side="left"))

    def from_(self, value: float) -> int:
        return int(np.searchsorted(self.lowered, -value, side="right"))

    def floor(self, count: int) -> float:
        return self.value(count - 1) if count else np.inf


def _nucleus(
    ranked: _Ranked, sampling: Sampling, noise: float, sure: int, possible: int
) -> tuple[int, int]:
    """How many of the first `sure` (`possible`) tokens surely (possibly) stay within top-p.

    Each weight is known up to a factor of `exp(noise / temperature)`, so a share is known
    up to the square of it; tokens closer than twice the noise may stand in either order.
    """
    lowered = ranked.lowered[:possible]
    with np.errstate(over="ignore"):  # at a tiny temperature only the first has any weight
        weights = np.exp((lowered[0] - lowered) / sampling.temperature)
    before = np.concatenate(([0.0], np.cumsum(weights)))
    factor = np.exp(min(2 * noise / sampling.temperature, _MOST_DELTA))

    def maybe_out(rank: int) -> bool:
        rivals = min(ranked.above(ranked.value(rank) - 2 * noise), possible)
        own = weights[rank] if rivals > rank else 0.0
        return bool((before[rivals] - own) * factor >= sampling.top_p * before[sure])

    def surely_out(rank: int) -> bool:
        exceeding = min(ranked.above(ranked.value(rank) + 2 * noise), sure)
        return bool(before[exceeding] >= sampling.top_p * before[possible] * factor)

    return (
        bisect_left(range(sure), True, key=maybe_out),
        bisect_left(range(possible), True, key=surely_out),
    )


def _clear_winner(scores: Logits, logits: Logits, sure: float, gap: float) -> Decision:
    best = int(np.argmax(scores))
    rivals = np.count_nonzero(scores >= scores[best] - gap)
    return Decision(best, bool(rivals == 1 and logits[best] >= sure))
