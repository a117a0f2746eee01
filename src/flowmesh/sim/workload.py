"""Who asks for what: runs of a few steps whose rows repeat across tenants."""

import hashlib
from random import Random

from flowmesh.base.ids import RunId, StepId, TaskId, TenantId
from flowmesh.core.events import RunSubmitted
from flowmesh.core.records import OnError, Run, Step, TaskSpec

KINDS = ("transform", "generate", "choose", "train")
RUNTIME = {"transform": "tables", "generate": "models", "choose": "models", "train": "models"}
MAX_BATCH = {"transform": 1, "generate": 8, "choose": 4, "train": 1}
#: A long task has so many steps, and leaves a checkpoint after each few of them.
STEPS, SAVE_EVERY = 20, 5


def is_long(task: TaskId) -> bool:
    return task.startswith("train:")


def tree_at(task: TaskId, step: int) -> str:
    """The checkpoint of a step."""
    return f"{task}@{step}"


def step_of(tree: str) -> int:
    return int(tree.rpartition("@")[2]) if tree else 0


class Workload:
    """Makes submissions; knows the tasks of every step, and which are at fault."""

    def __init__(self, rng: Random, bad_input: float) -> None:
        self._rng = rng
        self._bad_input = bad_input
        self._salt = rng.random()
        self._tasks: dict[StepId, tuple[TaskId, ...]] = {}
        self._skipped: dict[StepId, None] = {}
        self._on_error: dict[StepId, OnError] = {}

    def submission(self, run: RunId, number: int, now_ms: int) -> RunSubmitted:
        """A diamond or a chain, of up to five steps; variants make runs overlap."""
        variant, length = self._rng.randrange(3), self._rng.randint(1, 5)
        steps: list[Step] = []
        for depth in range(length):
            kind = KINDS[depth % len(KINDS)]
            step_id = StepId(f"{run}/{depth}-{kind}")
            earlier = [step.id for step in steps[-2:]]
            upstream = tuple(
                self._rng.sample(earlier, self._rng.randint(min(1, depth), len(earlier)))
            )
            on_error = self._rng.choice((OnError.FAIL, OnError.SKIP))
            self._plan(step_id, kind, f"{variant}-{depth}", on_error)
            steps.append(Step(step_id, run, upstream, on_error))
        ids = tuple(step.id for step in steps)
        tenant, priority = TenantId(f"t{number % 3}"), self._rng.choice((0, 0, 10))
        weight = (1.0, 1.0, 2.0)[number % 3]
        return RunSubmitted(now_ms, Run(run, tenant, priority, ids, now_ms, weight), tuple(steps))

    def _plan(self, step: StepId, kind: str, variant: str, on_error: OnError) -> None:
        rows = 1 if kind in ("transform", "train") else self._rng.randrange(12)
        picks = [self._rng.randrange(10) for _ in range(rows)]
        self._tasks[step] = tuple(TaskId(f"{kind}:{variant}:{pick}") for pick in picks)
        self._on_error[step] = on_error
        if self._rng.random() < 0.1:
            self._skipped[step] = None

    def tasks(self, step: StepId) -> tuple[TaskId, ...]:
        return self._tasks[step]

    def skips(self, step: StepId) -> bool:
        return step in self._skipped

    def spec(self, task: TaskId) -> TaskSpec:
        kind, variant, pick = task.split(":")
        work = 1.0 + int(pick) * (20 if kind == "train" else 1)
        key = f"{kind}:{variant[0]}"
        pure = kind != "train"
        return TaskSpec(task, key, RUNTIME[kind], work, MAX_BATCH[kind], "pack", 0, pure)

    def is_bad(self, task: TaskId) -> bool:
        """Whether the task's input is at fault; the same for everyone who asks."""
        drawn = hashlib.sha256(f"{self._salt}{task}".encode()).digest()[0]
        return drawn < self._bad_input * 256

    def must_fail(self, step: StepId) -> bool:
        """Whether this step cannot but fail, if it is reached."""
        bad = any(self.is_bad(task) for task in self._tasks[step])
        return bad and self._on_error[step] is OnError.FAIL and not self.skips(step)
