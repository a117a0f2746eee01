"""Decisions about tokens: what they choose, and that noise can not change a settled one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.runtimes.sampling import (
    GREEDY,
    Sampling,
    decide,
    floors,
    gumbel,
    settle,
    stream_key,
)

KEY = stream_key(7, 0, [1, 2, 3])


def logits_of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert decide(logits_of(1, 3, 2), GREEDY, 0) == 1
    assert decide(logits_of(3, 1, 3), GREEDY, 0) == 0


def test_greedy_is_settled_only_beyond_twice_the_noise() -> None:
    assert settle(logits_of(1, 2), GREEDY, 0, noise=0.4).settled
    assert not settle(logits_of(1, 2), GREEDY, 0, noise=0.5).settled


def test_a_draw_is_settled_only_beyond_twice_the_noise() -> None:
    sampling = Sampling(temperature=2.0, key=KEY)
    one, other = 2.0 * gumbel(KEY, 0, 2)
    assert settle(logits_of(0, 0), sampling, 0, noise=0.49 * abs(one - other)).settled
    assert not settle(logits_of(0, 0), sampling, 0, noise=0.51 * abs(one - other)).settled


def test_draws_follow_the_softmax() -> None:
    logits = logits_of(0.0, 1.0, 2.0)
    sampling = Sampling(temperature=0.5, key=KEY)
    drawn = np.bincount([decide(logits, sampling, step) for step in range(20_000)], minlength=3)
    expected = np.exp(logits / 0.5)
    expected *= 20_000 / expected.sum()
    # Chi-squared with 2 degrees of freedom: 13.8 is passed by one stream in a thousand.
    assert ((drawn - expected) ** 2 / expected).sum() < 13.8


def test_numbers_of_a_step_are_the_same_whatever_else_was_drawn() -> None:
    third = gumbel(KEY, 3, 10)
    gumbel(KEY, 1, 1000)
    assert gumbel(KEY, 3, 10).tolist() == third.tolist()
    assert gumbel(KEY, 3, 11)[:10].tolist() == third.tolist()


def test_streams_differ_by_seed_sample_prompt_and_step() -> None:
    streams = [
        gumbel(stream_key(7, 0, [1, 2]), 0, 4),
        gumbel(stream_key(8, 0, [1, 2]), 0, 4),
        gumbel(stream_key(7, 1, [1, 2]), 0, 4),
        gumbel(stream_key(7, 0, [12]), 0, 4),
        gumbel(stream_key(7, 0, [1, 2]), 1, 4),
    ]
    assert len({tuple(stream) for stream in streams}) == 5


def test_the_stream_is_pinned() -> None:
    """Stored results of seeded draws are found again for ever, so their numbers never change."""
    found = [round(float(number), 9) for number in gumbel(KEY, 5, 3)]
    assert found == [-0.189247138, -0.647541183, 1.802007937]


def test_numbers_are_finite_and_have_the_mean_of_gumbel() -> None:
    numbers = gumbel(KEY, 0, 200_000)
    assert np.isfinite(numbers).all()
    assert abs(float(numbers.mean()) - 0.5772) < 0.01


def allowed(logits: np.ndarray, sampling: Sampling) -> list[int]:
    return np.flatnonzero(logits >= floors(logits, sampling, 0.0)[1]).tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [0]),
        (2, 1.0, [0, 1, 2]),  # 1 and 2 are equal: ties at the edge stay in
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.30, [0]),
        (0, 0.45, [0, 1, 2]),
        (0, 0.89, [0, 1, 2]),
        (0, 0.91, [0, 1, 2, 3]),
        (1, 0.99, [0]),
        # Of what top-k left, token 0 has 4/9: 0.45 is more than that.
        (3, 0.44, [0]),
        (3, 0.45, [0, 1, 2]),
    ],
)
def test_truncation_keeps_the_likeliest(top_k: int, top_p: float, expected: list[int]) -> None:
    logits = np.log(np.array([0.4, 0.25, 0.25, 0.1], dtype=np.float64))
    assert allowed(logits, Sampling(1.0, top_p, top_k)) == expected


def test_doubt_about_top_k_is_doubt_about_the_nucleus() -> None:
    """Three or four tokens share what top-k leaves, so the first has 0.40 or 0.47 of it."""
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.15], dtype=np.float64))
    sure, possible = floors(logits, Sampling(1.0, 0.45, 3), noise=1e-6)
    assert logits[0] >= sure > logits[1] >= possible


def test_either_of_two_that_noise_may_swap_can_be_the_nucleus() -> None:
    logits = np.log(np.array([0.4, 0.4 - 1e-8, 0.2], dtype=np.float64))
    sure, possible = floors(logits, Sampling(1.0, 0.3), noise=1e-6)
    assert sure > logits[0] > logits[1] >= possible > logits[2]


def test_temperature_comes_before_the_nucleus() -> None:
    logits = np.log(np.array([0.6, 0.4], dtype=np.float64))
    assert allowed(logits, Sampling(1.0, 0.65)) == [0, 1]
    assert allowed(logits, Sampling(0.1, 0.65)) == [0]


def test_the_least_temperature_is_greedy() -> None:
    sampling = Sampling(temperature=math.ulp(0.0), top_p=0.5, top_k=2, key=KEY)
    assert {decide(logits_of(0, 5, 4), sampling, step) for step in range(50)} == {1}


def test_infinite_logits_are_never_chosen() -> None:
    logits = logits_of(-math.inf, 1, -math.inf, 0)
    sampling = Sampling(temperature=10, top_p=0.999, key=KEY)
    assert {decide(logits, sampling, step) for step in range(50)} == {1, 3}


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.2, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 3, 7]),
    key=st.integers(0, 50).map(lambda seed: stream_key(seed, 0, [])),
)


def directions(rng: np.random.Generator, size: int) -> np.ndarray:
    """Errors at or near their bound, which is the worst: chance ones, and one token against all."""
    chance = np.clip(rng.normal(size=(20, size)) * 3, -1, 1)
    against = 1 - 2 * np.eye(size)
    return np.concatenate([chance, against, -against])


@given(
    st.integers(2, 12),
    st.integers(0, 2**32 - 1),
    samplings,
    st.sampled_from([1e-3, 0.03, 0.3]),
    st.sampled_from([0.05, 1.0, 4.0]),
)
def test_no_noise_within_the_bound_changes_a_settled_decision(
    size: int, seed: int, sampling: Sampling, noise: float, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=size) * spread
    logits[rng.integers(size)] = logits[0]
    decision = settle(logits, sampling, 3, noise)
    drawing = replace(sampling, temperature=sampling.temperature or 1.0)
    sure, possible = floors(logits, drawing, noise)
    for error in 0.999 * noise * directions(rng, size):
        inside = set(allowed(logits + error, drawing))
        assert set(np.flatnonzero(logits >= sure)) <= inside, "surely in"
        assert inside <= set(np.flatnonzero(logits >= possible)), "possibly in"
        if decision.settled:
            assert decide(logits + error, sampling, 3) == decision.token


@given(st.integers(0, 2**32 - 1), samplings)
def test_most_decisions_are_settled_when_noise_is_small(seed: int, sampling: Sampling) -> None:
    """Or the property above would hold for code that settles nothing."""
    logits = np.random.default_rng(seed).normal(size=50) * 3
    settled = sum(settle(logits, sampling, step, 1e-9).settled for step in range(20))
    assert settled == 20
