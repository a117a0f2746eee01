"""What is rented, and when it is given back."""

from typing import Any

import pytest

from flowmesh.base.ids import InstanceId, OfferId, RunId, StepId, TenantId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import Decision, DrainInstance, LaunchInstance, TerminateInstance
from flowmesh.core.events import RunCancelled, RunSubmitted, StepExpanded
from flowmesh.core.fleet import InstanceStatus
from flowmesh.core.knowledge import Arrivals
from flowmesh.core.moments import LATE
from flowmesh.core.plan import Utility
from flowmesh.core.records import Demand, Run, Step
from flowmesh.core.scale import GATHER_S, OFFERS, SHUN_S, Bounds, FleetLimits, Scaler
from flowmesh.core.utility import PRESETS
from support.core import spec
from support.renting import SMALL, OnlyRenting, RentingBench, offer

#: An 8 billion parameter model in 16 bits, and one of 70.
SMALL_MODEL = Demand("g@1", (), 16_000_000_000, 16e9, 131_072.0)
LARGE_MODEL = Demand("g@1", (), 70_000_000_000, 140e9, 327_680.0)
TOOL = Demand("tool@1")


def bench_of(**limits: Any) -> RentingBench:
    return RentingBench(FleetLimits(**{"max_instances": 64, **limits}))


def ask(
    bench: RentingBench,
    tasks: int,
    demand: Demand = SMALL_MODEL,
    *,
    name: str = "r",
    work: float = 1.0,
    devices: int = 1,
    **run: Any,
) -> list[Decision]:
    """A run of one step whose tasks are wanted now."""
    bench.now_ms += 1_000
    step = StepId(f"{name}/only")
    record = Run(RunId(name), TenantId("t"), 0, (step,), bench.now_ms, **run)
    bench.step(RunSubmitted(bench.now_ms, record, (Step(step, RunId(name), ()),)))
    tokens = (1000, 256) if demand.flops_per_token else (0, 0)
    more = {"prompt_tokens": tokens[0], "output_tokens": tokens[1], "max_batch": 256, "work": work}
    more["devices"] = devices
    wanted = tuple(spec(f"{name}{number}", key=f"k{name}", **more) for number in range(tasks))
    expanded = StepExpanded(bench.now_ms, step, tasks, wanted=wanted, demand=demand)
    made = bench.step(expanded)
    return made + bench.wait(1)


def launches(decisions: list[Decision]) -> list[str]:
    return [one.offer.id for one in decisions if isinstance(one, LaunchInstance)]


def test_by_default_nothing_is_rented() -> None:
    bench = RentingBench(FleetLimits())
    bench.offers(offer())
    assert ask(bench, 1000) == []
    assert bench.wait(1000) == []


def test_work_that_nothing_fits_gets_a_machine_even_if_it_is_little() -> None:
    bench = bench_of()
    bench.offers(offer(usd_per_hour=50.0, startup_s=500.0))
    assert ask(bench, 1, TOOL) == []
    assert launches(bench.wait(GATHER_S)) == ["small"]


def test_the_least_cost_for_the_work_wins_not_the_least_price() -> None:
    bench = bench_of()
    # The large one is eight times as fast, and twice as dear.
    bench.offers(offer("small"), offer("large", usd_per_hour=1.4))
    assert set(launches(ask(bench, 20_000))) == {"large"}
    other = bench_of()
    other.offers(offer("small"), offer("large", usd_per_hour=14.0))
    assert set(launches(ask(other, 20_000))) == {"small"}


def test_what_is_often_taken_away_must_be_cheaper() -> None:
    spot = offer("small-spot", usd_per_hour=0.5, spot=True, interruptions_per_hour=1.0)
    bench = bench_of()
    bench.offers(offer("small"), spot)
    assert set(launches(ask(bench, 5_000))) == {"small-spot"}
    bench = bench_of()
    bench.offers(offer("small"), offer("small-spot", spot=True, interruptions_per_hour=1.0))
    assert set(launches(ask(bench, 5_000))) == {"small"}


