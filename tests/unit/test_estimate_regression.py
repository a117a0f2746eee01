"""Recursive least squares: what one batch after the other makes of a prior."""

import random
from math import isfinite

import pytest

from flowmesh.core import regression
from flowmesh.core.knowledge import Fit
from flowmesh.core.regression import learnt

SHEET, UNKNOWN = 0.4, 3.0


def after(batches: list[tuple[tuple[float, ...], float]], prior: tuple[float, ...]) -> Fit:
    fit = None
    for amounts, seconds in batches:
        fit = learnt(fit, prior, SHEET, amounts, seconds)
    assert fit is not None
    return fit


@pytest.mark.parametrize(
    ("sigma", "seconds", "believed"),
    [
        (0.1, 1.2, (1.01, 1.1)),  # a good prior moves little
        (SHEET, 1.2, (1.1, 1.2)),
        (SHEET, 100.0, (1.5, 3.0)),  # data sheets are seldom wrong by ten; a batch may well be
        (UNKNOWN, 50.0, (45.0, 50.0)),
        (UNKNOWN, 0.02, (0.02, 0.022)),
    ],
)
def test_the_first_batch_is_believed_as_far_as_the_prior_may_be_wrong(
    sigma: float, seconds: float, believed: tuple[float, float]
) -> None:
    (coefficient,) = learnt(None, (1.0,), sigma, (1.0,), seconds).coefficients
    assert believed[0] <= coefficient <= believed[1]


def test_the_first_batch_is_work_rather_than_a_constant() -> None:
    """As work adds up: of four times as much, four times the time is expected."""
    fixed, unit = learnt(None, (0.02, 0.01), UNKNOWN, (1.0, 1.0), 3.0).coefficients
    assert fixed == 0.02 and unit == pytest.approx(2.98, rel=0.05)
    fixed, unit = learnt(None, (0.02, 0.01), UNKNOWN, (1.0, 1.0), 0.01).coefficients
    assert fixed == pytest.approx(0.005) and unit == pytest.approx(0.005, rel=0.1)
    fixed, unit = learnt(None, (0.02, 0.01), UNKNOWN, (1.0, 0.0), 5.0).coefficients
    assert fixed == pytest.approx(5.0, rel=0.1)


def test_what_one_feature_tells_moves_the_others_too() -> None:
    """If reading is slower than its data sheet says, then writing is as likely as not."""
    batches = [((0.0, 100.0, 0.0), 1.0)] + [((0.0, 100.0, 0.0), 1.5)] * 4
    _, reading, writing = after(batches, (0.02, 0.01, 0.01)).coefficients
    assert reading == pytest.approx(0.015, rel=0.1)
    assert 0.0105 < writing < reading


def test_a_feature_whose_prior_is_far_too_low_is_found_all_the_same() -> None:
    rng = random.Random(3)
    batches = []
    for _ in range(60):
        rows = rng.choice([1, 4, 16, 64])
        steps = rng.randint(20, 200)
        amounts = (1.0, 300.0 * rows, float(steps), 0.7 * rows * steps)
        true = (0.05, 1e-4, 0.012, 2e-4)
        batches.append((amounts, sum(a * b for a, b in zip(amounts, true, strict=True))))
    fit = after(batches, (0.05, 1e-4, 0.012, 1e-5))
    assert fit.coefficients[3] == pytest.approx(2e-4, rel=0.25)


def test_small_and_large_batches_teach_alike() -> None:
    sizes = [1.0, 10_000.0] * 20
    fit = after([((1.0, n), 0.5 + 0.001 * n) for n in sizes], (0.1, 0.002))
    assert fit.coefficients == pytest.approx((0.5, 0.001), rel=0.05)


def test_an_odd_batch_counts_little_early_and_next_to_nothing_late() -> None:
    usual = ((1.0, 10.0), 10.0)
    for before, slow, quick in ((3, 1.2, 2.0), (20, 1.05, 1.1)):
        for seconds, most in ((100.0, slow), (1.0, quick)):
            fit = after([usual] * before + [((1.0, 10.0), seconds)], (0.1, 1.0))
            told = fit.coefficients[1] * 10 + fit.coefficients[0]
            assert 1 < max(told / 10, 10 / told) < most
            assert fit.odd == (1 if seconds > 10 else -1)


def test_oddities_to_both_sides_are_no_change_of_the_machine() -> None:
    usual = [((1.0, 10.0), 10.0)] * 20
    odd = [((1.0, 10.0), seconds) for seconds in (100.0, 1.0) * 5]
    fit = after([*usual, *odd], (0.1, 1.0))
    assert fit.coefficients[1] * 10 + fit.coefficients[0] == pytest.approx(10.0, rel=0.5)
    assert abs(fit.odd) == 1


