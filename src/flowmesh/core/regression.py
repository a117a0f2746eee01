"""Recursive least squares with forgetting, on relative errors, with coefficients of at least 0.

Batches differ in size by a factor of thousands: each counts by its time relative to what was
predicted, so that small ones teach as much as large ones. A single odd batch moves little, as
its error is clipped; several in a row that err to one side mean that the machine has changed,
and what was learnt starts anew from them. Only what a batch exercises is forgotten (directional
forgetting): ten thousand equal batches leave what is known of other sizes as it was.

Plain Python on purpose: five features are too few for arrays to pay, and the law must give
equal bits on every machine, which a library for linear algebra does not promise.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, isfinite, log, sqrt
from operator import mul, sub

from flowmesh.core.knowledge import Fit

#: What the past still weighs after one more batch.
MEMORY = 0.97
#: Relative standard deviation, at first, of all coefficients together, and of each by itself.
COMMON_SIGMA = 0.5
OWN_SIGMA = 0.7
#: Each feature may account for so much of the first batch, however little its prior says.
SHARE = 0.1
#: Most of the first batch's time that the constant is taken for, where there is anything else.
MOST_FIXED = 0.5
#: Standard deviation of a batch's time by chance, relative to it: at first, and at least.
FIRST_SIGMA = 0.2
LEAST_SIGMA = 0.01
#: Batches that the first value of it is worth.
FIRST_WEIGHT = 4
#: An error counts for at most so many standard deviations; that of the first batch, for less.
CLIP = 3.0
FIRST_CLIP = 2.0
#: Clipped errors to one side, one after the other, that void what was learnt.
ODD_LIMIT = 3
#: By what factor the old coefficients may then be wrong, as `sigma` of `learnt`.
ANEW_SIGMA = 2.0
#: Seconds: measured times are not told finer.
LEAST_S = 1e-6
#: Of seconds told to seconds expected: beyond any clip.
LEAST_RATIO = 1e-300
#: Seconds for one of anything: beyond them arithmetic would overflow.
MOST_S = 1e15
#: Smaller amounts count as none.
LEAST_AMOUNT = 1e-9
#: Largest error of a single prediction that the mean error takes in.
MOST_ERROR = 10.0


def learnt(
    fit: Fit | None, prior: Sequence[float], sigma: float, amounts: Sequence[float], seconds: float
) -> Fit:
    """The fit after one more batch; `watts` and `error` are left as they were.

    Args:
        fit: what is known so far; with None, it is begun from `prior`.
        prior: seconds for each feature.
        sigma: standard deviation of the natural logarithm of a factor by which all of the
            prior may be wrong.
        amounts: features of the batch, none negative.
        seconds: that it took, more than 0.
    """
    seconds = max(seconds, LEAST_S)
    amounts = [one if one > LEAST_AMOUNT else 0.0 for one in amounts]
    if fit is None:
        return _begun(prior, sigma, amounts, seconds)
    changed = _corrected(fit, amounts, seconds)
    if abs(changed.odd) < ODD_LIMIT and _is_sound(changed):
        return changed
    anew = _begun(fit.coefficients, ANEW_SIGMA, amounts, seconds)
    return replace(anew, seen=fit.seen + 1, error=fit.error, watts=fit.watts)


def _begun(prior: Sequence[float], sigma: float, amounts: Sequence[float], seconds: float) -> Fit:
    """A prior whose scale one batch has corrected, as far as the prior may be wrong.

    The first feature, the constant, is left out of it where others can explain the time: what
    a single batch takes says nothing of how it is made up, and work adds up more often than not.
    """
    rest = _dot(prior[1:], amounts[1:])
    fixed = min(prior[0] * amounts[0], MOST_FIXED * seconds) if rest > 0 else 0.0
    scale = _scale((seconds - fixed) / max(rest or _dot(prior, amounts), LEAST_S), sigma)
    c = [min(one * scale, MOST_S) for one in prior]
    if rest > 0 and amounts[0] > 0:
        c[0] = fixed / amounts[0]
    guess = max(_dot(c, amounts), LEAST_S)
    size = len(c)
    covariance = [COMMON_SIGMA**2 * one * other for one in c for other in c]
    for i, one in enumerate(c):
        share = SHARE * guess / amounts[i] if amounts[i] > 0 and prior[i] > 0 else 0.0
        covariance[i * (size + 1)] += (OWN_SIGMA * one) ** 2 + share**2
    return Fit(tuple(c), tuple(covariance), seen=1, variance=FIRST_SIGMA**2)


def _scale(ratio: float, sigma: float) -> float:
    """The likeliest factor, after a batch that took so many times what its prior said."""
    trust = sigma**2 / (sigma**2 + FIRST_SIGMA**2)
    most = FIRST_CLIP * sqrt(sigma**2 + FIRST_SIGMA**2)
    return exp(trust * max(-most, min(most, log(max(ratio, LEAST_RATIO)))))


def _corrected(fit: Fit, amounts: Sequence[float], seconds: float) -> Fit:
    """One step of recursive least squares."""
    c, p = list(fit.coefficients), fit.covariance
    size = len(c)
    guess = max(_dot(c, amounts), LEAST_S)
    # By the root of both, not by the guess alone: what was held up teaches less than what was
    # quick, and it is being held up that happens.
    scale = sqrt(guess * seconds)
    z = [amount / scale for amount in amounts]
    pz = [_dot(p[i * size : (i + 1) * size], z) for i in range(size)]
    # Never negative, but by rounding where batches differ beyond all measure.
    doubt = max(_dot(z, pz), 0.0)
    spread = doubt + fit.variance
    clip = CLIP * sqrt(spread)
    error = (seconds - guess) / scale
    clipped = max(-clip, min(clip, error))
    c = [one + other / spread * clipped for one, other in zip(c, pz, strict=True)]
    change = 0.0
    if error == clipped and doubt > 0:  # what is odd makes nothing more certain
        change = 1 / spread - (1 / MEMORY - 1) / doubt
    outer = [change * one * other for one in pz for other in pz]
    covariance = list(map(sub, p, outer))
    c = _at_least_zero(c, covariance)
    weight = max(1 - MEMORY, 1 / (fit.seen + 1 + FIRST_WEIGHT))
    # The square of the error, less what the doubt about the coefficients explains of it.
    chance = clipped**2 * fit.variance / spread
    variance = fit.variance + weight * (chance - fit.variance)
    sign = 0 if error == clipped else 1 if error > 0 else -1
    return Fit(
        coefficients=tuple(c),
        covariance=tuple(covariance),
        seen=fit.seen + 1,
        error=fit.error,
        variance=max(variance, LEAST_SIGMA**2),
        watts=fit.watts,
        odd=fit.odd + sign if sign * fit.odd > 0 else sign,
    )


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    total: float = sum(map(mul, one, other))
    return total


def _at_least_zero(c: list[float], covariance: Sequence[float]) -> list[float]:
    """The likeliest coefficients of which none is negative, one put to 0 after the other."""
    size = len(c)
    for _ in range(size):
        low = min(range(size), key=c.__getitem__)
        own = covariance[low * size + low]
        if c[low] >= 0 or own <= 0:
            break
        step = c[low] / own
        c = [one - covariance[i * size + low] * step for i, one in enumerate(c)]
        c[low] = 0.0
    return [min(max(one, 0.0), MOST_S) for one in c]


def _is_sound(fit: Fit) -> bool:
    """Whether rounding has left a fit usable; figures that no machine tells may spoil it."""
    size = len(fit.coefficients)
    own = fit.covariance[:: size + 1]
    return isfinite(sum(fit.coefficients) + sum(fit.covariance)) and min(own) >= 0


def blamed(error: float, seen: int, predicted: float, seconds: float) -> float:
    """The decayed mean absolute percentage error after one more prediction."""
    here = min(abs(predicted - seconds) / max(seconds, LEAST_S), MOST_ERROR)
    return error + max(1 - MEMORY, 1 / (seen + 1)) * (here - error)