def test_a_model_gets_a_device_that_holds_it() -> None:
    bench = bench_of()
    bench.offers(offer("small", usd_per_hour=0.01), offer("large"))
    assert set(launches(ask(bench, 1_000, LARGE_MODEL))) == {"large"}
    bench = bench_of()
    bench.offers(offer("small", usd_per_hour=0.01))
    ask(bench, 1_000, LARGE_MODEL)
    assert launches(bench.wait(60)) == []


def test_many_offers_of_one_kind_hide_no_other_kind() -> None:
    """The large model fits on nothing that is cheap, be there ever so much of it."""
    bench = bench_of()
    cheap = [offer(f"small{number}", usd_per_hour=0.1 + number / 100) for number in range(OFFERS)]
    bench.offers(*cheap, offer("large", devices=4))
    assert set(launches(ask(bench, 2_000, SMALL_MODEL, devices=4))) == {"large"}


def test_more_work_gets_more_machines() -> None:
    counts = []
    for tasks in (100, 5_000, 30_000):
        bench = bench_of()
        bench.offers(offer())
        counts.append(len(launches(ask(bench, tasks))))
    assert counts == sorted(counts)
    assert counts[0] <= 1 < counts[1] < counts[2]


def test_what_is_starting_counts_as_there() -> None:
    bench = bench_of()
    bench.offers(offer())
    first = launches(ask(bench, 10_000))
    again = [one for _ in range(20) for one in launches(bench.wait(1))]
    assert first
    assert again == []


def test_work_that_ends_before_a_machine_would_start_gets_none() -> None:
    bench = bench_of()
    bench.sync("own", device=SMALL)
    bench.offers(offer())
    assert ask(bench, 60, TOOL, work=100.0) == []  # a minute
    assert bench.wait(5) == []


def test_own_workers_are_helped_where_they_take_too_long() -> None:
    bench = bench_of()
    bench.sync("own", device=SMALL)
    bench.offers(offer())
    assert launches(ask(bench, 7_200, TOOL, work=100.0))  # two hours


def test_who_is_in_a_hurry_gets_more() -> None:
    counts = {}
    for name in ("cost", "balanced", "latency"):
        bench = RentingBench(policy=_Preset(name))
        bench.offers(offer())
        counts[name] = len(launches(ask(bench, 4_000)))
    assert counts["cost"] < counts["balanced"] < counts["latency"]


class _Preset(OnlyRenting):
    def __init__(self, name: str) -> None:
        super().__init__(FleetLimits(max_instances=64))
        self.weights = PRESETS[name]

    def decide(self, state: Any) -> Decision | None:
        return self.scaler.decide(state, self.weights)


def test_a_deadline_that_can_be_met_gets_more() -> None:
    relaxed, pressed = bench_of(), bench_of()
    for bench in (relaxed, pressed):
        bench.offers(offer())
    slow = launches(ask(relaxed, 4_000))
    fast = launches(ask(pressed, 4_000, deadline_ms=pressed.now_ms + 300_000))
    assert len(fast) > len(slow)


@pytest.mark.parametrize("limit", [1, 3])
def test_the_most_machines_are_the_most(limit: int) -> None:
    bench = bench_of(max_instances=limit)
    bench.offers(offer("small"), offer("large"))
    assert len(launches(ask(bench, 20_000))) == limit
    assert launches(bench.wait(100)) == []


def test_a_providers_own_limit_holds() -> None:
    bench = bench_of(providers={"p": Bounds(0, 2)})
    bench.offers(offer())
    bench.offers(offer("other", provider="q", usd_per_hour=0.8), provider="q")
    found = launches(ask(bench, 20_000) + bench.wait(1))
    assert found.count("small") == 2
    assert found.count("other") > 2


