"""JSON bodies on the network, shared by server, worker, client. The core never sees these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowmesh.base.errors import Problem
from flowmesh.core.fleet import MOST_USD_PER_HOUR


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProblemView(Body):
    """One thing wrong with a request; see `base.errors.Problem`."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""

    @classmethod
    def of(cls, problem: Problem) -> "ProblemView":
        return cls(
            message=problem.message,
            file=problem.file,
            line=problem.line,
            column=problem.column,
            path=problem.path,
        )

    def problem(self) -> Problem:
        return Problem(self.message, self.file, self.line, self.column, self.path)


class ErrorBody(Body):
    """An error, as RFC 9457 problem details (`application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    retryable: bool = False
    problems: list[ProblemView] = []


DigestText = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}/\d{1,18}$")]
Amount = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
HourlyPrice = Annotated[float, Field(ge=0, le=MOST_USD_PER_HOUR, allow_inf_nan=False)]
#: What every reader of JSON and the tables can hold.
COUNT_LIMIT = 1 << 53
Count = Annotated[int, Field(ge=0, le=COUNT_LIMIT)]
TaskName = Annotated[str, Field(max_length=100)]


class ArtifactView(Body):
    kind: Literal["table", "file", "tree"]
    digest: DigestText
    rows: Annotated[int, Field(ge=-1, le=COUNT_LIMIT)] = -1
    columns: tuple[str, ...] = ()


ObjectiveName = Literal["balanced", "cost", "latency", "energy"]


class CreateRun(Body):
    """A workflow with everything local resolved: files and models are digests in the store.

    `inputs` holds the artifact of each table and file input, `parameters` the value of each
    plain one that was set, `models` the tree of each entry of the document's `models:`,
    `files` the artifact of each path that the document names (as written there).
    `deadline_s` after the submission, `budget_usd` and `objective` replace the document's.
    """

    document: Annotated[str, Field(max_length=1_000_000)]
    file: str = "workflow.yaml"
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "default"
    key: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]
    inputs: dict[str, ArtifactView] = {}
    parameters: dict[str, Any] = {}
    models: dict[str, ArtifactView] = {}
    files: dict[str, ArtifactView] = {}
    deadline_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
    budget_usd: Annotated[float, Field(gt=0, le=1e9)] | None = None
    objective: ObjectiveName | None = None


class TaskCounts(Body):
    """Distinct tasks of a run: `total` is the sum of the others once the run has settled.

    executed: first asked for by this run and carried out. reused: found in the action
    cache. joined: already in flight for another step or run. failed: ended without result.
    """

    total: int = 0
    executed: int = 0
    reused: int = 0
    joined: int = 0
    failed: int = 0


class ProgressView(Body):
    """How far a long task is, as it said last, at `at_ms`.

    `facts` is what else it tells, as `loss`, `tokens_per_s`, `left_s`. `saved_step` is where it
    would go on after an interruption; 0 for its beginning. `message` tells of trouble.
    """

    step: int
    steps: int
    facts: dict[str, float] = {}
    saved_step: int = 0
    message: str = ""
    at_ms: int = 0


class StepView(Body):
    """A step and its items; the states are drawn in `docs/lifecycle.md`.

    `done` counts distinct tasks that have settled, `rows_refused` rows of which no task
    could be made because a template failed on them. `progress` is that of the one task of a
    running step on whole tables, and where the long task of a cancelled one was stopped: a
    `saved_step` of 0 says that it left no checkpoint. `waits_for` is what no worker has that its
    tasks need.
    """

    step: str
    op: str
    status: str
    items: int = 0
    done: int = 0
    tasks: TaskCounts = TaskCounts()
    rows_refused: int = 0
    message: str = ""
    outputs: dict[str, ArtifactView] = {}
    progress: ProgressView | None = None
    waits_for: str = ""


class RowFailure(Body):
    """A row that failed; with `whole`, the one task of a step on whole tables (`row` is 0)."""

    step: str
    row: int
    sample: int = 0
    kind: str
    message: str
    detail: str = ""
    whole: bool = False


class RunView(Body):
    """A run. `outputs` are the workflow's named outputs, known once it has succeeded.

    `cost_usd` is spent, `held_usd` its share of what runs now; both count against `budget_usd`,
    0 for no limit. `deadline_ms` is 0 for none; `deadline_met` is known once the run has settled
    or is late.
    """

    run: str
    tenant: str
    name: str
    status: Literal["running", "succeeded", "failed", "cancelled"]
    tasks: TaskCounts = TaskCounts()
    batches: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    saved_usd: float = 0.0
    outputs: dict[str, ArtifactView] = {}
    steps: list[StepView] = []
    failures: list[RowFailure] = []
    message: str = ""
    submitted_ms: int = 0
    settled_ms: int | None = None
    budget_usd: float = 0.0
    held_usd: float = 0.0
    deadline_ms: int = 0
    deadline_met: bool | None = None
    objective: str = ""


class TenantView(Body):
    """A tenant: its weight, its quotas (0 is no limit) and what it uses of them.

    `day_usd` is spent on this day, UTC; `held_usd` is its share of what runs now.
    """

    tenant: str
    weight: float = 1.0
    open_runs: int = 0
    leases: int = 0
    leases_limit: int = 0
    day_usd: float = 0.0
    held_usd: float = 0.0
    usd_per_day_limit: float = 0.0
    stored_bytes: int = 0
    stored_bytes_limit: int = 0


class RunPage(Body):
    runs: list[RunView]
    next: str | None = None


class Digests(Body):
    """Digests as text; the answer of `blobs/missing` holds those that the store lacks."""

    digests: Annotated[list[str], Field(max_length=100_000)]


RegisteredName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
ModelKind = Literal["model", "adapter"]


class ModelView(Body):
    """What a tag of a name stands for: `artifact` is the tree of a model's or adapter's files.

    `source` says where it came from, `run` which run made it, if one did; `by` is the tenant
    that named it. A shared name is one that all tenants may use.
    """

    name: RegisteredName
    tag: RegisteredName = "latest"
    kind: ModelKind = "model"
    artifact: ArtifactView
    size_bytes: int = 0
    source: str = ""
    run: str = ""
    shared: bool = False
    by: str = ""
    added_ms: int = 0


class NameModel(Body):
    """What a tag shall stand for from now on.

    `what` is `RUN:OUTPUT`, `NAME[@TAG]` or a tree's digest; `source` says, for people, where
    it came from if not from there.
    """

    what: Annotated[str, Field(min_length=1, max_length=500)]
    tag: RegisteredName = "latest"
    source: Annotated[str, Field(max_length=500)] = ""
    shared: bool = False


class ModelEntry(Body):
    """One entry of a name's history; `digest` is empty where the tag was removed."""

    tag: str
    digest: str = ""
    kind: ModelKind = "model"
    size_bytes: int = 0
    source: str = ""
    run: str = ""
    shared: bool = False
    by: str = ""
    at_ms: int = 0


