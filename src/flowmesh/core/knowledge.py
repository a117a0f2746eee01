"""What has been learnt of times, lengths and rates: frozen records that the law replaces."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fit:
    """How long batches of one batch key take on one kind of device: a linear model.

    Features are those of `roofline.Amounts`, in its order; see there.

    Attributes:
        coefficients: seconds for each feature.
        covariance: of the recursive least squares, row by row.
        seen: batches that it was learnt from.
        error: mean absolute percentage error of predictions made before each batch, decayed, as
            a fraction: 0.1 is 10 %.
        variance: of the relative residual, decayed.
        odd: how many of the newest residuals were too large to count in full, one after the
            other: above what was expected, or, negative, below.
        watts: mean power while executing, of batches that told their joules; 0 if none did.
    """

    coefficients: tuple[float, ...]
    covariance: tuple[float, ...]
    seen: int = 0
    error: float = 0.0
    variance: float = 0.0
    watts: float = 0.0
    odd: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shares of their limit that outputs of one kind took: a histogram that forgets.

    `counts` are of the bins of `lengths.EDGES`, and a last one of outputs at the limit; the next
    output counts `weight`, which grows, so that the older ones count less.
    """

    counts: tuple[float, ...]
    seen: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean that forgets.

    Attributes:
        mean: of the natural logarithm of seconds measured over seconds expected beforehand
            (loads, fetches, start-ups); of interruptions, their number in an hour.
        seen: observations.
        variance: of single observations around the mean, decayed.
        weight: how much the mean rests on: observations, or hours, less what was forgotten.
    """

    mean: float
    seen: int = 0
    variance: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How tasks of one batch key have come in; see `arrivals.py`.

    Attributes:
        at_ms: of the last ones.
        steps, tasks: expansions that wanted such tasks, and tasks; decayed sums as of then.
        seen: expansions, of all times.
        gap_s, spread_s: mean time between them, and its mean absolute deviation.
        size: mean number of tasks of one.
    """

    at_ms: int
    steps: float
    tasks: float
    seen: int = 1
    gap_s: float = 0.0
    spread_s: float = 0.0
    size: float = 0.0