def test_the_spending_cap_counts_all_that_is_rented() -> None:
    bench = bench_of(usd_per_hour=2.2)
    bench.offers(offer())
    assert len(launches(ask(bench, 20_000))) == 3
    bench.give_back("i1")
    assert bench.wait(2) == []


def test_the_least_machines_are_kept_without_work() -> None:
    bench = bench_of(min_instances=2)
    assert launches(bench.offers(offer("large"), offer("small"))) == ["small", "small"]
    for name in ("i1", "i2"):
        bench.sync(name, instance=InstanceId(name))
    bench.listed("i1", "i2")
    for _ in range(20):
        for name in ("i1", "i2"):
            bench.sync(name, instance=InstanceId(name))
        assert bench.wait(10) == []


def idle(bench: RentingBench, seconds: int, warm: tuple[str, ...] = ()) -> list[Decision]:
    """Time passes while the machine's worker has nothing to do."""
    made: list[Decision] = []
    for _ in range(seconds // 5):
        bench.now_ms += 5_000
        before = len(bench.journal)
        bench.sync(instance=InstanceId("i1"), warm=warm)
        made += [one for one in bench.journal[before + 1 :]]  # type: ignore[misc]
    return made


def rented(**limits: Any) -> RentingBench:
    """With one machine that runs and has nothing to do."""
    bench = bench_of(**limits)
    bench.launch(limits.get("offer") or offer())
    bench.listed("i1")
    bench.now_ms += 90_000
    bench.sync(instance=InstanceId("i1"))
    return bench


def test_without_work_everything_is_given_back() -> None:
    bench = rented()
    made = idle(bench, 40)
    assert [type(one) for one in made] == [TerminateInstance]
    bench.listed()
    assert not bench.state.instances
    bench.sync(leaving=True)
    assert bench.wait(1) == []
    assert bench.plane.next_deadline_ms() is None


@pytest.mark.parametrize(("gap_s", "kept_s"), [(60.0, 85), (300.0, 25)])
def test_it_is_kept_while_another_start_would_be_dearer(gap_s: float, kept_s: int) -> None:
    """A start takes 90 s, and is paid for as idling is."""
    bench = rented()
    ask(bench, 1, LARGE_MODEL)  # that it cannot do
    bench.state.arrivals["often"] = Arrivals(bench.now_ms, 5.0, 5.0, 5, gap_s, 0.0, 1.0)
    assert idle(bench, kept_s, ("often",)) == []
    assert len(idle(bench, 20, ("often",))) == 1


def test_a_machine_that_was_paid_for_is_used_until_then() -> None:
    bench = bench_of()
    bench.launch(offer(billing_s=3600.0))
    bench.listed("i1")
    bench.now_ms += 90_000
    bench.sync(instance=InstanceId("i1"))
    assert idle(bench, 3_400) == []
    assert len(idle(bench, 100)) == 1


def test_a_worker_that_never_comes_is_given_up() -> None:
    bench = bench_of()
    bench.launch()
    bench.listed("i1")
    assert bench.wait(LATE * 90 - 1) == []
    (end,) = bench.wait(2)
    assert isinstance(end, TerminateInstance)


def test_an_offer_that_fails_is_left_alone_for_a_while() -> None:
    bench = bench_of(max_instances=1)
    bench.offers(offer("small"))
    assert launches(ask(bench, 10)) == ["small"]
    for times in (1, 2, 4):
        (name,) = bench.state.instances
        bench.now_ms += 1_000
        assert launches(bench.listed(failed=((name, "no more"),))) == []
        assert launches(bench.wait(SHUN_S * times - 1)) == []
        assert launches(bench.wait(2)) == ["small"]


def test_while_one_offer_is_left_alone_another_is_taken() -> None:
    bench = bench_of(max_instances=1)
    bench.offers(offer("small"), offer("large"))
    assert launches(ask(bench, 10)) == ["small"]
    bench.listed(failed=(("i1", "no more"),))
    assert launches(bench.wait(2)) == ["large"]


def test_it_does_not_wake_while_only_something_new_could_change_its_mind() -> None:
    bench = RentingBench(policy=_Both())
    bench.launch()
    bench.submit("r", [spec("x")])
    bench.sync(instance=InstanceId("i1"))
    bench.wait(2)
    assert bench.state.leases and not bench.state.ready
    assert bench.plane.policy.scaler.wakes_ms(bench.state) is None  # type: ignore[attr-defined]
    bench.offers(offer())
    assert bench.plane.policy.scaler.wakes_ms(bench.state) is not None  # type: ignore[attr-defined]


def test_what_is_drained_is_given_back_when_its_work_is_done() -> None:
    bench = RentingBench(policy=_Both())
    bench.launch()
    bench.submit("r", [spec("x")])
    bench.sync(instance=InstanceId("i1"))
    apply(bench.state, DrainInstance(bench.now_ms, InstanceId("i1")))
    bench.wait(5)
    assert bench.one("i1").status is InstanceStatus.DRAINING
    bench.now_ms += 2_000
    bench.sync(instance=InstanceId("i1"), done=["x"])
    assert bench.one("i1").status is InstanceStatus.TERMINATING


class _Both(OnlyRenting):
    """Grants, then rents."""

    def __init__(self) -> None:
        super().__init__(FleetLimits(max_instances=8))
        self.placing = Utility()

    def decide(self, state: Any) -> Decision | None:
        return self.placing.decide(state) or self.scaler.decide(state)


def test_what_will_be_taken_away_is_given_back_once_it_is_idle() -> None:
    bench = rented()
    bench.sync(instance=InstanceId("i1"), draining=True)
    assert bench.one("i1").status is InstanceStatus.RUNNING
    bench.wait(2)
    assert bench.one("i1").status is InstanceStatus.TERMINATING


def visits(bench: RentingBench, times: int) -> list[list[str]]:
    """A run of the same kind every ten minutes; what was launched before each of them came."""
    ahead = []
    for _ in range(times):
        found: list[str] = []
        for _ in range(60):
            found += launches(bench.wait(10))
        ahead.append(found)
        ask(bench, 200, name="again")
        bench.step(RunCancelled(bench.now_ms, RunId("again")))
        bench.listed(*bench.state.instances)
        bench.now_ms += 60_000
        for name in bench.state.instances:
            bench.sync(name, instance=name)
            bench.sync(name, leaving=True)
            bench.give_back(name)
        bench.listed()
        bench.now_ms += 130_000  # until it may be submitted anew
        bench.listed()
    return ahead


def test_a_pattern_is_met_before_it_comes_and_only_then() -> None:
    bench = bench_of(max_instances=1)
    bench.offers(offer())
    ahead = visits(bench, 6)
    assert ahead[:3] == [[], [], []]
    assert ahead[4:] == [["small"], ["small"]]


def test_a_pattern_that_has_ended_is_waited_for_once_or_twice() -> None:
    bench = bench_of(max_instances=1)
    bench.offers(offer())
    visits(bench, 6)
    found: list[str] = []
    for _ in range(720):
        found += launches(bench.wait(10))
        for name in list(bench.state.instances):
            if bench.one(name).status is InstanceStatus.TERMINATING:
                bench.listed()
    assert 1 <= len(found) <= 3


def test_worth_is_told_for_those_who_ask() -> None:
    bench = bench_of(max_instances=4)
    bench.offers(offer("small"), offer("large"))
    scaler = Scaler(FleetLimits(max_instances=4))
    assert scaler.worth(bench.state, OfferId("small")) is None
    bench = RentingBench(FleetLimits())
    bench.offers(offer("small"), offer("large", count=0))
    ask(bench, 1_000)
    score = scaler.worth(bench.state, OfferId("small"))
    assert score is not None
    assert (score.wait_s, score.load_s > 10) == (90.0, True)
    assert score.value > 0 < score.cost
    assert scaler.worth(bench.state, OfferId("large")) is None
