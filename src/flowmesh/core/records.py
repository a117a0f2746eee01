"""What the control plane knows: frozen records, replaced and never edited.

The states and who may move them are drawn in `docs/lifecycle.md`.
"""

from dataclasses import dataclass
from enum import StrEnum

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId, WorkerId


class RunStatus(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    WAITING = "waiting"  #: for the steps before it
    EXPANDING = "expanding"  #: the driver makes its items
    RUNNING = "running"  #: tasks are wanted
    ASSEMBLING = "assembling"  #: the driver makes its outputs
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskStatus(StrEnum):
    READY = "ready"
    DELAYED = "delayed"  #: ready again at `due_ms`
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class OnError(StrEnum):
    """What a failed row does to its step."""

    FAIL = "fail"
    SKIP = "skip"
    QUARANTINE = "quarantine"


class Failure(StrEnum):
    """Why an attempt failed; `retry.py` says what follows."""

    INPUT = "input"
    TRANSIENT = "transient"
    MEMORY = "memory"
    INTERNAL = "internal"
    CRASH = "crash"
    LOST = "lost"  #: the worker fell silent or was taken away


@dataclass(frozen=True, slots=True)
class Run:
    """One submission. `open_steps` counts those not yet settled."""

    id: RunId
    tenant: TenantId
    priority: int
    steps: tuple[StepId, ...]
    submitted_ms: int
    weight: float = 1.0
    open_steps: int = 0
    status: RunStatus = RunStatus.RUNNING
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One node of one run.

    Attributes:
        upstream: steps that must settle before this one is expanded.
        missing: how many of them have not.
        items: rows times samples.
        pending: distinct tasks that have not settled.
        executed, reused, joined, failed: distinct tasks by how they came to their end,
            see `wire.TaskCounts`.
        turn: how often it was put back; what the driver does for an earlier turn is void.
        reopened: how often that was because something of its own was lost.
    """

    id: StepId
    run: RunId
    upstream: tuple[StepId, ...]
    on_error: OnError = OnError.FAIL
    status: StepStatus = StepStatus.WAITING
    missing: int = 0
    items: int = 0
    pending: int = 0
    executed: int = 0
    reused: int = 0
    joined: int = 0
    failed: int = 0
    message: str = ""
    turn: int = 0
    reopened: int = 0


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as expansion describes it.

    Attributes:
        work: estimated work, in units whose cost is learnt by batch key.
        max_batch: most tasks of one lease.
        pack, line: where its action document is: a blob of JSON lines.
        pure: a late result, from a lease that has ended, still counts.
        devices, memory_bytes: what a worker must have to run it.
        checkpoint, step: the tree that an earlier attempt left last, and the step it goes on
            from; empty if none did.
    """

    id: TaskId
    batch_key: str
    runtime: str
    work: float
    max_batch: int
    pack: str
    line: int
    pure: bool = True
    devices: int = 1
    memory_bytes: int = 0
    checkpoint: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work named by its fingerprint, which is its id; shared by all who want it.

    Attributes:
        tenant, priority: the queue of the ready pool that it is filed in.
        owner: the step that asked first, or after that one left, the next.
        batch_limit: most tasks it may run with; falls when a batch fails as a whole.
        attempts, bugs, crashes, losses: failures so far, each with a limit of its own.
        avoid: the worker it failed on last; another is preferred.
        checkpoint, step: the newest tree that an attempt has left, and the step it goes on from.
        saved_by: the lease that left it; None if it came with the task.
        told_ms: when the lease that holds it last said how far it is; 0 if it has not.
        paid_s, paid_by: seconds of an attempt without a result that were paid for, and its lease.
    """

    spec: TaskSpec
    tenant: TenantId
    priority: int
    owner: StepId
    since_ms: int
    batch_limit: int
    status: TaskStatus = TaskStatus.READY
    lease: LeaseId | None = None
    attempts: int = 0
    bugs: int = 0
    crashes: int = 0
    losses: int = 0
    due_ms: int = 0
    avoid: WorkerId | None = None
    checkpoint: str = ""
    step: int = 0
    saved_by: LeaseId | None = None
    told_ms: int = 0
    paid_s: float = 0.0
    paid_by: LeaseId | None = None

    @property
    def id(self) -> TaskId:
        return self.spec.id


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to run a batch, for as long as the worker is heard of.

    `checkpoints`: for each of the tasks, the tree to go on from, or nothing.
    """

    id: LeaseId
    worker: WorkerId
    batch_key: str
    tasks: tuple[TaskId, ...]
    granted_ms: int
    checkpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Left:
    """The checkpoint of a task that nobody wants any more, and when it was noted."""

    checkpoint: str
    step: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Stop:
    """A lease that has ended and whose work may leave a checkpoint until `due_ms`."""

    worker: WorkerId
    due_ms: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it last described itself. `warm` are batch keys whose engine is loaded.

    `memory_bytes` 0 is no limit. One that is `draining` gets no new work.
    """

    id: WorkerId
    runtimes: tuple[str, ...]
    slots: int
    usd_per_hour: float
    warm: tuple[str, ...]
    heard_ms: int
    leases: tuple[LeaseId, ...] = ()
    devices: int = 1
    memory_bytes: int = 0
    draining: bool = False

    @property
    def takes_work(self) -> bool:
        return len(self.leases) < self.slots and not self.draining


@dataclass(frozen=True, slots=True)
class Tenant:
    """`virtual_usd`: dollars of work received, divided by weight; the least is served next."""

    id: TenantId
    weight: float = 1.0
    virtual_usd: float = 0.0
    open_runs: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a batch key's work costs, learnt from results; see `estimate.py`."""

    unit_s: float
    seen: int
