"""Who runs what next: fairness, priority, batch limits, warm engines, retries."""

from collections import Counter

import pytest

from flowmesh.base.ids import TenantId, WorkerId
from flowmesh.core import retry
from flowmesh.core.events import PlaneStarted, Tick, WorkerGone, WorkerSynced
from flowmesh.core.fleet import Worker
from flowmesh.core.plan import AVOID_MS, LEASE_MS
from flowmesh.core.records import Failure, RunStatus
from support.core import Bench, granted, spec


def work_through(bench: Bench, tasks: int) -> list[str]:
    """Let one worker run `tasks` tasks; the order in which they ran."""
    order: list[str] = []
    running = bench.sync()
    while len(order) < tasks:
        order += running[0]
        running = bench.sync(done=list(running[0]))
    return order[:tasks]


def many(prefix: str, count: int, **options: object) -> list:
    return [spec(f"{prefix}{number:03}", **options) for number in range(count)]  # type: ignore[arg-type]


def test_tenants_share_a_batch_by_weight() -> None:
    bench = Bench()
    bench.submit("a", many("a", 60, max_batch=6), tenant="t", weight=1.0)
    bench.submit("b", many("b", 60, max_batch=6), tenant="u", weight=2.0)
    shares = Counter(task[0] for task in work_through(bench, 60))
    assert shares["b"] == pytest.approx(40, abs=3)


def test_who_shares_a_task_is_charged_a_share_of_it() -> None:
    bench = Bench()
    for run, tenant in (("a", "t"), ("b", "u")):
        bench.submit(run, [spec("x", max_batch=1)], tenant=tenant)
    bench.sync()
    (lease,) = bench.plane.state.leases.values()
    charged = [bench.plane.state.tenants[TenantId(one)].virtual_usd for one in "tu"]
    assert lease.expected.reference_usd > 0
    assert charged == [lease.expected.reference_usd / 2] * 2


def test_a_tenant_that_was_away_does_not_get_everything_on_return() -> None:
    bench = Bench()
    bench.submit("a", many("a", 100, max_batch=1), tenant="t")
    work_through(bench, 50)
    bench.submit("b", many("b", 50, max_batch=1), tenant="u")
    shares = Counter(task[0] for task in work_through(bench, 20))
    assert shares["a"] == pytest.approx(10, abs=1)


def test_within_a_tenant_priority_goes_first_then_age() -> None:
    bench = Bench()
    bench.submit("a", many("a", 2, max_batch=1))
    bench.submit("b", many("b", 2, max_batch=1), priority=5)
    assert work_through(bench, 4) == ["b000", "b001", "a000", "a001"]


def test_a_batch_is_no_larger_than_any_of_its_tasks_allows() -> None:
    bench = Bench()
    bench.submit("a", [*many("a", 3, max_batch=4), *many("b", 3, max_batch=2)])
    assert bench.sync() == [("a000", "a001", "a002")]


def test_a_tenant_gets_its_share_beside_important_work_of_another_key() -> None:
    """Neither priority nor a growing backlog of one tenant starves another."""
    bench = Bench()
    bench.submit("b", many("b", 100, max_batch=1, key="small", work=100.0))
    ran: list[str] = []
    for number in range(120):
        bench.now_ms += 1_000
        tasks = [spec(f"a{number}-{i}", key="big", work=100.0, max_batch=1) for i in range(2)]
        bench.submit(f"new{number}", tasks, tenant="u", priority=20)
        running = bench.running() or bench.sync()
        ran += running[0]
        bench.sync(done=list(running[0]))
    assert Counter(task[0] for task in ran)["b"] == pytest.approx(60, abs=16)


def test_old_work_is_worth_more() -> None:
    bench = Bench()
    bench.submit("old", many("b", 1, key="a"))
    bench.now_ms += 1_000
    bench.submit("new", many("a", 1, key="z"))  # a tie would go to the last key
    assert bench.sync() == [("b000",)]


def test_a_worker_gets_no_more_leases_than_slots_and_only_what_it_offers() -> None:
    bench = Bench()
    bench.submit("a", many("a", 5, max_batch=1))
    assert len(bench.sync("w", slots=2)) == 2
    decisions = bench.step(WorkerSynced(0, WorkerId("tables-only"), ("tables",), 4, 0.0))
    assert granted(decisions) == []


def test_a_warm_worker_is_preferred() -> None:
    bench = Bench()
    bench.sync("cold")
    bench.sync("warm", warm=("k",))
    bench.submit("a", [spec("x")])
    assert bench.running("warm") == [("x",)]