Measure = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
#: Trees of a worker's cache that it names, the most recent of them.
HOLDS_LIMIT = 50
#: Engines that one worker keeps warm. What a sync says is in the journal, each time.
WARM_LIMIT = 1_000
RuntimeName = Annotated[str, Field(max_length=200)]
BatchKey = Annotated[str, Field(max_length=10_000)]


class DeviceFigures(Body):
    """What a machine can do, as `core.fleet.Device`; 0 for what is not known (yet)."""

    flops_per_s: Measure = 0.0
    bandwidth_bytes_per_s: Measure = 0.0
    memory_bytes: Count = 0
    load_bytes_per_s: Measure = 0.0
    fetch_bytes_per_s: Measure = 0.0
    idle_w: Amount = 0.0
    busy_w: Amount = 0.0


class DeviceBody(DeviceFigures):
    """A worker's machine, by its data sheet or measured; those of one `kind` take equal times.

    Without `|`, which parts it from the batch key in what is learnt of both.
    """

    kind: Annotated[str, Field(max_length=200, pattern=r"^[^|]*$")] = ""


class WorkerInfo(Body):
    """What a worker is and offers; sent whole with every sync.

    `place` is a region or site, `instance` the rented machine it runs on, `holds` the newest
    trees in its cache.
    """

    worker: Annotated[str, Field(min_length=1, max_length=200)]
    host: str
    runtimes: Annotated[tuple[RuntimeName, ...], Field(max_length=100)]
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    threads: int = 1
    memory_bytes: Count = 0
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    usd_per_hour: HourlyPrice = 0.0
    #: Batch keys whose engine is warm.
    warm: Annotated[tuple[BatchKey, ...], Field(max_length=WARM_LIMIT)] = ()
    version: str = ""
    device: DeviceBody = DeviceBody()
    place: Annotated[str, Field(max_length=200)] = ""
    holds: Annotated[tuple[DigestText, ...], Field(max_length=HOLDS_LIMIT)] = ()
    instance: Annotated[str, Field(max_length=200)] = ""
    interruptions_per_hour: Amount = 0.0


class WorkerView(WorkerInfo):
    heard_ms: int
    leases: list[int] = []
    running: int = 0


