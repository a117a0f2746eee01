"""A whole deployment in one thread: the real core, and everything around it made up."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from random import Random

from flowmesh.base.ids import RunId, StepId, TaskId
from flowmesh.core.check import check
from flowmesh.core.decisions import Decision
from flowmesh.core.events import (
    Event,
    PlaneStarted,
    ProgressForgotten,
    RunCancelled,
    StepAssembled,
    StepExpanded,
    StepReopened,
    Tick,
)
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.records import Lease, Run, RunStatus, Step, StepStatus, TaskSpec
from flowmesh.core.state import Accepted, Changes, State
from flowmesh.sim.faults import Faults
from flowmesh.sim.renting import Renting
from flowmesh.sim.workers import SimWorker
from flowmesh.sim.workload import Workload, step_of, tree_at

TICK_MS = 1_000


class World:
    """One deployment. `run` until the faults have done harm, `heal`, `run_until_quiet`.

    Attributes:
        journal: all events and decisions: what a crash of the plane leaves.
        cache: the action cache: settled work by fingerprint.
        executions: how often each task was carried out to a good end.
        saved: by task, the step of the checkpoint that the tables hold.
        resumed: leases that went on from a checkpoint.
        settled: how each run ended.
        steps: every step as it was last seen, settled ones too.
    """

    def __init__(self, seed: int, *, runs: int = 12, workers: int = 3, rents: bool = False) -> None:
        self.rng = Random(seed)
        self.faults = Faults.swarm(self.rng)
        #: A result may be forgotten too early then, and made again.
        self._may_repeat = self.faults.jump_clock > 0 or self.faults.lose_blob > 0
        self.workload = Workload(self.rng, self.faults.bad_input)
        self.renting: Renting | None = None
        self.plane = self._new_plane()
        self.journal: list[Event | Decision] = []
        #: The state as it was at the last crash, and how many records of the journal it has seen.
        self._spare, self._spare_has = State(), 0
        self.now_ms = 0
        self.skew_ms = 0
        self.cache: dict[TaskId, str] = {}
        self.executions: dict[TaskId, int] = {}
        self.saved: dict[TaskId, int] = {}
        self.resumed = 0
        self.settled: dict[RunId, RunStatus] = {}
        self.submitted: dict[RunId, None] = {}
        self.cancelled: dict[RunId, None] = {}
        self.steps: dict[StepId, Step] = {}
        self._lost: dict[TaskId, None] = {}
        self._performing: dict[tuple[StepId, StepStatus], None] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.workers = [SimWorker(self, number) for number in range(workers)]
        for number in range(runs):
            self.after(self.rng.randrange(600_000), lambda number=number: self._submit(number))  # type: ignore[misc]
        self.after(TICK_MS, self._tick)
        if rents:
            # Its chances are its own, so that the same seed without renting stays as it was.
            self.renting = Renting(self, Random(seed + 1_000_000))
            self.plane = self._new_plane()

    def _new_plane(self, state: State | None = None) -> ControlPlane:
        if self.renting is None:
            return ControlPlane(state=state)
        return ControlPlane(Utility(fleet=self.renting.limits), state)

    def run(self, *, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, action = heappop(self._queue)
            action()

    def run_until_quiet(self, *, limit_ms: int) -> None:
        while self.unsettled() and self.now_ms < limit_ms:
            self.run(until_ms=self.now_ms + 60_000)
            self.now_ms += 1

    def heal(self) -> None:
        """End the faults, in mid-flight. Only some workers live on: the rest are gone for good."""
        self.faults.stop()
        if self.renting is not None:
            self.renting.heal()
        lives = self.rng.randint(1, len(self.workers)) if self.workers else 0
        core = self.rng.sample(self.workers, lives)
        for worker in self.workers:
            worker.heal(lives=worker in core)

    def unsettled(self) -> list[RunId]:
        return [run for run in self.submitted if run not in self.settled]

    def trace(self) -> str:
        return hashlib.sha256(repr(self.journal).encode()).hexdigest()

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._queue, (self.now_ms + delay_ms, self._order, action))

    def send(self, action: Callable[[], None]) -> None:
        """Deliver late, out of order, twice, or not at all."""
        copies = 0 if self.rng.random() < self.faults.lose else 1
        copies += self.rng.random() < self.faults.repeat
        for _ in range(copies):
            self.after(self.rng.randint(1, self.faults.delay_ms_max), action)

    def hit(self, rate: float) -> bool:
        return self.rng.random() < rate

    def step(self, make: Callable[[int], Event]) -> bool:
        """Give the plane an event; False if it died before it was durable."""
        if self.hit(self.faults.jump_clock):
            self.skew_ms += self.rng.randint(-60_000, 60_000)
        if self.hit(self.faults.crash_before):
            self._restart()
            return False
        event = make(max(0, self.now_ms + self.skew_ms))
        decisions = self.plane.step(event)
        self.journal += [event, *decisions]
        self._project()
        check(self.plane.state)
        if self.renting is not None:
            self.renting.check(decisions)
        if self.hit(self.faults.crash_after):
            self._restart()
        self._perform()
        return True

    def _restart(self) -> None:
        """The plane's process is replaced: what is not in the journal is gone."""
        before = self.plane.state
        self.plane = self._new_plane(self._spare)
        self.plane.replay(self.journal[self._spare_has :])
        self.plane.state.drain()
        assert self.plane.state == before
        # It is worth as much as a replay from the start, which would take the longer each time.
        self._spare, self._spare_has = before, len(self.journal)
        self._performing.clear()
        self.step(PlaneStarted)

    def _project(self) -> None:
        """What the server's read models would keep."""
        changes = self.plane.state.drain()
        self.steps |= changes.steps
        self._progress(changes)
        for accepted in changes.accepted:
            self._keep(accepted)
        for run in changes.runs.values():
            if run.status is not RunStatus.RUNNING:
                self._run_settled(run)

    def _progress(self, changes: Changes) -> None:
        """Checkpoints are durable from here on: none is lost, and each lease goes on from them."""
        for task in changes.forgotten:
            self.saved.pop(task, None)
        for progressed in changes.progressed:
            step = step_of(progressed.checkpoint)
            known = self.saved.get(progressed.task, 0)
            assert step > known or self._may_repeat, f"{progressed.task} fell from step {known}"
            self.saved[progressed.task] = step
        for lease, _ in changes.granted:
            self._granted(lease)

    def _granted(self, lease: Lease) -> None:
        for task, tree in zip(lease.tasks, lease.checkpoints, strict=True):
            known = self.saved.get(task, 0)
            assert step_of(tree) >= known or self._may_repeat, f"{task} repeats what is saved"
            self.resumed += bool(tree)

    def _keep(self, accepted: Accepted) -> None:
        task, output = accepted.result.task, accepted.result.output
        if accepted.result.failure is None:
            assert task not in self.cache or self._may_repeat, f"{task} ran twice"
            self.cache[task] = output
            self.executions[task] = self.executions.get(task, 0) + 1
            self.saved.pop(task, None)

    def _run_settled(self, run: Run) -> None:
        assert run.id not in self.settled, f"{run.id} settled twice"
        self.settled[run.id] = run.status
        for step_id in run.steps:
            step = self.steps[step_id]
            if step.status is StepStatus.SUCCEEDED:
                done = step.executed + step.reused + step.joined + step.failed
                assert done == len(set(self.workload.tasks(step_id))), step

    def _perform(self) -> None:
        """What the driver does for the core, perhaps twice: expand and assemble steps."""
        for step in self.plane.outstanding():
            if (step.id, step.status) not in self._performing:
                self._performing[step.id, step.status] = None
                work = self._expand if step.status is StepStatus.EXPANDING else self._assemble
                self.after(self.rng.randint(1, 2_000), lambda id=step.id, work=work: work(id))  # type: ignore[misc]

    def _expand(self, step: StepId) -> None:
        """The cache is read now, the event comes later: results may come between."""
        if self._lose_something(step):
            return
        if self.workload.skips(step):
            turn = self.steps[step].turn
            self._tell(step, lambda now: StepExpanded(now, step, skipped=True, turn=turn))
            return
        tasks = self.workload.tasks(step)
        lost = tuple(task for task in dict.fromkeys(tasks) if task in self._lost)
        for task in lost:
            self._lost.pop(task)
            self.cache.pop(task, None)
        distinct = dict.fromkeys(tasks)
        wanted = tuple(self._spec(task) for task in distinct if task not in self.cache)
        found = len(distinct) - len(wanted)
        items, turn = len(tasks), self.steps[step].turn

        def expanded(now_ms: int) -> StepExpanded:
            return StepExpanded(now_ms, step, items, found, wanted, lost=lost, turn=turn)

        self.after(self.rng.randint(1, 5_000), lambda: self._tell(step, expanded))

    def _spec(self, task: TaskId) -> TaskSpec:
        """With the checkpoint that the tables hold."""
        spec, step = self.workload.spec(task), self.saved.get(task, 0)
        return replace(spec, checkpoint=tree_at(task, step), step=step) if step else spec

    def _lose_something(self, step: StepId) -> bool:
        """A result of a step before this one is gone: that step is taken up again."""
        upstream = self.steps[step].upstream
        if not upstream or not self.hit(self.faults.lose_blob):
            return False
        maker = self.rng.choice(upstream)
        self._lost |= dict.fromkeys(self.workload.tasks(maker)[:1])
        turn = self.steps[step].turn
        self._tell(step, lambda now: StepReopened(now, maker, "lost for good", step, turn))
        return True

    def _assemble(self, step: StepId) -> None:
        """Every result is there, but for those that failed, or were lost since."""
        tasks = self.workload.tasks(step)
        good = [task for task in dict.fromkeys(tasks) if not self.workload.is_bad(task)]
        gone = [task for task in good if task not in self.cache]
        if len(gone) > self.steps[step].failed:
            assert self._may_repeat, f"{step} lacks {gone}"
            turn = self.steps[step].turn
            self._tell(step, lambda now: StepReopened(now, step, "lost for good", step, turn))
            return
        turn = self.steps[step].turn
        self._tell(step, lambda now: StepAssembled(now, step, turn=turn))

    def _tell(self, step: StepId, make: Callable[[int], Event]) -> None:
        """The driver's answer for a step; afterwards it may be asked for the step again."""
        for status in (StepStatus.EXPANDING, StepStatus.ASSEMBLING):
            self._performing.pop((step, status), None)
        self.step(make)

    def _tick(self) -> None:
        self.step(Tick)
        if self.hit(0.002):
            unwanted = tuple(task for task in self.saved if task not in self.plane.state.tasks)
            self.step(lambda now: ProgressForgotten(now, unwanted))
        self.after(TICK_MS, self._tick)

    def _submit(self, number: int) -> None:
        """A client repeats its submission until it is acknowledged."""
        run = RunId(f"r{number}")
        if not self.step(lambda now: self.workload.submission(run, number, now)):
            self.after(1_000, lambda: self._submit(number))
            return
        self.submitted[run] = None
        if self.hit(self.faults.cancel):
            self.cancelled[run] = None
            checkpoint = self.hit(0.5)
            self.after(self.rng.randrange(300_000), lambda: self._cancel(run, checkpoint))

    def _cancel(self, run: RunId, checkpoint: bool) -> None:
        if not self.step(lambda now: RunCancelled(now, run, checkpoint)):
            self.after(1_000, lambda: self._cancel(run, checkpoint))
