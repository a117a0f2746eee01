"""Intervals and tests against published tables and against plain sums."""

import math

import pytest

from flowmesh.operators import statistics
from flowmesh.operators.statistics import Estimate


def bounds(found: Estimate) -> tuple[float, float]:
    assert found.low is not None and found.high is not None
    return found.low, found.high


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_rate_has_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    found = statistics.rate(successes, n)
    assert found.value == pytest.approx(successes / n, abs=1e-6)
    assert bounds(found) == pytest.approx((low, high), abs=5e-5)
    assert found.method == "wilson"


def test_a_rate_of_all_is_at_most_one() -> None:
    assert statistics.rate(5, 5).high == 1.0


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
        (1, 12.706),
        (2, 4.303),
        (5, 2.571),
        (10, 2.228),
        (30, 2.042),
        (100, 1.984),
        (10**7, 1.960),
    ],
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert statistics.t_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_a_mean_has_students_interval() -> None:
    """NIST e-Handbook 1.3.5.2: n 195, mean 9.261460, deviation 0.022789 gives 9.258242, 9.264679.

    Here with 195 numbers of that mean and deviation, in pairs around the mean.
    """
    centre, spread = 9.261460, 0.022789
    numbers = [centre] + [centre + sign * spread for sign in (1, -1) for _ in range(97)]
    assert statistics.deviation(numbers) == pytest.approx(spread, abs=1e-9)
    found = statistics.mean(numbers)
    assert found.value == pytest.approx(centre)
    assert bounds(found) == pytest.approx((9.258242, 9.264679), abs=2e-6)


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (2, 8), (10, 0), (5, 5), (14, 6), (61, 39)])
def test_the_sign_test_is_the_sum_of_the_tail(wins: int, losses: int) -> None:
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    assert statistics.sign_test(wins, losses) == pytest.approx(min(1, 2 * tail), abs=1e-12)


def test_the_sign_test_of_a_million_is_near_the_normal_one() -> None:
    wins, losses = 501_000, 499_000
    z = (wins - losses - 1) / math.sqrt(wins + losses)
    expected = math.erfc(z / math.sqrt(2))
    assert statistics.sign_test(wins, losses) == pytest.approx(expected, rel=1e-3)
    assert statistics.sign_test(0, 0) is None


def test_perplexity_weighs_tokens() -> None:
    found = statistics.perplexity([10.0, 1.0], [10, 30])
    assert found.value == pytest.approx(math.exp(11 / 40), abs=1e-6)
    low, high = bounds(found)
    assert low < found.value < high
    assert math.sqrt(low * high) == pytest.approx(found.value, abs=1e-5)


def test_the_interval_of_a_perplexity_is_that_of_the_jackknife() -> None:
    """The delta method and leaving out one row after the other agree for many rows."""
    tokens = [20 + 7 * n % 31 for n in range(400)]
    nlls = [count * (2 + math.sin(n)) for n, count in enumerate(tokens)]
    n, total, length = len(tokens), sum(nlls), sum(tokens)
    left = [(total - a) / (length - b) for a, b in zip(nlls, tokens, strict=True)]
    centre = sum(left) / n
    error = math.sqrt((n - 1) / n * sum((one - centre) ** 2 for one in left))
    low, high = bounds(statistics.perplexity(nlls, tokens))
    assert math.log(high / low) / 2 == pytest.approx(1.959964 * error, rel=5e-3)


def test_rows_of_equal_perplexity_leave_no_doubt() -> None:
    found = statistics.perplexity([2.0, 4.0, 6.0], [1, 2, 3])
    assert found.low == found.value == found.high == pytest.approx(math.exp(2), abs=1e-6)


def test_the_bootstrap_of_many_pairs_is_near_the_normal_interval() -> None:
    first = [math.sin(n) + 0.2 for n in range(2000)]
    second = [math.cos(3 * n) for n in range(2000)]
    found = statistics.difference(first, second)
    gaps = [one - other for one, other in zip(first, second, strict=True)]
    spread = statistics.deviation(gaps)
    assert spread is not None and found.value is not None
    half = statistics.Z95 * spread / math.sqrt(2000)
    assert bounds(found) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)
    assert found.method == "bootstrap"


def test_the_bootstrap_is_the_same_for_ever() -> None:
    found = statistics.difference([1, 2, 3, 4, 5], [0, 2, 2, 2, 2])
    assert found == Estimate(5, 1.4, 0.6, 2.2, "bootstrap")


def test_a_table_too_large_to_resample_gets_the_normal_interval() -> None:
    found = statistics.difference([n % 2 for n in range(30_000)], [0] * 30_000)
    assert found.method == "normal"
    assert bounds(found) == pytest.approx((0.5 - 0.005658, 0.5 + 0.005658), abs=1e-5)


def test_of_nothing_and_of_one_nothing_is_claimed() -> None:
    for of in (statistics.mean, lambda rows: statistics.perplexity(rows, [1] * len(rows))):
        assert of([]) == Estimate(0, None, None, None, of([]).method)
        alone = of([1.0])
        assert alone.n == 1 and alone.value is not None
        assert alone.low is None and alone.high is None
    assert statistics.rate(0, 0).value is None
    assert statistics.difference([], []).value is None
    assert statistics.difference([2.0], [1.0]) == Estimate(1, 1.0, None, None, "bootstrap")
