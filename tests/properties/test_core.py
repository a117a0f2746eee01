"""Any history leaves the state sound, and the journal alone rebuilds it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flowmesh.base.ids import RunId, StepId, TaskId, WorkerId
from flowmesh.core.events import (
    PlaneStarted,
    ProgressForgotten,
    RunCancelled,
    StepAssembled,
    StepExpanded,
    StepReopened,
    Tick,
    WorkerGone,
)
from flowmesh.core.holding import LONGEST_LOOK_MS
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.records import Failure, OnError, StepStatus
from flowmesh.core.utility import PRESETS
from support.core import Bench, spec

workers = st.sampled_from(["v", "w"])
numbers = st.integers(0, 5)


class AnyHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()

    @rule(
        run=numbers,
        tasks=st.sets(numbers, max_size=4),
        tenant=st.sampled_from("tu"),
        priority=st.sampled_from([0, 10]),
        on_error=st.sampled_from([OnError.FAIL, OnError.SKIP]),
        found=st.integers(0, 2),
    )
    def submit(
        self, run: int, tasks: set[int], tenant: str, priority: int, on_error: OnError, found: int
    ) -> None:
        specs = [spec(f"x{task}", key=f"k{task % 2}", max_batch=1 + task) for task in sorted(tasks)]
        self.bench.submit(
            f"r{run}", specs, tenant=tenant, priority=priority, on_error=on_error, found=found
        )

    @rule(worker=workers, end=st.sampled_from([None, *Failure]), first=st.booleans())
    def report(self, worker: str, end: Failure | None, first: bool) -> None:
        held = [task for batch in self.bench.running(worker) for task in batch]
        told = held[:1] if first else held
        if end is Failure.LOST or not told:
            self.bench.sync(worker)
        elif end is None:
            self.bench.sync(worker, done=told)
        else:
            self.bench.sync(worker, failed=dict.fromkeys(told, end))

    @rule(worker=workers, task=numbers, end=st.sampled_from([None, Failure.INPUT]))
    def report_what_it_does_not_hold(self, worker: str, task: int, end: Failure | None) -> None:
        self.bench.sync(worker, failed={f"x{task}": end})  # type: ignore[dict-item]

    @rule(worker=workers, task=numbers, step=st.integers(1, 5), saves=st.booleans())
    def progress(self, worker: str, task: int, step: int, saves: bool) -> None:
        name, state = TaskId(f"x{task}"), self.bench.plane.state
        known = state.tasks.get(name) or state.left.get(name)
        before = known.step if known else 0
        changes = self.bench.progress(worker, name, step, f"t{step}" if saves else "")
        after = state.tasks.get(name) or state.left.get(name)
        assert (after.step if after else 0) >= before
        if saves and changes.progressed:
            assert after is not None
            assert (after.step, after.checkpoint) == (step, f"t{step}")

    @rule(tasks=st.sets(numbers, max_size=3))
    def forget(self, tasks: set[int]) -> None:
        named = tuple(TaskId(f"x{task}") for task in sorted(tasks))
        self.bench.step(ProgressForgotten(self.bench.now_ms, named))

    @rule(worker=workers)
    def leave(self, worker: str) -> None:
        self.bench.sync(worker, leaving=True)

    @rule(worker=workers)
    def end(self, worker: str) -> None:
        self.bench.step(WorkerGone(self.bench.now_ms, WorkerId(worker)))

    @rule(run=numbers)
    def assemble(self, run: int) -> None:
        step = StepId(f"r{run}/only")
        self.bench.step(StepAssembled(self.bench.now_ms, step, turn=self.turn(step)))

    def turn(self, step: StepId) -> int:
        known = self.bench.plane.state.steps.get(step)
        return known.turn if known else 0

    @rule(run=numbers)
    def expand_again(self, run: int) -> None:
        step = StepId(f"r{run}/only")
        self.bench.step(StepExpanded(self.bench.now_ms, step, skipped=True, turn=self.turn(step)))

    @rule(run=numbers)
    def reopen(self, run: int) -> None:
        step = StepId(f"r{run}/only")
        self.bench.step(StepReopened(self.bench.now_ms, step, "lost", step, self.turn(step)))

    @rule(run=numbers, tasks=st.sets(numbers, max_size=3), lost=numbers)
    def expand_with_losses(self, run: int, tasks: set[int], lost: int) -> None:
        specs = tuple(
            spec(f"x{task}", key=f"k{task % 2}", max_batch=1 + task) for task in sorted(tasks)
        )
        self.bench.step(
            StepExpanded(
                self.bench.now_ms,
                StepId(f"r{run}/only"),
                len(specs),
                wanted=specs,
                lost=(TaskId(f"x{lost}"),),
                turn=self.turn(StepId(f"r{run}/only")),
            )
        )

    @rule(run=numbers, checkpoint=st.booleans())
    def cancel(self, run: int, checkpoint: bool) -> None:
        self.bench.step(RunCancelled(self.bench.now_ms, RunId(f"r{run}"), checkpoint))

    @rule(gap_ms=st.sampled_from([-5_000, 1, 1_000, 16_000, 130_000]))
    def wait(self, gap_ms: int) -> None:
        self.bench.now_ms = max(0, self.bench.now_ms + gap_ms)
        self.bench.step(Tick(self.bench.now_ms))

    @rule()
    def restart(self) -> None:
        self.bench.step(PlaneStarted(self.bench.now_ms))

    @invariant()
    def steps_with_nothing_to_wait_for_are_the_drivers(self) -> None:
        for step in self.bench.plane.state.steps.values():
            if not step.pending and not step.missing:
                assert step.status in (
                    StepStatus.ASSEMBLING,
                    StepStatus.EXPANDING,
                    StepStatus.SUCCEEDED,
                    StepStatus.SKIPPED,
                )

    @invariant()
    def no_idle_worker_beside_work_for_it(self) -> None:
        """Nothing that could run waits, but for another worker or to fill a batch, and not long."""
        plane, state = self.bench.plane, self.bench.plane.state
        ready = [task for task in state.tasks.values() if task.status == "ready"]
        if not (state.idle and self.bench.journal) or all(task.avoid for task in ready):
            return
        wakes_ms = plane.policy.wakes_ms(state)
        assert wakes_ms is not None
        assert state.now_ms < wakes_ms <= state.now_ms + LONGEST_LOOK_MS
        assert plane.next_deadline_ms() <= wakes_ms

    def teardown(self) -> None:
        later = ControlPlane(Utility(PRESETS["latency"]))
        later.replay(self.bench.journal)
        assert later.state == self.bench.plane.state


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