class BatchReport(Body):
    """What a whole batch took, as `core.events.BatchTiming`."""

    tasks: Annotated[int, Field(ge=1, le=COUNT_LIMIT)]
    fetch_s: Amount = 0.0
    fetch_bytes: Count = 0
    load_s: Amount = 0.0
    load_bytes: Count = 0
    exec_s: Amount = 0.0
    prompt_tokens: Count = 0
    decode_steps: Count = 0
    output_tokens: Count = 0
    work: Measure = 0.0
    joules: Measure = 0.0
    cpu_s: Amount = 0.0


class TaskReport(Body):
    """How one task of a lease ended: `result` is `spec.action.Result.encode()`, or a failure.

    `seconds` are those that a failed attempt took; a result says so itself. `missing` is the
    digest of an input that the store could not give. `batch` comes with the last report of what
    was executed together.
    """

    lease: Count
    task: TaskName
    result: str | None = None
    kind: Literal["", "input", "transient", "memory", "internal", "crash"] = ""
    message: str = ""
    detail: str = ""
    seconds: Amount = 0.0
    missing: Literal[""] | DigestText = ""
    batch: BatchReport | None = None


Fact = Annotated[float, Field(allow_inf_nan=False)]
FactName = Annotated[str, Field(max_length=64)]
FACTS_LIMIT = 32


class TaskProgress(Body):
    """How far a task of a lease is; with `checkpoint`, from where it can go on.

    A checkpoint is the digest of a tree that is in the store with all of its files. `message`
    tells of trouble that does not end the task.
    """

    lease: Count
    task: TaskName
    step: Count
    steps: Count = 0
    facts: Annotated[dict[FactName, Fact], Field(max_length=FACTS_LIMIT)] = {}
    checkpoint: Literal[""] | DigestText = ""
    message: Annotated[str, Field(max_length=1000)] = ""


class SyncRequest(Body):
    """A worker's whole state: what it is, what it runs, what it has finished.

    Reports are repeated until `SyncAnswer.settled` names them, checkpoints until
    `SyncAnswer.saved` does; other progress may be lost. A `draining` worker takes no new
    leases, `leaving` gives all leases back at once. `wait_ms` lets the server hold its answer
    until there is news.
    """

    info: WorkerInfo
    running: list[int] = []
    reports: list[TaskReport] = []
    progress: Annotated[list[TaskProgress], Field(max_length=10_000)] = []
    draining: bool = False
    leaving: bool = False
    wait_ms: Annotated[int, Field(ge=0, le=60_000)] = 0


class LeaseTask(Body):
    """One task of a lease: its action document is line `line` of the blob `pack`.

    `checkpoint` is the tree to go on from, if an earlier attempt left one. `work` is what the
    server takes it to be, in units of its batch key.
    """

    task: str
    pack: str
    line: int
    work: float = 0.0
    checkpoint: Literal[""] | DigestText = ""


class LeaseBody(Body):
    lease: int
    batch_key: str
    op: str
    tasks: list[LeaseTask]


class LeaseStop(Body):
    """A lease that is over, whose work may leave a checkpoint within `within_ms`."""

    lease: int
    within_ms: int


class SyncAnswer(Body):
    """All that the worker should be running: what is not listed here it stops.

    `settled` are the (lease, task) pairs of reports that are durable now, or that nobody
    wants: the worker forgets them. `saved` are those of checkpoints, with their digests.
    `stopping` are leases that are stopped with time to leave a checkpoint.
    """

    leases: list[LeaseBody] = []
    settled: list[tuple[int, str]] = []
    saved: list[tuple[int, str, str]] = []
    stopping: list[LeaseStop] = []


class StoreReport(Body):
    """What `store verify` or `store gc` found or did."""

    blobs: int
    size_bytes: int
    bad: list[str] = []
    removed: list[str] = []
    removed_bytes: int = 0
    dry_run: bool = False


class LineageNode(Body):
    """An artifact or a row, the task or step that made it, and what that was made from (or for).

    `children` are its parents when asked upwards, its users when asked downwards. `used_as` is
    the port through which the node above reads it (upwards). `again`: what it was made from is
    told at another node of this answer. `cut`: there is more, beyond the limits of an answer.
    """

    label: str
    kind: Literal["artifact", "row", "input", "model", "file"]
    digest: str = ""
    run: str = ""
    step: str = ""
    port: str = ""
    row: int | None = None
    task: str = ""
    used_as: str = ""
    facts: dict[str, Any] = {}
    children: list["LineageNode"] = []
    again: bool = False
    cut: bool = False