def test_oddities_with_usual_batches_between_them_are_none_either() -> None:
    usual, odd = ((1.0, 10.0), 10.0), ((1.0, 10.0), 100.0)
    fit = after([usual] * 20 + [odd, odd, usual] * 3, (0.1, 1.0))
    assert fit.coefficients[1] * 10 + fit.coefficients[0] < 20.0
    assert fit.odd == 0


def test_a_changed_machine_is_learnt_anew_but_its_history_stays() -> None:
    fit = after([((1.0, 10.0), 10.0)] * 20, (0.1, 1.0))
    fit = Fit(
        **{**{name: getattr(fit, name) for name in Fit.__slots__}, "watts": 9.0, "error": 0.2}
    )
    for _ in range(3):
        fit = learnt(fit, (0.1, 1.0), SHEET, (1.0, 10.0), 40.0)
    assert fit.coefficients[1] * 10 + fit.coefficients[0] == pytest.approx(40.0, rel=0.1)
    assert (fit.seen, fit.watts, fit.error, fit.odd) == (23, 9.0, 0.2, 0)


def test_no_coefficient_is_negative_and_the_others_make_up_for_it() -> None:
    """Times that fall with an amount are not believed; the rest still fits the batches."""
    batches = [((1.0, n), 12.0 - n) for n in (1.0, 3.0, 2.0, 4.0) * 15]
    fit = after(batches, (5.0, 1.0))
    assert min(fit.coefficients) == 0.0
    assert fit.coefficients[0] == pytest.approx(9.5, rel=0.1)


def test_scatter_is_told_from_ignorance() -> None:
    """What the doubt about coefficients explains of an error is no scatter of the machine."""
    rng = random.Random(1)
    sizes = [rng.uniform(1, 100) for _ in range(60)]
    exact = after([((1.0, n), 2.0 + 0.1 * n) for n in sizes], (0.1, 0.2))
    noisy = after(
        [((1.0, n), (2.0 + 0.1 * n) * rng.lognormvariate(0, 0.3)) for n in sizes], (2, 0.1)
    )
    assert exact.variance**0.5 < 0.12
    assert noisy.variance**0.5 == pytest.approx(0.3, abs=0.1)
    same = after([((1.0, 5.0), 1.0)] * 500, (0.1, 0.2))
    assert same.variance == regression.LEAST_SIGMA**2


def test_the_newest_batches_count_most() -> None:
    batches = [((1.0, 10.0), 10.0 + 0.02 * i) for i in range(300)]
    fit = after(batches, (0.1, 1.0))
    assert fit.coefficients[1] * 10 + fit.coefficients[0] == pytest.approx(16.0, rel=0.07)


@pytest.mark.parametrize("amounts", [(1.0, 0.0), (1.0, 1e-200), (1.0, 1e15), (0.0, 0.0)])
@pytest.mark.parametrize("seconds", [1e-300, 1e-6, 1e15])
def test_absurd_batches_leave_finite_figures(amounts: tuple[float, ...], seconds: float) -> None:
    usual = ((1.0, 10.0), 10.0)
    for batches in ([(amounts, seconds), usual], [usual, (amounts, seconds), usual]):
        fit = after(batches * 3, (0.1, 1.0))
        figures = (*fit.coefficients, *fit.covariance, fit.variance)
        assert all(abs(one) < 1e60 for one in figures)


def test_no_history_of_absurd_batches_breaks_a_fit() -> None:
    """Rounding may leave a covariance that is none: then what was learnt starts anew."""
    sizes = (0.0, 1.0, 2000.0, float(1 << 36), float(1 << 49), 1e15)
    for seed in range(60):
        chance = random.Random(seed)
        prior = [0.02, *(chance.choice([0.0, 1e-9, 1e-3, 1e10]) for _ in range(4))]
        fit = None
        for _ in range(300):
            amounts = (1.0, *(chance.choice(sizes) for _ in range(4)))
            seconds = chance.choice([1e-12, 1e9, 10 * chance.random()])
            fit = regression.learnt(fit, prior, 3.0, amounts, seconds)
            assert all(map(isfinite, (*fit.coefficients, *fit.covariance, fit.variance)))
            assert min(fit.covariance[:: len(prior) + 1]) >= 0


def test_the_mean_error_is_a_plain_mean_at_first_and_forgets_later() -> None:
    error = 0.0
    for seen, predicted in enumerate((2.0, 1.0, 1.0, 2.0)):
        error = regression.blamed(error, seen, predicted, 1.0)
    assert error == pytest.approx(0.5)
    for seen in range(1000):
        error = regression.blamed(error, 100 + seen, 1.1, 1.0)
    assert error == pytest.approx(0.1)
    assert regression.blamed(0.0, 0, 1e9, 1.0) == regression.MOST_ERROR
