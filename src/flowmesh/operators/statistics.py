"""Means, rates and differences with their uncertainty: plain functions, no chance in them.

All intervals are two-sided at 95 %. What can not be known (of no rows, or a spread of one)
is None. The bootstrap draws from raw bits of a generator with a fixed seed, which numpy
promises never to change, so equal numbers give equal intervals on every machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

#: The normal quantile of a two-sided interval at 95 %.
Z95 = NormalDist().inv_cdf(0.975)
#: Resamples of a bootstrap, and most numbers that it draws; beyond, the normal limit serves.
RESAMPLES = 2_000
_MOST_DRAWS = 50_000_000
_SEED = 20_240_229
#: Numbers drawn at once: 8 bytes each.
_DRAWS_AT_ONCE = 2_000_000
_PLACES = 6
#: Of a bisection from a width of 11 to one of 1e-14.
_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; `method` says how the interval was made."""

    n: int
    value: float | None
    low: float | None
    high: float | None
    method: str


def rounded(value: float | None) -> float | None:
    """To six places, so that the last digits of a sum do not change a table's bytes."""
    return None if value is None else round(float(value), _PLACES)


def mean(values: Sequence[float]) -> Estimate:
    """The mean, with Student's t interval."""
    n, method = len(values), "student t"
    if n == 0:
        return Estimate(0, None, None, None, method)
    centre = math.fsum(values) / n
    spread = deviation(values)
    if spread is None:
        return Estimate(1, rounded(centre), None, None, method)
    half = t_quantile(n - 1) * spread / math.sqrt(n)
    return Estimate(n, rounded(centre), rounded(centre - half), rounded(centre + half), method)


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (over n - 1)."""
    n = len(values)
    if n < 2:
        return None
    centre = math.fsum(values) / n
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1))


def rate(successes: float, n: int) -> Estimate:
    """A share of n trials, with Wilson's score interval.

    `successes` may hold halves, as of ties. Source: Wilson, JASA 22 (1927), 209-212.
    """
    if n == 0:
        return Estimate(0, None, None, None, "wilson")
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(n, rounded(share), rounded(low), rounded(high), "wilson")


def perplexity(nlls: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """exp of the mean negative log-likelihood a token, over all tokens of all rows.

    Its interval is that of a ratio of sums over rows (the delta method, rows being the
    independent units), made on the logarithm. Source: Cochran, Sampling Techniques, ch. 6.

    Args:
        nlls: natural-logarithm units, one total for each row.
        tokens: of each row, above 0.
    """
    n, method = len(nlls), "delta"
    if n == 0:
        return Estimate(0, None, None, None, method)
    total = sum(tokens)
    ratio = math.fsum(nlls) / total
    if n == 1:
        return Estimate(1, rounded(_exp(ratio)), None, None, method)
    residuals = ((nll - ratio * count) ** 2 for nll, count in zip(nlls, tokens, strict=True))
    half = Z95 * math.sqrt(n / (n - 1) * math.fsum(residuals)) / total
    low, high = _exp(ratio - half), _exp(ratio + half)
    return Estimate(n, rounded(_exp(ratio)), rounded(low), rounded(high), method)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of `first - second` over pairs, with a bootstrap of the pairs.

    The interval is the percentile interval of RESAMPLES resamples (Efron and Tibshirani, An
    Introduction to the Bootstrap, ch. 13); for tables too large for it, the normal one, to
    which it converges.
    """
    n = len(first)
    if n == 0:
        return Estimate(0, None, None, None, "bootstrap")
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    centre = math.fsum(gaps) / n
    spread = deviation(list(gaps))
    if spread is None:
        return Estimate(1, rounded(centre), None, None, "bootstrap")
    if n * RESAMPLES > _MOST_DRAWS:
        half = Z95 * spread / math.sqrt(n)
        return Estimate(
            n, rounded(centre), rounded(centre - half), rounded(centre + half), "normal"
        )
    means = np.sort(_resampled_means(gaps))
    tail = int(RESAMPLES * 0.025)
    low, high = float(means[tail]), float(means[-1 - tail])
    return Estimate(n, rounded(centre), rounded(low), rounded(high), "bootstrap")


def sign_test(wins: int, losses: int) -> float | None:
    """How likely a split at least this uneven is if wins and losses are equally likely.

    Two-sided and exact; ties take no part. None if there were only ties.
    """
    n = wins + losses
    if n == 0:
        return None
    fewer = min(wins, losses)
    # P(X <= k) of a binomial with p = 1/2 is I(1/2; n - k, k + 1).
    tail = 1.0 if fewer == n else _beta_share(n - fewer, fewer + 1, 0.5)
    return min(1.0, 2 * tail)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` degrees, by bisection."""
    low, high = Z95, 13.0  # of infinitely many degrees, and of one (12.706)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = _beta_share(freedom / 2, 0.5, freedom / (freedom + middle * middle)) / 2
        low, high = (middle, high) if beyond > 0.025 else (low, middle)
    return (low + high) / 2


def _resampled_means(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    n, means = len(gaps), []
    bits = np.random.PCG64(_SEED)
    together = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, RESAMPLES, together):
        count = min(together, RESAMPLES - start)
        chosen = (bits.random_raw(count * n) % np.uint64(n)).reshape(count, n)
        means.append(gaps[chosen].mean(axis=1))
    return np.concatenate(means)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I(x; a, b).

    By its continued fraction (Lentz), from the side where that converges fast. Source: Press
    et al., Numerical Recipes, section 6.4.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    above, below = 1.0, 1 - (a + b) * x / (a + 1)
    below = 1 / (below if abs(below) > tiny else tiny)
    value = below

    def turn(term: float) -> float:
        nonlocal above, below, value
        below = 1 + term * below
        below = 1 / (below if abs(below) > tiny else tiny)
        above = 1 + term / above
        above = above if abs(above) > tiny else tiny
        value *= above * below
        return above * below

    for m in range(1, 100_000):
        turn(m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)))
        step = turn(-(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)))
        if abs(step - 1) < 1e-15:
            return value
    raise ArithmeticError(f"the incomplete beta function of {a}, {b} at {x} does not converge")
