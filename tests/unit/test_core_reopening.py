"""What a step made is lost: the step is taken up again, and all that came after it."""

from flowmesh.base.ids import RunId, StepId, TenantId
from flowmesh.core.apply import REOPEN_LIMIT
from flowmesh.core.events import RunSubmitted, StepAssembled, StepExpanded, StepReopened
from flowmesh.core.records import Run, RunStatus, Step, StepStatus
from support.core import Bench, spec

FIRST, SIDE, LAST = StepId("r/first"), StepId("r/side"), StepId("r/last")


def chain() -> Bench:
    """`first` and `side` done, `last` (after both) at work on a task."""
    bench = Bench()
    run = Run(RunId("r"), TenantId("t"), 0, (FIRST, SIDE, LAST), 0)
    steps = (Step(FIRST, run.id, ()), Step(SIDE, run.id, ()), Step(LAST, run.id, (FIRST, SIDE)))
    bench.step(RunSubmitted(0, run, steps))
    for step in (FIRST, SIDE):
        bench.step(StepExpanded(0, step, 1, found=1))
        bench.step(StepAssembled(0, step))
    bench.step(StepExpanded(0, LAST, 1, wanted=(spec("x"),)))
    bench.sync()
    return bench


def test_the_maker_starts_anew_and_what_followed_waits_for_it() -> None:
    bench = chain()
    bench.step(StepReopened(0, FIRST, "gone", LAST, bench.steps[LAST].turn))
    statuses = {step: bench.steps[step].status for step in (FIRST, SIDE, LAST)}
    assert statuses == {
        FIRST: StepStatus.EXPANDING,
        SIDE: StepStatus.SUCCEEDED,
        LAST: StepStatus.WAITING,
    }
    assert bench.running() == [], "nobody wants the task of the step that waits again"
    assert bench.plane.state.runs[RunId("r")].open_steps == 2


def test_the_run_still_succeeds() -> None:
    bench = chain()
    bench.step(StepReopened(0, FIRST, "gone", LAST, bench.steps[LAST].turn))
    bench.step(StepExpanded(0, FIRST, 1, found=1, turn=1))
    bench.step(StepAssembled(0, FIRST, turn=1))
    bench.step(StepExpanded(0, LAST, 1, wanted=(spec("x"),), turn=1))
    bench.sync(done=["x"])
    bench.assemble(LAST)
    assert bench.status("r") is RunStatus.SUCCEEDED


def test_a_result_that_is_gone_is_made_again_though_it_is_remembered() -> None:
    bench = Bench()
    step = bench.submit("r", [spec("x")])
    bench.sync()
    bench.sync(done=["x"])
    bench.step(StepReopened(0, step, "gone", step, 0))
    bench.step(StepExpanded(0, step, 1, wanted=(spec("x"),), lost=(spec("x").id,), turn=1))
    assert bench.running() == [("x",)]


def test_what_is_lost_again_and_again_fails_the_run() -> None:
    bench = chain()
    for turn in range(REOPEN_LIMIT):
        bench.step(StepReopened(0, FIRST, "the disk eats it", LAST, turn))
    assert bench.status("r") is RunStatus.RUNNING
    bench.step(StepReopened(0, FIRST, "the disk eats it", FIRST, REOPEN_LIMIT))
    assert bench.status("r") is RunStatus.FAILED
    assert bench.runs[RunId("r")].message == "step first: the disk eats it"


def test_many_readers_of_one_loss_put_the_maker_back_once() -> None:
    bench = chain()
    for _ in range(REOPEN_LIMIT + 2):
        bench.step(StepReopened(0, FIRST, "gone", LAST, 0))
    assert bench.status("r") is RunStatus.RUNNING
    assert bench.steps[FIRST].reopened == 1


def test_what_was_done_for_an_earlier_turn_is_void() -> None:
    bench = chain()
    bench.step(StepReopened(0, FIRST, "gone", LAST, 0))
    bench.step(StepExpanded(0, FIRST, 1, found=1, turn=0))
    assert bench.steps[FIRST].status is StepStatus.EXPANDING
    bench.step(StepExpanded(0, FIRST, 1, found=1, turn=1))
    bench.step(StepAssembled(0, FIRST, turn=0))
    assert bench.steps[FIRST].status is StepStatus.ASSEMBLING


def test_a_step_that_waits_or_is_unknown_is_left_alone() -> None:
    bench = chain()
    bench.step(StepReopened(0, FIRST, "gone", LAST, 0))
    waiting = bench.steps[LAST]
    bench.step(StepReopened(0, LAST, "gone", FIRST, 1))
    assert bench.steps[LAST] == waiting
    bench.step(StepReopened(0, StepId("other/step"), "gone", FIRST, 1))