def test_a_silent_worker_loses_its_leases_at_the_deadline_and_not_before() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    assert bench.plane.next_deadline_ms() == LEASE_MS
    bench.now_ms = LEASE_MS - 1
    bench.step(Tick(bench.now_ms))
    assert bench.running("w") == [("x",)]
    bench.now_ms = LEASE_MS
    bench.step(Tick(bench.now_ms))
    assert bench.running("w") == [] and bench.sync("v") == [("x",)]


def test_a_worker_that_was_seen_to_end_is_lost_at_once() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.step(WorkerGone(bench.now_ms, WorkerId("w")))
    assert bench.plane.state.tasks["x"].losses == 1  # type: ignore[index]
    assert bench.sync("v") == [("x",)]


def test_after_a_restart_workers_have_time_to_be_heard_again() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.now_ms += 10 * LEASE_MS
    bench.step(PlaneStarted(bench.now_ms))
    assert bench.running("w") == [("x",)]


def test_a_leaving_worker_gives_back_at_once_and_costs_the_task_nothing() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.sync("w", leaving=True)
    task = bench.plane.state.tasks["x"]  # type: ignore[index]
    assert (task.losses, task.attempts) == (0, 0)
    assert bench.sync("v") == [("x",)]


def test_another_worker_is_preferred_after_a_failure() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.sync("v")
    bench.sync("w", failed={"x": Failure.TRANSIENT})
    assert bench.running("w") == []
    bench.now_ms += 1_000
    assert bench.sync("w") == []
    assert bench.sync("v") == [("x",)]


def test_another_worker_is_waited_for_a_while_and_no_longer() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.sync("v")
    bench.submit("b", [spec("y", key="other")])
    assert bench.running("v") == [("y",)]
    bench.sync("w", failed={"x": Failure.TRANSIENT})
    bench.now_ms += 1_000
    assert bench.sync("w") == []
    bench.now_ms += AVOID_MS
    bench.sync("v")
    assert bench.sync("w") == [("x",)]


@pytest.mark.parametrize(
    ("failure", "limit"),
    [
        (Failure.INPUT, 1),
        (Failure.TRANSIENT, 3),
        (Failure.MEMORY, 3),
        (Failure.INTERNAL, 2),
        (Failure.CRASH, 2),
        (Failure.LOST, 20),
    ],
)
def test_each_failure_has_its_limit(failure: Failure, limit: int) -> None:
    bench = Bench()
    bench.submit("a", [spec("x", max_batch=1)])
    task = bench.plane.state.tasks["x"]  # type: ignore[index]
    for count in range(1, limit + 1):
        verdict = retry.after(task, failure, batch_size=1)
        assert verdict.fails == (count == limit)
        task = verdict.task


@pytest.mark.parametrize("failure", [Failure.MEMORY, Failure.CRASH])
def test_a_batch_that_fails_as_a_whole_is_halved_until_the_guilty_stands_alone(
    failure: Failure,
) -> None:
    bench = Bench()
    bench.submit("a", many("x", 8, max_batch=8))
    sizes = []
    running = bench.sync()
    while bench.status("a") is RunStatus.RUNNING:
        assert len(sizes) < 50, sizes
        batch = list(running[0])
        sizes.append(len(batch))
        guilty = "x003" in batch
        bench.now_ms += 2_000
        running = bench.sync(
            failed=dict.fromkeys(batch, failure) if guilty else None,
            done=None if guilty else batch,
        )
        if not running:
            bench.now_ms += 60_000
            running = bench.sync()
    assert sizes[0] == 8 and min(sizes) == 1
    assert bench.runs["a"].message.startswith("step only")  # type: ignore[index]


def test_a_task_that_loses_many_workers_runs_alone() -> None:
    bench = Bench()
    bench.submit("a", many("x", 4, max_batch=4))
    task = bench.plane.state.tasks["x000"]  # type: ignore[index]
    for _ in range(retry.LOSSES_BEFORE_ALONE):
        task = retry.after(task, Failure.LOST, batch_size=4).task
    assert task.batch_limit == 1


def test_back_off_grows_to_a_minute() -> None:
    waits = [retry.backoff_ms(count) for count in range(10)]
    assert waits[:4] == [0, 1_000, 2_000, 4_000]
    assert waits[-1] == retry.BACKOFF_LIMIT_MS


def test_what_a_worker_says_of_itself_replaces_what_was_known() -> None:
    bench = Bench()
    bench.sync("w", usd_per_hour=1.0)
    bench.sync("w", usd_per_hour=2.0, slots=3)
    worker = bench.plane.state.workers[WorkerId("w")]
    assert worker == Worker(WorkerId("w"), ("models",), 3, 2.0, (), 0)
