"""A state that has been told what batches took: by the law alone, whatever the policy."""

from typing import Any

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import GrantLease
from flowmesh.core.events import (
    BatchTiming,
    RunSubmitted,
    StepExpanded,
    TaskResult,
    WorkerSynced,
)
from flowmesh.core.fleet import Device
from flowmesh.core.records import Demand, Expected, Failure, Run, Step, TaskSpec
from flowmesh.core.state import State

A100 = Device("A100-80", 312e12, 2039e9, 80_000_000_000, 2e9, 1e9, 60.0, 400.0)
#: A model of eight billion parameters.
MODEL = Demand("generate@1", (), 16_000_000_000, 16e9, 131_072)
#: Something that has no model.
PLAIN = Demand("http@1")
NOTHING = Expected()


class Told:
    """Grants and reports batches one after the other; keeps the journal."""

    def __init__(self, device: Device = A100, demand: Demand = MODEL, key: str = "k") -> None:
        self.state = State()
        self.journal: list[Any] = []
        self.device, self.demand, self.key = device, demand, key
        self._asked = 0

    def apply(self, record: Any) -> None:
        self.journal.append(record)
        apply(self.state, record)

    def sync(self, results: tuple[TaskResult, ...] = (), worker: str = "w", **more: Any) -> None:
        record = WorkerSynced(
            0, WorkerId(worker), ("models",), 1, 1.0, results=results, device=self.device, **more
        )
        self.apply(record)

    def ask(self, tasks: int, **more: Any) -> tuple[TaskId, ...]:
        """A run of so many new tasks."""
        self._asked += 1
        name = f"r{self._asked}"
        run, step = RunId(name), StepId(f"{name}/only")
        specs = tuple(
            TaskSpec(TaskId(f"{name}-{i}"), self.key, "models", 1.0, 256, "pack", i, **more)
            for i in range(tasks)
        )
        self.apply(RunSubmitted(0, Run(run, TenantId("t"), 0, (step,), 0), (Step(step, run, ()),)))
        self.apply(StepExpanded(0, step, tasks, wanted=specs, demand=self.demand))
        return tuple(spec.id for spec in specs)

    def grant(
        self, tasks: tuple[TaskId, ...], worker: str = "w", expected: Expected = NOTHING
    ) -> LeaseId:
        lease = LeaseId(self.state.next_lease)
        self.apply(GrantLease(0, lease, WorkerId(worker), self.key, tasks, expected=expected))
        return lease

    def batch(
        self,
        timing: BatchTiming | None,
        *,
        expected: Expected = NOTHING,
        failure: Failure | None = None,
        output_tokens: int = 0,
        seconds: float = 0.0,
        count: int = 0,
        **more: Any,
    ) -> None:
        """One batch from beginning to end, told with the last of its results."""
        self.sync()
        tasks = self.ask(count or (timing.tasks if timing else 1), **more)
        lease = self.grant(tasks, expected=expected)
        results = [
            TaskResult(lease, task, None, "out", seconds=seconds, output_tokens=output_tokens)
            for task in tasks[:-1]
        ]
        last = TaskResult(
            lease, tasks[-1], failure, "out", seconds=seconds, output_tokens=output_tokens,
            batch=timing,
        )  # fmt: skip
        self.sync((*results, last))
