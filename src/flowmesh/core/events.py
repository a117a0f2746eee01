"""Facts that reach the core. Each carries the time it was seen.

New fields need defaults, and none is ever renamed or given a new meaning: old journals replay.
"""

from dataclasses import dataclass

from flowmesh.base.ids import InstanceId, LeaseId, RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.records import Demand, Failure, Quota, Run, Step, TaskSpec


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """A run was accepted. `steps` are in topological order, all WAITING.

    `record` is opaque here, as in all events: what the read models need besides.
    """

    at_ms: int
    run: Run
    steps: tuple[Step, ...]
    record: str = ""


@dataclass(frozen=True, slots=True)
class StepExpanded:
    """A step's items are known.

    Attributes:
        items: rows times samples.
        found: distinct tasks whose results the action cache holds.
        wanted: the other distinct tasks.
        rows_failed: items that could not be made (a template that failed on its row).
        skipped: a condition said no, or nothing is left to work on.
        error: expansion is impossible; the step fails with this message.
        lost: tasks among `wanted` whose results are gone, even if they are remembered here.
        saved_usd: what the results found had cost when they were made.
        turn: of the step, when its expansion began; another one is void.
        demand: of the batch key of `wanted`; all tasks of a step have the same.
    """

    at_ms: int
    step: StepId
    items: int = 0
    found: int = 0
    wanted: tuple[TaskSpec, ...] = ()
    rows_failed: int = 0
    skipped: bool = False
    error: str = ""
    lost: tuple[TaskId, ...] = ()
    saved_usd: float = 0.0
    record: str = ""
    turn: int = 0
    demand: Demand = Demand()


@dataclass(frozen=True, slots=True)
class StepAssembled:
    """A step's outputs are in the store; `error` if they could not be made."""

    at_ms: int
    step: StepId
    error: str = ""
    record: str = ""
    turn: int = 0


@dataclass(frozen=True, slots=True)
class StepReopened:
    """Something that a step made is lost or damaged: it is expanded anew, and all after it.

    `message` says what is lost; it is the run's end if that keeps happening. `reader` found
    it out, in its turn `turn`: if it was put back since, the loss is being mended already.
    """

    at_ms: int
    step: StepId
    message: str
    reader: StepId
    turn: int


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """What a whole batch took, told with the last result of its lease.

    Attributes:
        tasks: that were executed together; fewer than the lease had if it became smaller.
        fetch_s, fetch_bytes: for what was not on the worker's disk.
        load_s, load_bytes: for an engine that was cold; 0 if it was warm.
        exec_s: from the first row's start to the last one's end.
        prompt_tokens: read, without what a shared prefix saved.
        decode_steps: of the longest row.
        output_tokens: generated, by all rows.
        work: of tasks without tokens, in the units of `TaskSpec.work`.
        joules: 0 where not known.
        cpu_s: processor time of the process that executed it, and of those it started.
    """

    tasks: int
    fetch_s: float = 0.0
    fetch_bytes: int = 0
    load_s: float = 0.0
    load_bytes: int = 0
    exec_s: float = 0.0
    prompt_tokens: int = 0
    decode_steps: int = 0
    output_tokens: int = 0
    work: float = 0.0
    joules: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How one task of a lease ended.

    `output` is opaque here: the driver's projection keeps it. `seconds` and `joules` are what
    this task took of its worker. `output_tokens` is how many it generated.
    """

    lease: LeaseId
    task: TaskId
    failure: Failure | None = None
    output: str = ""
    message: str = ""
    detail: str = ""
    seconds: float = 0.0
    output_tokens: int = 0
    joules: float = 0.0
    batch: BatchTiming | None = None


@dataclass(frozen=True, slots=True)
class WorkerSynced:
    """A worker's whole state: what it is and what it has finished.

    `draining`: it takes no new work, as it goes soon. `leaving`: it goes now.
    """

    at_ms: int
    worker: WorkerId
    runtimes: tuple[str, ...]
    slots: int
    usd_per_hour: float
    warm: tuple[str, ...] = ()
    results: tuple[TaskResult, ...] = ()
    leaving: bool = False
    devices: int = 1
    memory_bytes: int = 0
    draining: bool = False
    device: Device = Device()
    place: str = ""
    holds: tuple[str, ...] = ()
    instance: InstanceId = InstanceId("")
    interruptions_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Whoever started a worker saw it end: no need to wait for its silence."""

    at_ms: int
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """`checkpoint`: what is stopped by it may first leave a checkpoint, for a short while."""

    at_ms: int
    run: RunId
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: sent at `ControlPlane.next_deadline_ms`."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class PlaneStarted:
    """The control plane came back: no worker could be heard while it was away."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class TaskProgressed:
    """How far a long task is, or, with `checkpoint`, that it can go on from `step`.

    The blobs of a checkpoint are in the store before anybody says so.
    """

    at_ms: int
    worker: WorkerId
    lease: LeaseId
    task: TaskId
    step: int
    checkpoint: str = ""
    record: str = ""


@dataclass(frozen=True, slots=True)
class ProgressForgotten:
    """Nobody has wanted these tasks for long: what they have left may go."""

    at_ms: int
    tasks: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class TenantChanged:
    """Whoever runs the deployment has set a tenant's weight and quota."""

    at_ms: int
    tenant: TenantId
    weight: float = 1.0
    quota: Quota = Quota()


@dataclass(frozen=True, slots=True)
class OffersListed:
    """All that a provider offers now; what it offered before is void."""

    at_ms: int
    provider: str
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class InstancesListed:
    """All instances that a provider holds for us: its list is the truth.

    `failed`: instances that it could not launch, and why.
    """

    at_ms: int
    provider: str
    instances: tuple[InstanceId, ...]
    failed: tuple[tuple[InstanceId, str], ...] = ()


Event = (
    RunSubmitted
    | StepExpanded
    | StepAssembled
    | StepReopened
    | WorkerSynced
    | WorkerGone
    | RunCancelled
    | Tick
    | PlaneStarted
    | TaskProgressed
    | ProgressForgotten
    | TenantChanged
    | OffersListed
    | InstancesListed
)
EVENTS: tuple[type, ...] = (
    RunSubmitted,
    StepExpanded,
    StepAssembled,
    StepReopened,
    WorkerSynced,
    WorkerGone,
    RunCancelled,
    Tick,
    PlaneStarted,
    TaskProgressed,
    ProgressForgotten,
    TenantChanged,
    OffersListed,
    InstancesListed,
)
