"""The law of rented machines: who is there, who is gone, and what that means for their workers."""

import pytest

from flowmesh.base.ids import InstanceId, WorkerId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import DrainInstance, GrantLease
from flowmesh.core.events import WorkerGone
from flowmesh.core.fleet import InstanceStatus
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.renting import LAUNCH_GRACE_MS
from support.core import spec
from support.renting import RentingBench, offer


@pytest.fixture
def bench() -> RentingBench:
    return RentingBench()


@pytest.fixture
def working() -> RentingBench:
    """A machine whose worker holds a lease."""
    bench = RentingBench(policy=Utility())
    bench.launch()
    bench.listed("i1")
    bench.submit("r", [spec("x")])
    assert bench.sync(instance=InstanceId("i1"))
    return bench


def test_offers_replace_what_the_same_provider_offered(bench: RentingBench) -> None:
    bench.offers(offer("small"), offer("large"))
    bench.offers(offer("other", provider="q"), provider="q")
    bench.offers(offer("large"))
    assert list(bench.state.offers) == ["other", "large"]


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_an_offer_without_a_sound_price_does_not_count(bench: RentingBench, price: float) -> None:
    bench.offers(offer(usd_per_hour=price))
    assert not bench.state.offers


def test_a_launch_takes_one_of_the_offer(bench: RentingBench) -> None:
    bench.offers(offer(count=2))
    assert bench.launch() == "i1"
    assert bench.state.offers[offer().id].count == 1
    assert bench.one("i1").status is InstanceStatus.LAUNCHING
    assert bench.launch() == "i2"


def test_its_worker_makes_it_run_and_teaches_how_long_it_took(bench: RentingBench) -> None:
    bench.launch()
    bench.now_ms += 180_000
    bench.sync(instance=InstanceId("i1"))
    instance = bench.one("i1")
    assert (instance.status, instance.running_ms) == (InstanceStatus.RUNNING, 181_000)
    assert instance.quiet_ms == 181_000
    assert any(name.startswith("startup|p|small") for name in bench.state.rates)


def test_a_worker_gets_the_price_and_the_risk_of_its_machine(bench: RentingBench) -> None:
    bench.launch(offer(interruptions_per_hour=2.0))
    bench.sync(instance=InstanceId("i1"))
    worker = bench.state.workers[WorkerId("w")]
    assert (worker.usd_per_hour, worker.interruptions_per_hour) == (0.7, 2.0)


def test_a_list_made_before_the_launch_says_nothing_of_it(bench: RentingBench) -> None:
    bench.launch()
    bench.listed()
    assert bench.one("i1").status is InstanceStatus.LAUNCHING


def test_a_launch_that_is_never_listed_is_dropped(bench: RentingBench) -> None:
    bench.launch()
    bench.now_ms += LAUNCH_GRACE_MS - 1
    bench.listed()
    assert bench.one("i1")
    bench.now_ms += 1
    bench.listed()
    assert not bench.state.instances
    assert [gone.id for gone in bench.last.gone] == ["i1"]


def test_a_launch_that_failed_is_dropped_and_says_why(bench: RentingBench) -> None:
    bench.launch()
    bench.listed(failed=(("i1", "the offer is gone"),))
    assert [gone.message for gone in bench.last.gone] == ["the offer is gone"]


def test_a_machine_that_was_listed_may_fail_to_start(bench: RentingBench) -> None:
    bench.launch()
    bench.listed("i1")
    bench.listed(failed=(("i1", "it did not start"),))
    assert not bench.state.instances


def test_a_launch_that_answered_with_an_error_but_worked_stays(bench: RentingBench) -> None:
    bench.launch()
    bench.listed("i1", failed=(("i1", "500"),))
    assert bench.one("i1").listed


def test_a_worker_that_was_heard_of_outweighs_a_failure(bench: RentingBench) -> None:
    bench.launch()
    bench.sync(instance=InstanceId("i1"))
    bench.listed(failed=(("i1", "500"),))
    assert bench.one("i1").status is InstanceStatus.RUNNING


def test_one_list_without_a_machine_may_be_wrong_two_are_not(working: RentingBench) -> None:
    working.listed()
    assert working.running()
    working.listed("i1")
    working.listed()
    assert working.running()
    working.listed()
    assert not working.running()
    assert WorkerId("w") not in working.state.workers
    assert [gone.id for gone in working.last.gone] == ["i1"]


