"""Money: what is held and spent, what may be granted, and which runs are stopped."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core import budgets, money
from flowmesh.core.apply import apply
from flowmesh.core.budgets import Purse, affordable, in_words
from flowmesh.core.check import check
from flowmesh.core.decisions import GrantLease, StopRun
from flowmesh.core.events import (
    RunCancelled,
    RunSubmitted,
    StepExpanded,
    TenantChanged,
    Tick,
    WorkerGone,
)
from flowmesh.core.machine import ControlPlane
from flowmesh.core.money import DAY_MS, GRAIN_USD, day_usd
from flowmesh.core.records import Expected, Quota, Run, RunStatus, Step, TaskSpec, Tenant
from flowmesh.core.state import State, Touched
from flowmesh.stores.codec import decode_state, encode_state
from support.core import Bench, spec
from support.frugal import SIGMA, Frugal

#: What `Frugal` holds for a task on a worker of so many dollars an hour.
MARGIN = 1 + money.MARGIN_SIGMAS * SIGMA
PRICE = 36.0
TASK_USD = 0.01


class Idle:
    """A policy that grants nothing: tests grant by hand."""

    def decide(self, state: State) -> None:
        return None

    def wakes_ms(self, state: State) -> None:
        return None


@pytest.fixture
def bench() -> Bench:
    return Bench(ControlPlane(Frugal()))


@pytest.fixture
def idle() -> Bench:
    return Bench(ControlPlane(Idle()))


def submit(
    bench: Bench,
    name: str,
    tasks: Sequence[TaskSpec],
    *,
    tenant: str = "t",
    budget_usd: float = 0.0,
) -> None:
    run, step = RunId(name), StepId(f"{name}/only")
    record = Run(run, TenantId(tenant), 0, (step,), bench.now_ms, budget_usd=budget_usd)
    bench.step(RunSubmitted(bench.now_ms, record, (Step(step, run, ()),)))
    bench.step(StepExpanded(bench.now_ms, step, len(tasks), wanted=tuple(tasks)))


def grant(bench: Bench, worker: str, *tasks: str, usd: float) -> None:
    lease = LeaseId(bench.plane.state.next_lease)
    named = (bench.now_ms, lease, WorkerId(worker), "k", tuple(TaskId(one) for one in tasks))
    choice = GrantLease(*named, expected=Expected(exec_s=1.0, usd=usd))
    apply(bench.plane.state, choice)
    bench.journal.append(choice)
    check(bench.plane.state)


def run_of(bench: Bench, name: str) -> Run:
    return bench.plane.state.runs[RunId(name)]


def tenant_of(bench: Bench, name: str) -> Tenant:
    return bench.plane.state.tenants[TenantId(name)]


def close(usd: float) -> object:
    return pytest.approx(usd, abs=1e-6)


# What is held and spent


def test_a_grant_holds_an_equal_share_of_each_task_for_every_run(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")], tenant="t")
    submit(idle, "b", [spec("y")], tenant="u")
    idle.sync("w", usd_per_hour=PRICE)
    grant(idle, "w", "x", "y", usd=0.4)
    assert run_of(idle, "a").held_usd == close(0.3)
    assert run_of(idle, "b").held_usd == close(0.1)
    assert tenant_of(idle, "t").held_usd == close(0.3)
    assert (tenant_of(idle, "t").leases, tenant_of(idle, "u").leases) == (1, 1)


def test_two_sigmas_more_than_expected_are_held() -> None:
    expected = Expected(load_s=1.0, exec_s=3.0, sigma_s=0.5, usd=8.0)
    assert money.upper_usd(expected) == close(8.0 * (1 + 2 * 0.5 / 4))
    assert money.upper_usd(Expected(usd=8.0)) == 8.0


def test_whoever_joins_takes_a_share_and_whoever_leaves_gives_it_back(idle: Bench) -> None:
    submit(idle, "a", [spec("x")], tenant="t")
    idle.sync("w", usd_per_hour=PRICE)
    grant(idle, "w", "x", usd=0.3)
    submit(idle, "b", [spec("x")], tenant="t")
    submit(idle, "c", [spec("x")], tenant="u")
    assert [run_of(idle, one).held_usd for one in "abc"] == [close(0.1)] * 3
    assert (tenant_of(idle, "t").held_usd, tenant_of(idle, "t").leases) == (close(0.2), 1)
    idle.step(RunCancelled(idle.now_ms, RunId("a")))
    assert [run_of(idle, one).held_usd for one in "bc"] == [close(0.15)] * 2
    assert tenant_of(idle, "t").leases == 1
    idle.step(RunCancelled(idle.now_ms, RunId("b")))
    assert run_of(idle, "c").held_usd == close(0.3)
    assert (tenant_of(idle, "t").held_usd, tenant_of(idle, "t").leases) == (0.0, 0)


def test_a_result_lets_go_of_its_share_and_costs_what_it_took(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")], tenant="t")
    submit(idle, "b", [spec("x")], tenant="u")
    idle.sync("w", usd_per_hour=3600.0)
    grant(idle, "w", "x", "y", usd=4.0)
    idle.sync("w", done=["x"], seconds=3.0, usd_per_hour=3600.0)
    assert (run_of(idle, "a").spent_usd, run_of(idle, "a").held_usd) == (close(1.5), close(2.0))
    assert idle.runs[RunId("b")].spent_usd == 0  # as it was last told
    assert tenant_of(idle, "u").day_usd == close(1.5)
    assert (tenant_of(idle, "u").held_usd, tenant_of(idle, "u").leases) == (0.0, 0)
    idle.sync("w", done=["y"], seconds=0.0, usd_per_hour=3600.0)
    assert run_of(idle, "a").held_usd == 0.0
    assert tenant_of(idle, "t").leases == 0


def test_a_lost_worker_lets_go_of_all_that_was_held(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")])
    idle.sync("w", usd_per_hour=PRICE)
    grant(idle, "w", "x", "y", usd=1 / 3)
    assert run_of(idle, "a").held_usd > 0
    idle.step(WorkerGone(idle.now_ms, WorkerId("w")))
    assert (run_of(idle, "a").held_usd, run_of(idle, "a").spent_usd) == (0.0, 0.0)
    assert tenant_of(idle, "t") == Tenant(TenantId("t"), virtual_usd=0.0, open_runs=1)


def test_what_was_paid_before_is_not_paid_twice(idle: Bench) -> None:
    """A lost attempt is paid as far as it was heard of; its late result costs the rest."""
    submit(idle, "a", [spec("x")])
    idle.sync("w", usd_per_hour=3600.0)
    grant(idle, "w", "x", usd=1.0)
    idle.now_ms = 4_000
    idle.progress("w", "x", 1)
    idle.step(WorkerGone(idle.now_ms, WorkerId("w")))
    assert run_of(idle, "a").spent_usd == close(4.0)
    idle.sync("w", done=["x"], seconds=10.0, usd_per_hour=3600.0)
    assert tenant_of(idle, "t").day_usd == close(10.0)


def test_a_late_result_lets_go_of_what_the_lease_of_now_holds(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")])
    idle.sync("v", usd_per_hour=3600.0)
    grant(idle, "v", "x", usd=1.0)
    idle.step(WorkerGone(idle.now_ms, WorkerId("v")))
    idle.sync("w", usd_per_hour=3600.0)
    grant(idle, "w", "x", "y", usd=4.0)
    idle.sync("v", done=["x"], seconds=3.0, usd_per_hour=3600.0)
    assert (run_of(idle, "a").spent_usd, run_of(idle, "a").held_usd) == (close(3.0), close(2.0))


def test_a_day_ends_at_midnight_utc(idle: Bench) -> None:
    idle.now_ms = 3 * DAY_MS - 1_000
    submit(idle, "a", [spec("x"), spec("y")])
    idle.sync("w", usd_per_hour=3600.0)
    grant(idle, "w", "x", "y", usd=1.0)
    idle.sync("w", done=["x"], seconds=2.0, usd_per_hour=3600.0)
    tenant = tenant_of(idle, "t")
    assert (tenant.day, day_usd(tenant, idle.now_ms)) == (2, close(2.0))
    idle.now_ms = 3 * DAY_MS
    assert day_usd(tenant, idle.now_ms) == 0.0
    idle.sync("w", done=["y"], seconds=5.0, usd_per_hour=3600.0)
    tenant = tenant_of(idle, "t")
    assert (tenant.day, tenant.day_usd) == (3, close(5.0))


def test_shares_are_rounded_up_to_a_grain_whose_sums_are_exact() -> None:
    share = money.share_usd(0.1, 3)
    assert 0 <= share - 0.1 / 3 < GRAIN_USD
    total = 0.0
    for _ in range(1_000):
        total += share
    for _ in range(1_000):
        total -= share
    assert total == 0.0


def test_a_lease_of_a_version_that_held_nothing_ends_well(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")])
    idle.sync("w")
    grant(idle, "w", "x", "y", usd=1.0)
    state = idle.plane.state
    run = run_of(idle, "a")
    state.holds.clear()
    state.lease_tenants.clear()
    state.runs[run.id] = replace(run, held_usd=0.0)
    state.tenants[run.tenant] = replace(tenant_of(idle, "t"), held_usd=0.0, leases=0)
    for lease in state.leases.values():
        state.leases[lease.id] = replace(lease, expected=Expected())
    apply(state, RunCancelled(idle.now_ms, run.id))
    assert not state.holds and tenant_of(idle, "t").leases == 0


# What may be granted


def test_nothing_is_granted_beyond_a_budget(bench: Bench) -> None:
    """Three tasks at 0.015 with the margin: a budget of 0.04 takes two at first."""
    submit(bench, "a", [spec(one) for one in "xyz"], budget_usd=0.04)
    assert bench.sync("w", usd_per_hour=PRICE) == [("x", "y")]
    assert bench.sync("w", done=["x", "y"], usd_per_hour=PRICE) == [("z",)]  # they took less
    assert bench.sync("w", done=["z"], usd_per_hour=PRICE) == []
    assert tenant_of(bench, "t").day_usd == close(3 * TASK_USD)


def test_a_run_that_cannot_pay_for_its_next_task_is_stopped_and_told_why(bench: Bench) -> None:
    submit(bench, "a", [spec(one, max_batch=1) for one in "xyz"], budget_usd=0.03)
    bench.sync("w", usd_per_hour=PRICE)
    bench.sync("w", done=["x"], usd_per_hour=PRICE)
    assert run_of(bench, "a").spent_usd == close(0.01)
    bench.sync("w", done=["y"], usd_per_hour=PRICE, seconds=1.5)
    run = bench.runs[RunId("a")]
    assert (run.status, run.spent_usd) == (RunStatus.FAILED, close(0.025))
    assert "$0.03" in run.message and "$0.025 is spent" in run.message
    assert "larger budget" in run.message


def test_a_run_whose_first_task_is_too_dear_is_stopped_before_it_spends(bench: Bench) -> None:
    submit(bench, "a", [spec("x")], budget_usd=0.001)
    assert bench.status("a") is RunStatus.RUNNING  # no worker yet: nobody knows what it costs
    bench.sync("w", usd_per_hour=3600.0)
    assert bench.running() == []
    bench.now_ms += budgets.WAITING_LOOK_MS
    bench.step(Tick(bench.now_ms))
    assert bench.status("a") is RunStatus.FAILED
    assert tenant_of(bench, "t").day_usd == 0.0


def test_without_a_price_nothing_is_spent_and_no_budget_stops_anything(bench: Bench) -> None:
    submit(bench, "a", [spec(one) for one in "wxyz"], budget_usd=1e-6)
    assert bench.sync("w", usd_per_hour=0.0) == [("w", "x", "y", "z")]


def test_a_cheaper_worker_is_waited_for(bench: Bench) -> None:
    """It is busy with other work; the dear one would be beyond the budget."""
    submit(bench, "b", [spec("y", key="other")])
    bench.sync("cheap", usd_per_hour=3.6)
    submit(bench, "a", [spec("x")], budget_usd=0.05)
    bench.sync("dear", usd_per_hour=3600.0)
    assert bench.status("a") is RunStatus.RUNNING
    assert bench.sync("cheap", done=["y"], usd_per_hour=3.6) == [("x",)]


def test_a_shared_task_runs_for_whoever_can_pay_and_stops_the_others(bench: Bench) -> None:
    submit(bench, "poor", [spec("x")], budget_usd=0.002)
    submit(bench, "rich", [spec("x")], budget_usd=5.0, tenant="u")
    assert bench.sync("w", usd_per_hour=PRICE) == [("x",)]
    assert bench.status("poor") is RunStatus.FAILED
    assert run_of(bench, "rich").held_usd == close(TASK_USD * MARGIN)
    bench.sync("w", done=["x"], usd_per_hour=PRICE)
    assert tenant_of(bench, "t").day_usd == 0.0
    assert tenant_of(bench, "u").day_usd == close(TASK_USD)


def test_two_budgets_together_cover_what_neither_would_alone(bench: Bench) -> None:
    submit(bench, "a", [spec("x")], budget_usd=0.009)
    submit(bench, "b", [spec("x")], budget_usd=0.009)
    assert bench.sync("w", usd_per_hour=PRICE) == [("x",)]
    bench.sync("w", done=["x"], usd_per_hour=PRICE)
    assert {bench.steps[StepId(f"{one}/only")].status for one in "ab"} == {"assembling"}


def test_whoever_joins_beyond_its_budget_is_stopped_and_the_work_goes_on(bench: Bench) -> None:
    submit(bench, "rich", [spec("x")], tenant="u")
    bench.sync("w", usd_per_hour=3600.0)
    submit(bench, "poor", [spec("x")], budget_usd=0.1)
    assert bench.status("poor") is RunStatus.FAILED
    assert "what runs for it now would cost $0.75" in bench.runs[RunId("poor")].message
    assert bench.running("w") == [("x",)]


def test_who_cannot_pay_leaves_a_larger_share_to_the_others(idle: Bench) -> None:
    for name, budget_usd in (("a", 0.011), ("b", 0.004), ("c", 0.004)):
        submit(idle, name, [spec("x")], budget_usd=budget_usd)
    state = idle.plane.state
    assert Purse(state).takes(TaskId("x"), 0.012)  # a third each
    assert not Purse(state).takes(TaskId("x"), 0.015)  # b and c cannot, and a not alone
    assert Purse(state).takes(TaskId("x"), 0.011)


def test_a_purse_is_emptied_by_what_it_takes(idle: Bench) -> None:
    submit(idle, "a", [spec(one) for one in "xyz"], budget_usd=0.05)
    purse = Purse(idle.plane.state)
    assert [purse.takes(TaskId(one), 0.02) for one in "xyz"] == [True, True, False]
    assert purse.why_not(TaskId("z"), 0.02) == "budget"
    assert purse.why_not(TaskId("z"), 0.01) == ""


def test_a_batch_shrinks_until_it_can_be_paid(idle: Bench) -> None:
    """Fewer tasks cost more each, as the load is the same."""
    submit(idle, "a", [spec(one) for one in "wxyz"], budget_usd=0.9)
    names = [TaskId(one) for one in "wxyz"]

    def batch_usd(tasks: Sequence[TaskId]) -> float:
        return 0.5 + 0.15 * len(tasks)

    assert affordable(idle.plane.state, names, batch_usd) == names[:2]
    assert affordable(idle.plane.state, names, lambda tasks: 0.95) == []
    assert affordable(idle.plane.state, names, lambda tasks: 0.9) == names


def test_a_run_without_a_limit_takes_everything(idle: Bench) -> None:
    submit(idle, "a", [spec("x")])
    assert Purse(idle.plane.state).takes(TaskId("x"), 1e9)


# Quotas


def set_quota(bench: Bench, tenant: str = "t", **quota: float) -> None:
    made = Quota(**quota)  # type: ignore[arg-type]
    bench.step(TenantChanged(bench.now_ms, TenantId(tenant), 1.0, made))


def test_a_tenants_leases_are_counted_before_it_gets_another(bench: Bench) -> None:
    set_quota(bench, leases=1)
    submit(bench, "a", [spec(one, max_batch=1) for one in "xy"])
    submit(bench, "b", [spec("z", max_batch=1)], tenant="u")
    assert bench.sync("w", slots=3) == [("x",), ("z",)]
    why = budgets.waits_for(bench.plane.state, StepId("a/only"))
    assert why == ""  # its first task runs
    assert bench.sync("w", slots=3, done=["x"]) == [("z",), ("y",)]


def test_a_larger_quota_lets_go_on_at_once(bench: Bench) -> None:
    set_quota(bench, leases=1)
    submit(bench, "a", [spec(one, max_batch=1) for one in "xy"])
    bench.sync("w", slots=2)
    assert bench.running() == [("x",)]
    set_quota(bench, leases=2)
    assert bench.running() == [("x",), ("y",)]


def test_the_days_quota_waits_for_the_next_day(bench: Bench) -> None:
    bench.now_ms = 5 * DAY_MS - 30_000
    set_quota(bench, usd_per_day=0.02)
    submit(bench, "a", [spec(one, max_batch=1) for one in "xy"])
    bench.sync("w", usd_per_hour=PRICE)
    bench.sync("w", done=["x"], usd_per_hour=PRICE)
    assert bench.running() == []
    assert bench.status("a") is RunStatus.RUNNING
    words = budgets.waits_for(bench.plane.state, StepId("a/only"))
    assert words == "waits for the next day (UTC): tenant t has used $0.01 of its $0.02"
    assert bench.plane.policy.wakes_ms(bench.plane.state) == 5 * DAY_MS
    bench.now_ms = 5 * DAY_MS
    bench.step(Tick(bench.now_ms))
    assert bench.sync("w", usd_per_hour=PRICE) == [("y",)]


def test_a_new_day_and_a_new_quota_ask_for_another_look(idle: Bench) -> None:
    submit(idle, "a", [spec("x")])
    ready = idle.plane.state.touched.ready
    ready.clear()
    set_quota(idle, leases=1)
    assert list(ready) == ["k"]
    ready.clear()
    set_quota(idle, "other", leases=1)
    idle.now_ms = DAY_MS - 1
    idle.step(Tick(idle.now_ms))
    assert not ready
    idle.now_ms = DAY_MS
    idle.step(Tick(idle.now_ms))
    assert list(ready) == ["k"]


def test_what_is_held_outlives_a_checkpoint_of_the_state(idle: Bench) -> None:
    submit(idle, "a", [spec("x"), spec("y")], budget_usd=1.0)
    submit(idle, "b", [spec("y")], tenant="u")
    idle.sync("w", usd_per_hour=PRICE)
    grant(idle, "w", "x", "y", usd=0.4)
    state = idle.plane.state
    state.drain()
    state.touched = Touched()
    kept = decode_state(encode_state(state), State)
    assert kept == state
    apply(kept, RunCancelled(1, RunId("b")))
    check(kept)
    assert kept.runs[RunId("a")].held_usd == close(0.4)


# Long tasks


def test_a_long_task_is_stopped_before_it_has_cost_more_than_the_budget(bench: Bench) -> None:
    """It was expected to take a second at a dollar a second; the budget is ten dollars."""
    submit(bench, "a", [spec("x")], budget_usd=10.0)
    bench.sync("w", usd_per_hour=3600.0)
    assert bench.running() == [("x",)]
    stopped_ms = None
    while stopped_ms is None and bench.now_ms < 60_000:
        wakes_ms = bench.plane.policy.wakes_ms(bench.plane.state)
        assert wakes_ms is not None and wakes_ms > bench.now_ms
        bench.now_ms = wakes_ms
        bench.progress("w", "x", 1)
        bench.sync("w", usd_per_hour=3600.0)
        if bench.status("a") is not RunStatus.RUNNING:
            stopped_ms = bench.now_ms
    assert stopped_ms is not None and 8_500 <= stopped_ms <= 10_000
    run = bench.runs[RunId("a")]
    assert 8.5 <= run.spent_usd <= 10.0
    assert "stopped before it spends more than its budget of $10.00" in run.message


def test_what_is_paid_of_a_batch_is_not_counted_again_as_running(bench: Bench) -> None:
    """Four tasks one after the other take half as long again as expected: all that is held."""
    submit(bench, "a", [spec(one) for one in "wxyz"], budget_usd=7.0)
    bench.sync("w", usd_per_hour=3600.0)
    assert run_of(bench, "a").held_usd == close(6.0)
    for done in "wxy":
        bench.now_ms += 1_500
        bench.sync("w", done=[done], seconds=1.5, usd_per_hour=3600.0)
        bench.step(Tick(bench.now_ms + 500))
    assert run_of(bench, "a").spent_usd == close(4.5)
    assert budgets.running_usd(bench.plane.state, run_of(bench, "a")) == close(1.5)


def test_what_others_want_goes_on_without_the_run_that_was_stopped(bench: Bench) -> None:
    submit(bench, "a", [spec("x")], budget_usd=1.0)
    submit(bench, "b", [spec("x")], tenant="u")
    bench.sync("w", usd_per_hour=3600.0)
    bench.now_ms = 5_000
    bench.sync("w", usd_per_hour=3600.0)
    assert (bench.status("a"), bench.status("b")) == (RunStatus.FAILED, RunStatus.RUNNING)
    assert bench.running() == [("x",)]


def test_each_change_is_looked_at_and_nothing_twice(idle: Bench) -> None:
    watch = budgets.Watch()
    submit(idle, "a", [spec("x")], budget_usd=1.0)
    state = idle.plane.state
    assert watch.wakes_ms(state) == 0  # not looked at yet
    assert watch.decide(state) is None
    assert watch.wakes_ms(state) == budgets.WAITING_LOOK_MS
    idle.sync("w", usd_per_hour=3600.0)
    grant(idle, "w", "x", usd=0.9)
    assert watch.decide(state) is None
    assert watch.wakes_ms(state) == 900  # then it has cost what is held
    state.now_ms = 1_000
    stop = watch.decide(state)
    assert isinstance(stop, StopRun)
    apply(state, stop)
    assert watch.decide(state) is None and watch.wakes_ms(state) is None


@pytest.mark.parametrize(
    ("usd", "words"),
    [
        (0.0, "$0"),
        (1234.5, "$1,234.50"),
        (0.2, "$0.20"),
        (0.25, "$0.25"),
        (0.0123456, "$0.01235"),
        (2e-7, "$0.0000002"),
    ],
)
def test_money_in_words(usd: float, words: str) -> None:
    assert in_words(usd) == words
