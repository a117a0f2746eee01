"""All control-plane state. Only `apply` and what it calls may change it.

Plain dicts only: their order is insertion order, so every iteration is deterministic.
"""

from dataclasses import dataclass, field

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.events import TaskResult
from flowmesh.core.records import (
    Estimate,
    Lease,
    Left,
    Run,
    Step,
    Stop,
    Task,
    Tenant,
    Worker,
)


@dataclass(slots=True)
class ReadyKey:
    """The ready tasks of one batch key and equal needs, by tenant and priority, oldest first."""

    runtime: str
    devices: int = 1
    memory_bytes: int = 0
    count: int = 0
    work: float = 0.0
    queues: dict[TenantId, dict[int, dict[TaskId, None]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A result that counted, the runs it was for, and what it cost."""

    result: TaskResult
    spec_pack: str
    spec_line: int
    batch_key: str
    worker: WorkerId
    runs: tuple[RunId, ...]
    steps: tuple[StepId, ...]
    usd: float
    final: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """What an attempt that ended without a result has cost the runs that waited for it."""

    runs: tuple[RunId, ...]
    usd: float


@dataclass(frozen=True, slots=True)
class Progressed:
    """Progress that counted. `checkpoint` replaces what the task had before, if it is given."""

    task: TaskId
    step: int
    checkpoint: str
    record: str
    runs: tuple[RunId, ...]


@dataclass(slots=True)
class Changes:
    """What `apply` changed since it was last drained: the read models are made from it."""

    runs: dict[RunId, Run] = field(default_factory=dict)
    steps: dict[StepId, Step] = field(default_factory=dict)
    granted: list[tuple[Lease, tuple[RunId, ...]]] = field(default_factory=list)
    ended: list[tuple[Lease, str]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    progressed: list[Progressed] = field(default_factory=list)
    #: Checkpoints that were told and are of no use: a newer one is known.
    stale: list[str] = field(default_factory=list)
    #: Tasks whose progress and checkpoint are given up.
    forgotten: list[TaskId] = field(default_factory=list)
    #: Workers of leases that became smaller.
    trimmed: list[WorkerId] = field(default_factory=list)
    #: Whether the event itself took effect: late and repeated ones do not.
    heard: bool = False


@dataclass(slots=True)
class State:
    """Everything the control plane knows of unsettled work.

    Attributes:
        dependents: steps that wait for a step.
        todo: steps that the driver must expand or assemble.
        wants: who waits for a task; a task that nobody wants is dropped.
        tasks_of: the unsettled tasks that a step waits for.
        ready: the ready pool, by batch key and needs, see `pool.key_of`.
        delayed: tasks that back off, by the time at which they are due.
        lease_left: tasks of a lease that have not ended.
        idle: workers with a free slot.
        failing: steps that a failed task fails; empty between records.
        done: tasks in memory that succeeded, by the second in which they did. They are kept
            for `RETAIN_MS`, so that an expansion that looked the action cache up just before
            still finds them.
        ended: leases that ended, by the second in which they did; kept for `RETAIN_MS`, as
            a late result counts only under a lease that was granted for its task.
        settled_ms: when a run settled; kept for `RETAIN_MS`, so that a repeated
            submission is known.
        left: checkpoints of tasks that were dropped or failed, the oldest first; kept for
            `RETAIN_MS`, so that an expansion that looked into the tables before misses none.
        stopping: leases that have ended and may still leave a checkpoint.
    """

    now_ms: int = 0
    next_lease: int = 1
    runs: dict[RunId, Run] = field(default_factory=dict)
    steps: dict[StepId, Step] = field(default_factory=dict)
    dependents: dict[StepId, dict[StepId, None]] = field(default_factory=dict)
    todo: dict[StepId, None] = field(default_factory=dict)
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    wants: dict[TaskId, dict[StepId, None]] = field(default_factory=dict)
    tasks_of: dict[StepId, dict[TaskId, None]] = field(default_factory=dict)
    ready: dict[str, ReadyKey] = field(default_factory=dict)
    delayed: dict[int, dict[TaskId, None]] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    lease_left: dict[LeaseId, dict[TaskId, None]] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    idle: dict[WorkerId, None] = field(default_factory=dict)
    failing: dict[StepId, None] = field(default_factory=dict)
    tenants: dict[TenantId, Tenant] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    done: dict[int, dict[TaskId, None]] = field(default_factory=dict)
    ended: dict[int, dict[LeaseId, Lease]] = field(default_factory=dict)
    settled_ms: dict[RunId, int] = field(default_factory=dict)
    left: dict[TaskId, Left] = field(default_factory=dict)
    stopping: dict[LeaseId, Stop] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes, compare=False)

    def drain(self) -> Changes:
        """Hand over what has changed, and start anew."""
        drained, self.changes = self.changes, Changes()
        return drained

    def put_run(self, run: Run) -> None:
        self.runs[run.id] = self.changes.runs[run.id] = run

    def put_step(self, step: Step) -> None:
        self.steps[step.id] = self.changes.steps[step.id] = step

    def put_worker(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        if worker.takes_work:
            self.idle[worker.id] = None
        else:
            self.idle.pop(worker.id, None)
