"""Laws of the utility: what must make an option worse does, and nothing else matters."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmesh.base.ids import RunId, StepId, TenantId, WorkerId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import GrantLease
from flowmesh.core.events import RunSubmitted, StepExpanded, WorkerSynced
from flowmesh.core.plan import Utility
from flowmesh.core.records import Run, Step
from flowmesh.core.state import State
from flowmesh.core.utility import (
    PRESETS,
    Option,
    Weights,
    checkpoint_interval_s,
    plain,
    rate,
    score,
    urgency,
)
from support.core import spec

usd = st.floats(1e-9, 1e3)
seconds = st.floats(0.0, 1e5)
options = st.builds(
    Option,
    reference_usd=usd,
    importance=st.floats(0.01, 100),
    urgency=st.floats(1, 100),
    path_usd=st.one_of(st.just(0.0), usd),
    behind=st.floats(0, 10),
    usd_per_hour=st.one_of(st.just(0.0), usd),
    wait_s=seconds,
    load_s=seconds,
    fetch_s=seconds,
    exec_s=st.floats(1e-3, 1e5),
    moved_gb=st.floats(0, 1e3),
    joules=st.floats(0, 1e9),
    interruptions_per_hour=st.floats(0, 20),
    redo_s=seconds,
)
presets = st.sampled_from(sorted(PRESETS))


def rated(option: Option, weights: Weights) -> float:
    return float(rate(score(option, weights), weights.floor_s))


@pytest.mark.parametrize(
    "worse",
    [
        *("usd_per_hour", "wait_s", "load_s", "fetch_s", "exec_s", "moved_gb", "joules"),
        *("redo_s", "interruptions_per_hour"),
    ],
)
@given(option=options, preset=presets, more=st.floats(1e-3, 1e3))
def test_what_costs_or_takes_more_is_never_better(
    worse: str, option: Option, preset: str, more: float
) -> None:
    """Price, waiting, loading, distance in seconds and in bytes, energy, risk."""
    weights = PRESETS[preset]
    after = replace(option, **{worse: getattr(option, worse) + more})
    least = rated(option, weights)
    assert rated(after, weights) <= least + 1e-9 * abs(least)


@pytest.mark.parametrize("better", ["reference_usd", "importance", "urgency", "path_usd", "behind"])
@given(option=options, preset=presets, more=st.floats(1e-3, 1e3))
def test_what_is_worth_more_is_never_worse(
    better: str, option: Option, preset: str, more: float
) -> None:
    weights = PRESETS[preset]
    after = replace(option, **{better: getattr(option, better) + more})
    least = rated(option, weights)
    assert rated(after, weights) >= least - 1e-9 * abs(least)


def in_currency(weights: Weights, rate: float) -> Weights:
    """The same weights where a dollar is so many of another currency."""
    names = ("usd_per_kwh", "usd_per_kg_co2", "usd_per_gb", "floor_usd_per_hour")
    return replace(weights, **{name: getattr(weights, name) * rate for name in names})


@given(option=options, preset=presets, power=st.integers(-20, 20))
def test_a_score_is_the_same_in_any_currency(option: Option, preset: str, power: int) -> None:
    weights, rate = PRESETS[preset], 2.0**power
    names = ("reference_usd", "path_usd", "usd_per_hour")
    other = replace(option, **{name: getattr(option, name) * rate for name in names})
    assert rated(other, in_currency(weights, rate)) == pytest.approx(rated(option, weights) * rate)


@given(options_=st.lists(options, min_size=1, max_size=6), preset=presets)
def test_arrays_are_scored_by_the_same_code(options_: list[Option], preset: str) -> None:
    weights = PRESETS[preset]
    fields = {name: np.array([getattr(one, name) for one in options_]) for name in Option.__slots__}
    found = rate(score(Option(**fields), weights), weights.floor_s)
    assert found == pytest.approx([rated(one, weights) for one in options_])


@given(option=options, preset=presets)
def test_a_kept_score_has_terms_that_add_up(option: Option, preset: str) -> None:
    kept = plain(score(option, PRESETS[preset]))
    assert all(type(getattr(kept, name)) is float for name in kept.__slots__)
    worth = kept.value + kept.path + kept.urgency + kept.fairness
    assert kept.usd == worth - kept.cost - kept.egress - kept.energy - kept.risk
    assert min(getattr(kept, name) for name in kept.__slots__) >= 0


@given(age_s=seconds, more_s=st.floats(1, 1e5), horizon_s=st.floats(1, 1e5), slack_s=seconds)
def test_urgency_rises_with_age_and_towards_a_deadline(
    age_s: float, more_s: float, horizon_s: float, slack_s: float
) -> None:
    assert urgency(0.0, horizon_s, 1e9) == pytest.approx(1.0)
    assert urgency(age_s + more_s, horizon_s, slack_s) > urgency(age_s, horizon_s, slack_s)
    later = urgency(age_s, horizon_s, slack_s - more_s)
    assert later >= urgency(age_s, horizon_s, slack_s)
    assert urgency(0.0, horizon_s, -1e6 * horizon_s) > 1e6


def test_checkpoints_are_the_rarer_the_safer_the_worker() -> None:
    assert checkpoint_interval_s(30.0, 0.0) == float("inf")
    assert checkpoint_interval_s(30.0, 60.0) == pytest.approx(60.0)
    assert checkpoint_interval_s(30.0, 15.0) == pytest.approx(120.0)


Fleet = list[tuple[str, float, tuple[str, ...]]]
Work = list[tuple[str, str, int, float]]


def decided(
    fleet: Fleet, work: Work, weights: Weights = PRESETS["balanced"], rate: float = 1.0
) -> list[GrantLease]:
    """All grants of a policy that meets idle workers and waiting tasks at one moment."""
    state, policy = State(), Utility(in_currency(weights, rate))
    for worker, usd_per_hour, warm in fleet:
        synced = WorkerSynced(0, WorkerId(worker), ("models",), 1, usd_per_hour * rate, warm)
        apply(state, synced)
    for name, tenant, count, amount in work:
        run, step_id = RunId(name), StepId(f"{name}/only")
        record = Run(run, TenantId(tenant), 0, (step_id,), 0)
        apply(state, RunSubmitted(0, record, (Step(step_id, run, ()),)))
        tasks = tuple(spec(f"{name}-{n}", key=name, work=amount) for n in range(count))
        apply(state, StepExpanded(0, step_id, count, wanted=tasks))
    made: list[GrantLease] = []
    while choice := policy.decide(state):
        apply(state, choice)
        assert isinstance(choice, GrantLease)
        made.append(choice)
    return made


fleets = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([(), ("k0",), ("k0", "k1")])),
    min_size=1,
    max_size=4,
).map(lambda found: [(f"w{n}", *one) for n, one in enumerate(found)])
works = st.lists(
    st.tuples(st.sampled_from("tu"), st.integers(1, 9), st.sampled_from([1.0, 500.0])),
    min_size=1,
    max_size=4,
).map(lambda found: [(f"k{n}", *one) for n, one in enumerate(found)])


@settings(deadline=None, max_examples=60)
@given(fleet=fleets, work=works, power=st.integers(-12, 12), preset=presets)
def test_decisions_are_the_same_in_any_currency(
    fleet: Fleet, work: Work, power: int, preset: str
) -> None:
    ours = decided(fleet, work, PRESETS[preset])
    theirs = decided(fleet, work, PRESETS[preset], 2.0**power)
    assert [(one.worker, one.tasks) for one in ours] == [(one.worker, one.tasks) for one in theirs]


@settings(deadline=None, max_examples=60)
@given(fleet=fleets, work=works, data=st.data())
def test_the_order_of_workers_and_keys_does_not_matter(
    fleet: Fleet, work: Work, data: st.DataObject
) -> None:
    shuffled = data.draw(st.sampled_from(list(permutations(fleet))))
    mixed = data.draw(st.sampled_from(list(permutations(work))))
    ours, theirs = decided(fleet, work), decided(list(shuffled), list(mixed))
    assert [(one.worker, one.tasks) for one in ours] == [(one.worker, one.tasks) for one in theirs]
