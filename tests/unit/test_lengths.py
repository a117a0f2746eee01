"""How long outputs are expected to get."""

import random

import numpy as np
import pytest

from flowmesh.core import lengths
from flowmesh.core.knowledge import Lengths
from flowmesh.core.lengths import expected_output, longest_output, quantile
from flowmesh.core.state import State


def seen(tokens: list[int], limit: int = 1000) -> State:
    known: Lengths | None = None
    pooled: Lengths | None = None
    for one in tokens:
        known = lengths.learnt(known, pooled, one, limit)
        pooled = lengths.learnt(pooled, None, one, limit)
    assert known is not None and pooled is not None
    return State(lengths={lengths.key("k", limit): known, lengths.key("k", 0): pooled})


def test_before_anything_is_seen_outputs_are_spread_over_the_limit() -> None:
    assert expected_output(State(), "k", 1000) == pytest.approx(667, abs=1)
    assert quantile(State(), "k", 1000, 0.5) == pytest.approx(750, abs=1)
    assert quantile(State(), "k", 1000, 1.0) == 1000


@pytest.mark.parametrize("length", [0, 3, 20, 100, 400, 999, 1000, 1200])
def test_equal_outputs_are_expected_again(length: int) -> None:
    state = seen([length] * 300)
    right = min(length, 1000)
    assert expected_output(state, "k", 1000) == pytest.approx(right, rel=0.13, abs=12)
    assert quantile(state, "k", 1000, 0.5) == pytest.approx(right, rel=0.19, abs=4)


def test_mean_and_quantiles_are_those_of_what_was_seen() -> None:
    rng = random.Random(1)
    tokens = [min(1000, int(rng.lognormvariate(4.5, 0.8))) for _ in range(3000)]
    state, recent = seen(tokens), np.array(tokens[-1000:])
    assert expected_output(state, "k", 1000) == pytest.approx(recent.mean(), rel=0.1)
    for share in (0.1, 0.5, 0.9, 0.99):
        right = float(np.quantile(recent, share))
        assert quantile(state, "k", 1000, share) == pytest.approx(right, rel=0.2)


def test_the_longest_of_many_is_what_chance_makes_it() -> None:
    rng = random.Random(2)
    tokens = [min(1000, int(rng.lognormvariate(4.5, 0.8))) for _ in range(3000)]
    state = seen(tokens)
    rows = np.array([1.0, 2.0, 8.0, 32.0, 128.0])
    longest = longest_output(state, "k", 1000, rows)
    assert isinstance(longest, np.ndarray)
    for count, expected in zip(rows, longest, strict=True):
        draws = [max(rng.choices(tokens[-1000:], k=int(count))) for _ in range(500)]
        assert expected == pytest.approx(np.mean(draws), rel=0.12)
    assert (np.diff(longest) > 0).all()


def test_one_row_and_arrays_of_any_shape_agree() -> None:
    state = seen([50, 100, 700] * 30)
    assert longest_output(state, "k", 1000, 1) == pytest.approx(
        expected_output(state, "k", 1000), rel=1e-9
    )
    grid = longest_output(state, "k", 1000, np.array([[1.0, 4.0], [16.0, 64.0]]))
    assert isinstance(grid, np.ndarray) and grid.shape == (2, 2)
    assert grid[1, 0] == longest_output(state, "k", 1000, 16)


def test_what_was_long_ago_counts_little() -> None:
    state = seen([900] * 500 + [50] * 1500)
    assert expected_output(state, "k", 1000) == pytest.approx(50, rel=1.0)


def test_weights_are_put_back_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [expected_output(seen([20, 300] * n), "k", 1000) for n in (10, 100, 300)]
    monkeypatch.setattr(lengths, "MOST_WEIGHT", 1.05)
    assert all(one.weight <= 1.06 for one in seen([5] * 100).lengths.values())
    after = [expected_output(seen([20, 300] * n), "k", 1000) for n in (10, 100, 300)]
    assert after == pytest.approx(before)


def test_a_new_limit_begins_as_the_others_of_its_key_ended() -> None:
    state = seen([100] * 200)
    assert expected_output(state, "k", 500) == pytest.approx(50, rel=0.3)
    assert expected_output(state, "other", 500) == pytest.approx(333, abs=1)
    assert expected_output(state, "k", 500, learning=False) == pytest.approx(333, abs=1)
    one = lengths.learnt(None, state.lengths[lengths.key("k", 0)], 50, 500)
    known = State(lengths={lengths.key("k", 500): one})
    assert expected_output(known, "k", 500) == pytest.approx(50, rel=0.3)
    assert sum(one.counts) / one.weight == pytest.approx(1 + 4 * lengths.MEMORY)