def test_a_machine_whose_worker_went_too_is_gone_at_once(working: RentingBench) -> None:
    working.step(WorkerGone(working.now_ms, WorkerId("w")))
    working.listed()
    assert not working.state.instances


def test_what_its_provider_takes_away_costs_its_tasks_nothing(working: RentingBench) -> None:
    working.listed()
    working.listed()
    task = next(iter(working.state.tasks.values()))
    assert (task.losses, task.status) == (0, "ready")
    assert working.state.rates["interruptions|p|small"].mean > 0


def test_another_providers_list_says_nothing_of_it(working: RentingBench) -> None:
    working.listed(provider="q")
    working.listed(provider="q")
    assert working.running()


def test_what_is_listed_as_ours_and_not_known_is_given_back(bench: RentingBench) -> None:
    bench.sync(instance=InstanceId("i7"))
    bench.listed("i7")
    assert bench.one("i7").status is InstanceStatus.TERMINATING
    assert bench.state.workers[WorkerId("w")].draining
    assert bench.launch() == "i8"  # a number is never used twice
    bench.listed("i8")
    assert list(bench.state.instances) == ["i8"]


@pytest.mark.parametrize("name", ["", "i", "i²", "i-1", "x9", "i" + "9" * 40])
def test_any_name_may_be_listed(bench: RentingBench, name: str) -> None:
    bench.listed(name)
    assert bench.state.next_instance == 1
    bench.listed()
    assert not bench.state.instances


def test_its_workers_drain_with_it_whatever_they_say(working: RentingBench) -> None:
    apply(working.state, DrainInstance(working.now_ms, InstanceId("i1"), "spare"))
    assert working.one("i1").status is InstanceStatus.DRAINING
    working.submit("s", [spec("y")])
    assert working.sync(instance=InstanceId("i1"), draining=False) == [("x",)]
    assert working.sync(instance=InstanceId("i1"), done=["x"]) == []
    assert working.state.workers[WorkerId("w")].draining


def test_a_worker_that_starts_on_a_machine_that_drains_gets_no_work() -> None:
    bench = RentingBench(policy=Utility())
    bench.launch()
    apply(bench.state, DrainInstance(bench.now_ms, InstanceId("i1")))
    bench.submit("r", [spec("x")])
    assert bench.sync(instance=InstanceId("i1")) == []
    assert bench.one("i1").status is InstanceStatus.TERMINATING  # by the policy, at once


def test_given_back_it_stays_until_it_is_listed_no_more(bench: RentingBench) -> None:
    bench.launch()
    bench.listed("i1")
    bench.give_back("i1")
    bench.listed("i1")
    assert bench.one("i1").status is InstanceStatus.TERMINATING
    bench.listed()
    assert not bench.state.instances


def test_what_is_given_back_does_not_drain_again(bench: RentingBench) -> None:
    bench.launch()
    bench.give_back("i1")
    apply(bench.state, DrainInstance(bench.now_ms, InstanceId("i1")))
    assert bench.one("i1").status is InstanceStatus.TERMINATING


def test_quiet_is_since_its_last_lease_ended(working: RentingBench) -> None:
    assert working.one("i1").quiet_ms == 0
    working.now_ms += 5_000
    working.sync(instance=InstanceId("i1"), done=["x"])
    assert working.one("i1").quiet_ms == 6_000
    working.now_ms += 5_000
    working.sync(instance=InstanceId("i1"))
    assert working.one("i1").quiet_ms == 6_000
    working.submit("s", [spec("y")])
    assert working.one("i1").quiet_ms == 0


def test_a_machine_without_its_worker_is_quiet(working: RentingBench) -> None:
    working.now_ms += 3_000
    working.step(WorkerGone(working.now_ms, WorkerId("w")))
    assert working.one("i1").quiet_ms == 4_000


def test_a_worker_may_be_moved_to_another_machine(working: RentingBench) -> None:
    working.launch()
    working.sync(instance=InstanceId("i2"))
    assert working.one("i1").quiet_ms
    assert not working.one("i2").quiet_ms


def test_decisions_on_a_machine_that_is_gone_change_nothing(bench: RentingBench) -> None:
    bench.give_back("i9")
    apply(bench.state, DrainInstance(bench.now_ms, InstanceId("i9")))
    assert not bench.state.instances


def test_a_journal_of_renting_replays(working: RentingBench) -> None:
    working.listed()
    working.listed()
    working.listed("i4")
    later = ControlPlane()
    later.replay(working.journal)
    assert later.state == working.state
    assert any(isinstance(record, GrantLease) for record in working.journal)
