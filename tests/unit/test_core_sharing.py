"""Equal work of many runs is one task; their fates stay their own."""

from dataclasses import replace

import pytest

from flowmesh.base.ids import RunId, StepId, TaskId, WorkerId
from flowmesh.core.events import (
    RunCancelled,
    RunSubmitted,
    StepAssembled,
    TaskResult,
    Tick,
    WorkerSynced,
)
from flowmesh.core.records import Failure, OnError, RunStatus, StepStatus
from flowmesh.core.tasks import RETAIN_MS
from support.core import Bench, spec


def test_two_runs_share_one_execution_and_each_counts_it_its_own_way() -> None:
    bench = Bench()
    first = bench.submit("a", [spec("x"), spec("y")])
    second = bench.submit("b", [spec("x")], tenant="u")
    assert bench.sync() == [("x", "y")]
    bench.sync(done=["x", "y"], usd_per_hour=3600.0, seconds=2.0)
    shared = bench.last.accepted[0]
    assert shared.runs == ("a", "b")
    assert shared.usd == pytest.approx(2.0)
    bench.assemble(first)
    bench.assemble(second)
    assert (bench.status("a"), bench.status("b")) == (RunStatus.SUCCEEDED, RunStatus.SUCCEEDED)
    assert (bench.steps[first].executed, bench.steps[first].joined) == (2, 0)
    assert (bench.steps[second].executed, bench.steps[second].joined) == (0, 1)


def test_a_result_that_came_between_look_up_and_event_is_reused() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync()
    bench.sync(done=["x"])
    step = bench.submit("b", [spec("x")], found=2)
    assert bench.steps[step].reused == 3
    assert bench.steps[step].status is StepStatus.ASSEMBLING


def test_a_success_is_forgotten_after_its_time() -> None:
    bench = Bench()
    bench.assemble(bench.submit("a", [spec("x")]))
    bench.sync()
    bench.sync(done=["x"])
    bench.now_ms += RETAIN_MS + 1_000
    bench.step(Tick(bench.now_ms))
    assert TaskId("x") not in bench.plane.state.tasks
    assert bench.plane.state.settled_ms.keys() <= {RunId("a")}


def test_cancelling_one_run_leaves_the_others_work_alone() -> None:
    bench = Bench()
    bench.submit("a", [spec("x"), spec("mine")])
    second = bench.submit("b", [spec("x")])
    assert bench.sync() == [("x", "mine")]
    bench.step(RunCancelled(bench.now_ms, RunId("a")))
    assert bench.running() == [("x",)]
    assert bench.status("a") is RunStatus.CANCELLED
    bench.sync(done=["x"])
    bench.assemble(second)
    assert bench.status("b") is RunStatus.SUCCEEDED
    assert bench.steps[second].executed == 1


def test_cancelling_the_last_run_that_wants_a_task_stops_it() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync()
    bench.step(RunCancelled(bench.now_ms, RunId("a")))
    assert bench.running() == []
    assert bench.plane.state.tasks == {}


def test_the_highest_priority_of_all_who_want_it_counts() -> None:
    bench = Bench()
    bench.submit("low", [spec("x", max_batch=1)])
    bench.submit("high", [spec("y", max_batch=1)], tenant="u", priority=10)
    bench.submit("top", [spec("x", max_batch=1)], tenant="v", priority=20)
    task = bench.plane.state.tasks[TaskId("x")]
    assert (task.tenant, task.priority) == ("v", 20)
    bench.step(RunCancelled(bench.now_ms, RunId("top")))
    task = bench.plane.state.tasks[TaskId("x")]
    assert (task.tenant, task.priority) == ("t", 0)


def test_a_failure_reaches_all_who_wait_and_nobody_later() -> None:
    bench = Bench()
    strict = bench.submit("a", [spec("x")])
    lenient = bench.submit("b", [spec("x")], on_error=OnError.SKIP)
    bench.sync()
    bench.sync(failed={"x": Failure.INPUT})
    assert bench.status("a") is RunStatus.FAILED
    assert bench.steps[strict].failed == bench.steps[lenient].failed == 1
    assert bench.steps[lenient].status is StepStatus.ASSEMBLING
    bench.submit("c", [spec("x")])
    assert bench.running() == [("x",)]


def test_a_failed_run_names_step_and_cause() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync()
    bench.sync(failed={"x": Failure.INPUT})
    assert bench.runs[RunId("a")].message == "step only: input"


def test_a_late_result_of_a_lost_lease_still_counts_once() -> None:
    bench = Bench()
    step = bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.now_ms += 60_000
    bench.step(Tick(bench.now_ms))
    assert bench.sync("v") == [("x",)]
    bench.sync("w", done=["x"])
    assert bench.running("v") == []
    assert bench.steps[step].executed == 1
    bench.sync("v", done=["x"])
    assert bench.steps[step].executed == 1


def test_a_late_result_of_work_that_acts_does_not_count() -> None:
    bench = Bench()
    bench.submit("a", [replace(spec("x"), pure=False)])
    bench.sync("w")
    bench.now_ms += 60_000
    bench.step(Tick(bench.now_ms))
    bench.sync("v")
    bench.sync("w", done=["x"])
    assert bench.running("v") == [("x",)]


def test_a_result_counts_only_under_a_lease_that_was_granted_for_it() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.sync("stranger", done=["x"])
    assert bench.running("w") == [("x",)]
    bench.now_ms += 60_000
    bench.step(Tick(bench.now_ms))
    bench.sync("stranger", done=["x"])
    assert bench.plane.state.tasks[TaskId("x")].status != "succeeded"


@pytest.mark.parametrize(("worker", "task"), [("stranger", "x"), ("w", "y")])
def test_a_lease_speaks_for_its_worker_and_its_tasks_only(worker: str, task: str) -> None:
    bench = Bench()
    bench.submit("a", [spec("x", max_batch=1), spec("y", max_batch=1)])
    assert bench.sync("w") == [("x",)]
    lease = bench.held("w")[TaskId("x")]
    forged = TaskResult(lease, TaskId(task), output="out", seconds=1.0)
    bench.step(WorkerSynced(0, WorkerId(worker), (), 1, 0.0, results=(forged,)))
    assert bench.plane.state.tasks[TaskId(task)].status != "succeeded"


def test_a_late_failure_of_a_lost_lease_changes_nothing() -> None:
    bench = Bench()
    bench.submit("a", [spec("x")])
    bench.sync("w")
    bench.now_ms += 60_000
    bench.step(Tick(bench.now_ms))
    bench.sync("v")
    bench.sync("w", failed={"x": Failure.INPUT})
    assert bench.running("v") == [("x",)]


def test_repeated_events_change_nothing() -> None:
    bench = Bench()
    step = bench.submit("a", [spec("x")])
    submitted = next(record for record in bench.journal if isinstance(record, RunSubmitted))
    bench.sync()
    bench.sync(done=["x"])
    for _ in range(2):
        bench.step(submitted)
        bench.step(StepAssembled(bench.now_ms, step))
        bench.step(submitted)
    assert bench.status("a") is RunStatus.SUCCEEDED
    assert bench.plane.state.runs == {}


def test_an_assembly_that_fails_fails_the_run() -> None:
    bench = Bench()
    step = bench.submit("a", [], found=1)
    bench.assemble(step, "the disk is full")
    assert bench.status("a") is RunStatus.FAILED
    assert bench.steps[StepId("a/only")].message == "the disk is full"
