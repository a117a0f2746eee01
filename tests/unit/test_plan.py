"""What the policy weighs: warm against cold, hold or go, prefixes, sizes, paths, and its story."""

from dataclasses import replace

import pytest

from flowmesh.base.ids import RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.decisions import GrantLease
from flowmesh.core.events import RunSubmitted, StepExpanded, Tick
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility, score_of
from flowmesh.core.records import Demand, Run, Step, TaskSpec, Tree
from flowmesh.core.utility import PRESETS, Knobs
from support.core import Bench, granted, spec


def many(name: str, count: int, **options: object) -> list[TaskSpec]:
    return [spec(f"{name}{number:03}", **options) for number in range(count)]  # type: ignore[arg-type]


def last(bench: Bench) -> GrantLease:
    return [one for one in bench.journal if isinstance(one, GrantLease)][-1]


def test_a_little_work_waits_for_the_engine_that_is_warm_soon() -> None:
    """And the plane says when to look again."""
    bench = Bench()
    bench.sync("busy", warm=("k",))
    bench.submit("a", many("a", 4, work=20.0))
    bench.sync("idle")
    bench.submit("b", many("b", 4, work=20.0))
    assert bench.running("idle") == [] and len(bench.running("busy")) == 1
    assert bench.plane.next_deadline_ms() < 15_000  # type: ignore[operator]
    bench.sync("busy", done=[*bench.running("busy")[0]], warm=("k",))
    assert bench.running("busy")[0][0] == "b000"


def test_a_deep_backlog_opens_a_cold_engine() -> None:
    bench = Bench()
    bench.sync("busy", warm=("k",))
    bench.submit("a", many("a", 4, work=20.0))
    bench.sync("idle")
    bench.submit("b", many("b", 400, work=20.0))
    assert len(bench.running("idle")) == 1


def test_without_holding_an_idle_worker_goes_at_once() -> None:
    bench = Bench(ControlPlane(Utility(knobs=Knobs(hold=False))))
    bench.sync("busy", warm=("k",))
    bench.submit("a", many("a", 4, work=20.0))
    bench.sync("idle")
    bench.submit("b", many("b", 4, work=20.0))
    assert len(bench.running("idle")) == 1


def test_what_is_held_goes_once_the_worker_is_late() -> None:
    """Nothing waits for ever for a worker that does not get done."""
    bench = Bench()
    bench.sync("busy", warm=("k",))
    bench.submit("a", many("a", 4, work=20.0))
    bench.sync("idle")
    bench.submit("b", many("b", 4, work=20.0))
    for _ in range(60):
        bench.now_ms += 1_000
        bench.sync("busy", warm=("k",))
        bench.sync("idle")
    assert len(bench.running("idle")) == 1


def test_a_batch_lingers_while_more_is_expected_and_no_longer() -> None:
    bench = Bench()
    lingers = {"linger_ms": 4_000, "max_batch": 8, "work": 0.01}
    for number in range(12):  # a task a second has come for a while
        bench.submit(f"old{number}", many(f"o{number}-", 1, **lingers))
        bench.now_ms += 1_000
    bench.sync("w", warm=("k",))
    while bench.running("w"):
        bench.sync("w", done=[*bench.running("w")[0]], warm=("k",))
    since_ms = bench.now_ms
    bench.submit("new", many("n", 1, **lingers))
    if not bench.running("w"):
        due_ms = bench.plane.next_deadline_ms()
        assert due_ms is not None and due_ms <= since_ms + 4_000
        bench.now_ms = since_ms + 4_000
        bench.sync("w", warm=("k",))
    assert bench.running("w") == [("n000",)]


def test_tasks_of_one_prefix_go_together() -> None:
    shares = {"prefix_tokens": 50, "prompt_tokens": 60}
    tasks = [replace(spec(f"x{n}", prefix=f"p{n % 2}", **shares), line=n) for n in range(8)]
    bench = Bench()
    bench.submit("a", tasks)
    assert bench.sync() == [("x0", "x2", "x4", "x6")]
    plain = Bench(ControlPlane(Utility(knobs=Knobs(prefixes=False))))
    plain.submit("a", tasks)
    assert plain.sync() == [("x0", "x1", "x2", "x3")]


@pytest.mark.parametrize(
    ("knobs", "first"),
    [
        (Knobs(), ("x0", "x2", "y0", "y2")),
        (Knobs(prefixes=False), ("x0", "x1", "y0", "y1")),
        (Knobs(fairness=False), ("x0", "x2", "x4", "x6")),
        (Knobs(fairness=False, prefixes=False), ("x0", "x1", "x2", "x3")),
    ],
)
def test_shared_prefixes_and_fair_shares_are_switched_off_apart(
    knobs: Knobs, first: tuple[str, ...]
) -> None:
    bench = Bench(ControlPlane(Utility(knobs=knobs)))
    for tenant, letter in (("t", "x"), ("u", "y")):
        tasks = [
            replace(spec(f"{letter}{n}", prefix=f"p{n % 2}", prefix_tokens=50), line=n)
            for n in range(8)
        ]
        bench.submit(tenant, tasks, tenant=tenant)
        bench.now_ms += 1_000
    assert tuple(sorted(bench.sync()[0])) == first


