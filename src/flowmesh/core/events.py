"""Facts that reach the core. Each carries the time it was seen.

New fields need defaults, and none is ever renamed or given a new meaning: old journals replay.
"""

from dataclasses import dataclass

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, WorkerId
from flowmesh.core.records import Failure, Run, Step, TaskSpec


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
class TaskResult:
    """How one task of a lease ended.

    `output` is opaque here: the driver's projection keeps it. `seconds` is what this task
    took of its worker's time.
    """

    lease: LeaseId
    task: TaskId
    failure: Failure | None = None
    output: str = ""
    message: str = ""
    detail: str = ""
    seconds: float = 0.0


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
)
