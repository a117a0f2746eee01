"""How long outputs get: decayed histograms of the share of their limit that they took.

There is one for each batch key and limit, and one for all limits of a batch key, which stands
in where a limit has not been met.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import exp2

import numpy as np

from flowmesh.core.knowledge import Lengths
from flowmesh.core.roofline import Quantity
from flowmesh.core.state import State

#: Quarter octaves of the share of the limit, below 1; a last bin is of outputs at the limit.
EDGES = (0.0, *(exp2(-step / 4) for step in range(32, -1, -1)))
#: What the past still weighs after one more output: half of it is gone after 350.
MEMORY = 0.998
#: Weights are put back to 1 beyond it, long before they are too large for arithmetic.
MOST_WEIGHT = 1e6
#: Outputs that the prior is worth, and the share of them that reach the limit.
PRIOR_OUTPUTS = 4.0
AT_LIMIT = 1 / 3

_WIDTHS = tuple(high - low for low, high in pairwise(EDGES))
_MIDDLES = (*((high + low) / 2 for low, high in pairwise(EDGES)), 1.0)
_PRIOR = (*(PRIOR_OUTPUTS * (1 - AT_LIMIT) * width for width in _WIDTHS), PRIOR_OUTPUTS * AT_LIMIT)


def key(batch_key: str, limit: int) -> str:
    """Where the histogram of a limit is kept; that of all limits is at limit 0."""
    return f"{batch_key}|{limit}"


def learnt(old: Lengths | None, like: Lengths | None, tokens: int, limit: int) -> Lengths:
    """The histogram after one more output. `like` is what a new one begins as."""
    return learnt_all(old, like, (tokens,), limit)


def learnt_all(
    old: Lengths | None, like: Lengths | None, outputs: Sequence[int], limit: int
) -> Lengths:
    """The histogram after some more outputs, one after another."""
    known = old or Lengths(_begun(like))
    counts, weight = list(known.counts), known.weight
    for tokens in outputs:
        weight /= MEMORY
        counts[bisect_right(EDGES, max(tokens, 0) / limit) - 1] += weight
        if weight > MOST_WEIGHT:
            counts, weight = [count / weight for count in counts], 1.0
    return Lengths(tuple(counts), known.seen + len(outputs), weight)


def _begun(like: Lengths | None) -> tuple[float, ...]:
    if like is None:
        return _PRIOR
    scale = PRIOR_OUTPUTS / sum(like.counts)
    return tuple([count * scale for count in like.counts])


def _counts(state: State, batch_key: str, limit: int, learning: bool) -> tuple[float, ...]:
    if not learning:
        return _PRIOR
    known = state.lengths.get(key(batch_key, limit)) or state.lengths.get(key(batch_key, 0))
    return known.counts if known else _PRIOR


def expected_output(state: State, batch_key: str, limit: int, *, learning: bool = True) -> float:
    """Mean tokens of an output that may have `limit`."""
    counts = _counts(state, batch_key, limit, learning)
    total = sum([count * middle for count, middle in zip(counts, _MIDDLES, strict=True)])
    return limit * total / sum(counts)


def longest_output(
    state: State, batch_key: str, limit: int, rows: Quantity, *, learning: bool = True
) -> Quantity:
    """Expected tokens of the longest of so many outputs; `rows` may be an array of any shape."""
    counts = np.asarray(_counts(state, batch_key, limit, learning))
    below = np.concatenate(([0.0], np.cumsum(counts[:-1]))) / counts.sum()
    many = np.asarray(rows, dtype=float)
    # The expectation of a maximum is the integral of 1 - F^n; F^n is taken as linear in each bin.
    powers = below ** many[..., None]
    longest = limit * ((1 - (powers[..., 1:] + powers[..., :-1]) / 2) @ np.asarray(_WIDTHS))
    return longest if many.ndim else float(longest)


def quantile(
    state: State, batch_key: str, limit: int, share: float, *, learning: bool = True
) -> float:
    """Tokens that so large a share of outputs does not exceed."""
    counts = _counts(state, batch_key, limit, learning)
    left = share * sum(counts)
    for count, low, width in zip(counts, EDGES, _WIDTHS, strict=False):
        if left <= count:
            return limit * (low + width * left / max(count, 1e-12))
        left -= count
    return float(limit)