def test_batches_are_no_longer_than_wanted_but_for_a_task_that_is() -> None:
    bench = Bench()
    longest_s = PRESETS["balanced"].batch_s
    bench.submit("a", many("a", 64, work=500.0, max_batch=64))
    bench.submit("b", many("b", 2, work=10_000.0, max_batch=64, key="long"))
    for worker in ("u", "v", "w", "x"):
        bench.sync(worker)
    grants = [one for one in bench.journal if isinstance(one, GrantLease)]
    for grant in grants:
        assert grant.expected.exec_s <= longest_s or len(grant.tasks) == 1
    assert {grant.batch_key for grant in grants} == {"k", "long"}


def test_what_leads_to_more_is_worth_more() -> None:
    """Two equal runs, but one has later steps that wait."""
    plane = ControlPlane()
    for name, later in (("alone", 0), ("leads", 3)):
        run, ids = RunId(name), [StepId(f"{name}/{n}") for n in range(later + 1)]
        steps = [Step(one, run, tuple(ids[n - 1 : n]) if n else ()) for n, one in enumerate(ids)]
        record = Run(run, TenantId("t"), 0, tuple(ids), 0)
        plane.step(RunSubmitted(0, record, tuple(steps)))
        task = spec(name, key=name, work=100.0)
        plane.step(StepExpanded(0, ids[0], 1, wanted=(task,)))
    bench = Bench(plane)
    assert bench.sync() == [("leads",)]
    assert last(bench).utility.path > 0


def test_the_objective_of_a_run_sets_the_weights() -> None:
    scores = {}
    for objective in ("", "latency", "cost"):
        plane = ControlPlane()
        run, step = RunId("r"), StepId("r/only")
        record = Run(run, TenantId("t"), 0, (step,), 0, objective=objective)
        plane.step(RunSubmitted(0, record, (Step(step, run, ()),)))
        plane.step(StepExpanded(0, step, 1, wanted=(spec("x", work=100.0),)))
        bench = Bench(plane)
        bench.sync()
        scores[objective] = last(bench).utility
    assert scores["latency"].value > scores[""].value > scores["cost"].value > 0


def test_the_story_tells_what_else_could_have_been_done_and_what_could_not() -> None:
    bench = Bench()
    bench.sync("small", usd_per_hour=1.0)
    bench.sync("large", usd_per_hour=2.0)
    bench.submit("a", [spec("x", work=100.0)])
    bench.submit("b", [spec("y", key="huge", devices=4)])
    story = bench.plane.policy.story  # type: ignore[attr-defined]
    first = story[0]
    assert first.decision.worker == "small"
    (other,) = first.runners_up
    assert (other.worker, other.batch_key, other.size) == ("large", "k", 1)
    assert other.score.usd < first.decision.utility.usd
    bench.submit("c", [spec("z", key="other")])
    assert story[-1].excluded["devices"] == 2 and story[-1].excluded["busy"] >= 1


def test_a_score_can_be_asked_for_without_a_grant() -> None:
    bench = Bench()
    bench.submit("a", [spec("x", work=100.0), spec("y", work=100.0)])
    policy = bench.plane.policy
    assert isinstance(policy, Utility)
    bench.sync("w", draining=True)
    worker = bench.plane.state.workers[WorkerId("w")]
    asked = score_of(bench.plane.state, policy, worker, [TaskId("x"), TaskId("y")])
    bench.sync("w")
    assert last(bench).utility == asked


def test_no_more_decisions_are_made_at_once_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest follows at once: the plane asks to be called again."""
    monkeypatch.setattr("flowmesh.core.machine.DECISIONS_LIMIT", 2)
    bench = Bench()
    bench.submit("a", many("a", 3, max_batch=1))
    decisions = bench.step(Tick(0))
    bench.sync("w", slots=3)
    assert len(bench.running("w")) == 2 and bench.plane.next_deadline_ms() == bench.now_ms
    assert len(granted([*decisions, *bench.step(Tick(0))])) == 1


def test_a_demand_that_changes_under_ready_tasks_is_looked_at_again() -> None:
    """A key that had models and has none any more: nobody holds what is not asked for."""
    bench = Bench()
    model = Demand("op@1", trees=(Tree("sha256:m", 10**9),), weights_bytes=10**9)
    bench.submit("a", many("x", 2, max_batch=1), demand=model)
    assert len(bench.sync("w", holds=("sha256:m",))) == 1
    bench.submit("b", many("y", 1, max_batch=1), demand=Demand("op@1"))
    ran = [bench.running("w")[0][0]]
    while bench.running("w"):
        bench.sync("w", done=[ran[-1]], holds=("sha256:m",))
        ran += [batch[0] for batch in bench.running("w")]
    assert sorted(ran) == ["x000", "x001", "y000"]
