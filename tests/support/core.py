"""Small histories for tests of the core: a plane, a clock, runs of one step."""

from dataclasses import dataclass, field
from typing import Any

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.check import check
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.events import (
    Event,
    RunSubmitted,
    StepAssembled,
    StepExpanded,
    TaskProgressed,
    TaskResult,
    WorkerSynced,
)
from flowmesh.core.machine import ControlPlane
from flowmesh.core.records import Demand, Failure, OnError, Run, RunStatus, Step, TaskSpec
from flowmesh.core.state import Changes


def spec(
    name: str, *, key: str = "k", work: float = 1.0, max_batch: int = 4, **more: Any
) -> TaskSpec:
    return TaskSpec(TaskId(name), key, "models", work, max_batch, "pack", 0, **more)


@dataclass
class Bench:
    """Drives a plane by hand; every step is checked, every record is journaled."""

    plane: ControlPlane = field(default_factory=ControlPlane)
    now_ms: int = 0
    journal: list[Event | Decision] = field(default_factory=list)
    runs: dict[RunId, Run] = field(default_factory=dict)
    steps: dict[StepId, Step] = field(default_factory=dict)
    last: Changes = field(default_factory=Changes)

    def step(self, event: Event) -> list[Decision]:
        decisions = self.plane.step(event)
        self.journal += [event, *decisions]
        check(self.plane.state)
        self.last = self.plane.state.drain()
        self.runs |= self.last.runs
        self.steps |= self.last.steps
        return decisions

    def submit(
        self,
        name: str,
        tasks: list[TaskSpec],
        *,
        tenant: str = "t",
        priority: int = 0,
        weight: float = 1.0,
        on_error: OnError = OnError.FAIL,
        found: int = 0,
        demand: Demand = Demand(),
    ) -> StepId:
        """A run of one step, expanded at once."""
        run, step_id = RunId(name), StepId(f"{name}/only")
        step = Step(step_id, run, (), on_error)
        record = Run(run, TenantId(tenant), priority, (step_id,), self.now_ms, weight)
        self.step(RunSubmitted(self.now_ms, record, (step,)))
        self.step(
            StepExpanded(
                self.now_ms, step_id, len(tasks) + found, found, wanted=tuple(tasks), demand=demand
            )
        )
        return step_id

    def assemble(self, step: StepId, error: str = "") -> None:
        self.step(StepAssembled(self.now_ms, step, error, turn=self.steps[step].turn))

    def held(self, worker: str) -> dict[TaskId, LeaseId]:
        """The last lease that a worker was granted for each task, ended or not."""
        grants = [one for one in self.journal if isinstance(one, GrantLease)]
        mine = [grant for grant in grants if grant.worker == worker]
        return {task: grant.lease for grant in mine for task in grant.tasks}

    def sync(
        self,
        worker: str = "w",
        *,
        done: list[str] | None = None,
        failed: dict[str, Failure] | None = None,
        slots: int = 1,
        seconds: float = 1.0,
        leaving: bool = False,
        usd_per_hour: float = 0.0,
        warm: tuple[str, ...] = (),
        **more: Any,
    ) -> list[tuple[str, ...]]:
        """Report and return the batches that the worker should be running now."""
        held = self.held(worker)
        ends = {**dict.fromkeys(done or [], None), **(failed or {})}
        results = tuple(
            TaskResult(
                held.get(TaskId(task), LeaseId(0)),
                TaskId(task),
                end,
                "out",
                str(end or ""),
                seconds=seconds,
            )
            for task, end in ends.items()
        )
        self.step(
            WorkerSynced(
                self.now_ms,
                WorkerId(worker),
                ("models",),
                slots,
                usd_per_hour,
                warm,
                results,
                leaving,
                **more,
            )
        )
        return self.running(worker)

    def progress(
        self, worker: str, task: str, step: int, tree: str = "", lease: int | None = None
    ) -> Changes:
        """Say how far a task is, under the last lease of it; what that has changed."""
        held = self.held(worker).get(TaskId(task), LeaseId(0)) if lease is None else LeaseId(lease)
        named = (WorkerId(worker), held, TaskId(task))
        self.step(TaskProgressed(self.now_ms, *named, step, tree))
        return self.last

    def checkpoints(self, worker: str = "w") -> list[tuple[str, ...]]:
        """What the leases of a worker go on from."""
        return [lease.checkpoints for lease, _ in self.plane.desired(WorkerId(worker))]

    def running(self, worker: str = "w") -> list[tuple[str, ...]]:
        return [left for _, left in self.plane.desired(WorkerId(worker))]

    def status(self, run: str) -> RunStatus:
        return self.runs[RunId(run)].status


def granted(decisions: list[Decision]) -> list[GrantLease]:
    return [decision for decision in decisions if isinstance(decision, GrantLease)]
