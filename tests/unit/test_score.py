"""Each term of a score, against the same sum by hand."""

import pytest

from flowmesh.core.utility import Option, Weights, rate, score

WEIGHTS = Weights(
    worth=3.0, path=0.5, fair=0.25, cost=2.0, energy=4.0, risk=5.0, usd_per_kwh=0.1,
    kg_co2_per_kwh=0.5, usd_per_kg_co2=0.2, usd_per_gb=0.03, floor_usd_per_hour=0.36,
)  # fmt: skip
OPTION = Option(
    reference_usd=0.01, importance=2.0, urgency=1.5, path_usd=0.004, behind=2.0, usd_per_hour=7.2,
    wait_s=4.0, load_s=1.0, fetch_s=2.0, exec_s=17.0, moved_gb=3.0, joules=36_000.0,
    interruptions_per_hour=9.0, redo_s=10.0,
)  # fmt: skip


def test_every_term_is_what_a_calculation_by_hand_gives() -> None:
    found = score(OPTION, WEIGHTS)
    assert found.value == pytest.approx(3.0 * 2.0 * 0.01)
    assert found.path == pytest.approx(3.0 * 2.0 * 0.5 * 0.004)
    assert found.urgency == pytest.approx((0.06 + 0.012) * 0.5)
    assert found.fairness == pytest.approx(0.06 * 0.25 * 2.0)
    assert found.cost == pytest.approx(2.0 * 20.0 * 7.2 / 3600)
    assert found.egress == pytest.approx(2.0 * 3.0 * 0.03)
    assert found.energy == pytest.approx(4.0 * 0.01 * (0.1 + 0.5 * 0.2))
    # Of 20 s at 9 interruptions an hour, 4.88 % are hit, and 10 s of them lost.
    assert found.risk == pytest.approx(5.0 * 0.0487706 * 10.0 * 7.2 / 3600, rel=1e-5)
    gains = found.value + found.path + found.urgency + found.fairness
    assert found.usd == pytest.approx(gains - found.cost - found.egress - found.energy - found.risk)
    assert found.seconds == 24.0


def test_a_free_worker_has_the_least_price() -> None:
    assert score(Option(0.0, exec_s=10.0), WEIGHTS).cost == pytest.approx(2.0 * 10 * 0.36 / 3600)


def test_a_gain_counts_by_the_second_and_a_loss_the_more_the_longer() -> None:
    gain = score(Option(1.0, exec_s=10.0), WEIGHTS)
    assert float(rate(gain, 0.05)) == pytest.approx(gain.usd / 10)
    short, long = (score(Option(0.0, exec_s=one), WEIGHTS) for one in (1.0, 2.0))
    assert float(rate(long, 0.05)) < float(rate(short, 0.05)) < 0
