"""What holds of estimates whatever batches told."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.core import estimate, regression
from flowmesh.core.apply import apply
from flowmesh.core.events import BatchTiming
from flowmesh.core.records import Expected
from flowmesh.core.roofline import Amounts
from flowmesh.core.state import State
from flowmesh.stores.codec import decode_state, encode_state
from support.learning import A100, MODEL, PLAIN, Told

counts = st.integers(0, 1_000_000)
seconds = st.floats(0, 1e6)
timings = st.builds(
    BatchTiming,
    st.integers(1, 4),
    fetch_s=seconds,
    fetch_bytes=counts,
    load_s=seconds,
    load_bytes=counts,
    exec_s=seconds,
    prompt_tokens=counts,
    decode_steps=counts,
    output_tokens=counts,
    work=st.floats(0, 1e6),
    joules=st.floats(0, 1e9),
)
amounts = st.tuples(*[st.floats(0, 1e6)] * 4)
demands = st.sampled_from((MODEL, PLAIN))
histories = st.lists(st.tuples(timings, st.floats(0, 1e6)), max_size=12)


def told(history: list[tuple[BatchTiming, float]], demand: Any) -> Told:
    world = Told(demand=demand)
    for timing, expected_s in history:
        world.batch(timing, expected=Expected(exec_s=expected_s))
    return world


@given(histories, demands, amounts, amounts)
def test_predictions_are_finite_not_negative_and_rise_with_every_amount(
    history: list[tuple[BatchTiming, float]],
    demand: Any,
    base: tuple[float, ...],
    more: tuple[float, ...],
) -> None:
    world = told(history, demand)
    known = estimate.coefficients(world.state, "k", A100)
    low = float(known.exec_s(Amounts(*base)))
    assert math.isfinite(low) and low >= 0
    assert 0 < known.sigma <= 1
    assert known.watts > 0
    for i in range(4):
        grown = tuple(
            b + m if i == j else b for j, (b, m) in enumerate(zip(base, more, strict=True))
        )
        assert float(known.exec_s(Amounts(*grown))) >= low


@given(histories, demands)
def test_without_learning_the_prior_stands_whatever_was_told(
    history: list[tuple[BatchTiming, float]], demand: Any
) -> None:
    state = told(history, demand).state
    state.demands["k"] = demand
    fresh = State(demands={"k": demand})
    assert estimate.coefficients(state, "k", A100, learning=False) == estimate.coefficients(
        fresh, "k", A100
    )
    assert estimate.load_s(state, demand, A100, learning=False) == estimate.load_s(
        fresh, demand, A100
    )


@given(histories, demands)
def test_what_was_learnt_survives_storage_and_replay_bit_by_bit(
    history: list[tuple[BatchTiming, float]], demand: Any
) -> None:
    world = told(history, demand)
    stored = encode_state(world.state)
    assert decode_state(stored, State) == world.state
    later = State()
    for record in world.journal:
        apply(later, record)
    assert encode_state(later) == stored


@given(histories, demands)
def test_covariances_stay_symmetric_and_bounded(
    history: list[tuple[BatchTiming, float]], demand: Any
) -> None:
    for fit in told(history, demand).state.fits.values():
        size = len(fit.coefficients)
        p = np.asarray(fit.covariance).reshape(size, size)
        assert np.isfinite(p).all() and (np.diag(p) >= 0).all()
        assert np.allclose(p, p.T, rtol=1e-6, atol=1e-12 * max(1.0, float(np.abs(p).max())))
        assert 0 <= fit.error <= regression.MOST_ERROR
        assert fit.variance >= regression.LEAST_SIGMA**2


factors = st.floats(1 / 3, 3)


@given(st.tuples(*[factors] * 4), st.integers(0, 1000))
def test_true_coefficients_are_recovered_from_noisy_batches(
    wrong: tuple[float, ...], seed: int
) -> None:
    """Sixty batches of unlike sizes, with 5 % of noise, from priors wrong by up to three."""
    rng = np.random.default_rng(seed)
    prior = estimate.prior(State(demands={"k": MODEL}), "k", A100).seconds
    true = np.array(prior) * np.array([*wrong, 1.0])
    fit = None
    for _ in range(60):
        features = batch(rng)
        fit = regression.learnt(
            fit, prior, 0.4, features.tolist(), float(true @ features) * rng.lognormal(0, 0.05)
        )
    assert fit is not None
    errors = []
    for _ in range(40):
        features = batch(rng)
        predicted = float(np.array(fit.coefficients) @ features)
        errors.append(abs(predicted / float(true @ features) - 1))
    assert np.median(errors) < 0.05
    assert np.quantile(errors, 0.9) < 0.2


def batch(rng: np.random.Generator) -> Any:
    rows = int(rng.choice([1, 2, 4, 8, 16, 32, 64, 128]))
    outputs = rng.integers(10, 300, rows)
    return np.array(
        [1.0, float(rng.integers(20, 2000) * rows), outputs.max(), float(outputs.sum()), 0.0]
    )


@given(st.integers(0, 1000), st.floats(0.02, 0.1), st.floats(3, 50))
def test_now_and_then_an_odd_batch_does_little_harm(seed: int, share: float, factor: float) -> None:
    """Up to a tenth of all batches take many times as long; the others are still told well."""
    rng = np.random.default_rng(seed)
    prior = estimate.prior(State(demands={"k": MODEL}), "k", A100).seconds
    true = np.array(prior) * 1.5
    fit, errors = None, []
    for i in range(120):
        features = batch(rng)
        right = float(true @ features)
        if fit is not None and i >= 60:
            errors.append(abs(float(np.array(fit.coefficients) @ features) / right - 1))
        odd = rng.random() < share
        fit = regression.learnt(
            fit, prior, 0.4, features.tolist(), right * (factor if odd else rng.lognormal(0, 0.05))
        )
    assert np.median(errors) < 0.25


@pytest.mark.parametrize("rows", [1, 256])
def test_equal_batches_for_ever_leave_the_prediction_where_it_is(rows: int) -> None:
    """What is not exercised must not wander off: no wind-up in ten thousand equal batches."""
    prior = estimate.prior(State(demands={"k": MODEL}), "k", A100).seconds
    features = [1.0, 500.0 * rows, 128.0, 100.0 * rows, 0.0]
    right = 2 * sum(c * a for c, a in zip(prior, features, strict=True))
    fit = None
    for i in range(10_000):
        fit = regression.learnt(fit, prior, 0.4, features, right * (1.1 if i % 2 else 0.9))
    assert fit is not None
    for n in (1, 16, 256):
        other = [1.0, 500.0 * n, 200.0, 100.0 * n, 0.0]
        told = sum(c * a for c, a in zip(fit.coefficients, other, strict=True))
        expected = 2 * sum(c * a for c, a in zip(prior, other, strict=True))
        assert told == pytest.approx(expected, rel=0.35)
    first = regression.learnt(None, prior, 0.4, features, right)
    assert max(fit.covariance) <= max(first.covariance)
