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
    """One submission.

    Attributes:
        open_steps: those not yet settled.
        deadline_ms: when it should have settled; 0 for no such time.
        budget_usd: the most that it may spend; 0 for no limit.
        objective: preset of the utility's weights, see `utility.PRESETS`; empty for the
            deployment's.
        spent_usd, held_usd: its shares of what has ended, and of what its leases are expected
            to cost: both count against the budget.
    """

    id: RunId
    tenant: TenantId
    priority: int
    steps: tuple[StepId, ...]
    submitted_ms: int
    weight: float = 1.0
    open_steps: int = 0
    status: RunStatus = RunStatus.RUNNING
    message: str = ""
    deadline_ms: int = 0
    budget_usd: float = 0.0
    objective: str = ""
    spent_usd: float = 0.0
    held_usd: float = 0.0


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
        operator: `name@version`; what it will take is predicted from earlier steps of the same.
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
    operator: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files that a machine needs on its disk: a model's, an adapter's."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What all tasks of one batch key ask of a machine.

    Attributes:
        operator: `name@version`.
        trees: the models; a worker that holds them need not fetch them.
        weights_bytes: what a cold engine loads into the device's memory; 0 if it has no model.
        flops_per_token: of a prompt token, or of one that is trained on.
        cache_bytes_per_token: device memory that each token of a running sequence takes.
        shares_prefixes: its engine computes a prefix that prompts of one batch share only once.
    """

    operator: str = ""
    trees: tuple[Tree, ...] = ()
    weights_bytes: int = 0
    flops_per_token: float = 0.0
    cache_bytes_per_token: float = 0.0
    shares_prefixes: bool = False


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
        prompt_tokens: that it reads, or trains on; 0 where no model has a part in it.
        output_tokens: the most that it may generate.
        prefix, prefix_tokens: names the beginning of its prompt that other tasks have too, and
            how much of the prompt that is; empty if none do.
        linger_ms: how long it may wait for others to fill its batch.
        trees: what a machine needs for it beside its key's models, as an adapter.
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
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix: str = ""
    prefix_tokens: int = 0
    linger_ms: int = 0
    trees: tuple[Tree, ...] = ()


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
class Expected:
    """What a batch should take, when it was granted.

    Attributes:
        load_s, fetch_s, exec_s: see `events.BatchTiming`.
        sigma_s: standard deviation of their sum.
        usd, joules: at the worker's price and power, for the whole batch.
        reference_usd: at a full batch's efficiency on the cheapest fitting kind of worker: what
            tenants are charged in virtual time, wherever the policy puts their work.
    """

    load_s: float = 0.0
    fetch_s: float = 0.0
    exec_s: float = 0.0
    sigma_s: float = 0.0
    usd: float = 0.0
    joules: float = 0.0
    reference_usd: float = 0.0

    @property
    def total_s(self) -> float:
        return self.load_s + self.fetch_s + self.exec_s


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one worker to run a batch, for as long as the worker is heard of.

    Attributes:
        checkpoints: for each of the tasks, the tree to go on from, or nothing.
        expected: what the policy expected of it.
        kind: of the worker's device; what is learnt of the batch is kept by it.
        prompt_tokens: that were estimated for it, less what shared prefixes save.
    """

    id: LeaseId
    worker: WorkerId
    batch_key: str
    tasks: tuple[TaskId, ...]
    granted_ms: int
    checkpoints: tuple[str, ...] = ()
    expected: Expected = Expected()
    kind: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A run's share of a lease.

    Attributes:
        tasks: that the run waits for and that have not ended.
        usd: held for them.
        part: of the whole lease, ended tasks included, as a fraction.
        paid_usd: what ended tasks of it have cost the run.
    """

    tasks: int
    usd: float
    part: float = 0.0
    paid_usd: float = 0.0


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
class Quota:
    """What a tenant may use; 0 is no limit.

    Attributes:
        leases: that run its tasks at one time.
        usd_per_day: of UTC days.
        stored_bytes: of what it has put into the store itself.
    """

    leases: int = 0
    usd_per_day: float = 0.0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who owns runs.

    Attributes:
        virtual_usd: reference dollars of work received, divided by weight; the least is served
            next.
        leases: that run tasks which its runs wait for.
        day: UTC days since the epoch, of `day_usd`, which it has spent on that day.
        held_usd: shares of what its leases are expected to cost.
    """

    id: TenantId
    weight: float = 1.0
    virtual_usd: float = 0.0
    open_runs: int = 0
    quota: Quota = Quota()
    leases: int = 0
    day: int = 0
    day_usd: float = 0.0
    held_usd: float = 0.0
