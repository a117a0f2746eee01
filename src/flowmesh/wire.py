"""JSON bodies on the network, shared by server, worker, client. The core never sees these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowmesh.base.errors import Problem


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


class ArtifactView(Body):
    kind: Literal["table", "file", "tree"]
    digest: DigestText
    rows: int = -1
    columns: tuple[str, ...] = ()


class CreateRun(Body):
    """A workflow with everything local resolved: files and models are digests in the store.

    `inputs` holds the artifact of each table and file input, `parameters` the value of each
    plain one that was set, `models` the tree of each entry of the document's `models:`,
    `files` the artifact of each path that the document names (as written there).
    """

    document: Annotated[str, Field(max_length=1_000_000)]
    file: str = "workflow.yaml"
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "default"
    key: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._-]+$")]
    inputs: dict[str, ArtifactView] = {}
    parameters: dict[str, Any] = {}
    models: dict[str, ArtifactView] = {}
    files: dict[str, ArtifactView] = {}


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


class StepView(Body):
    """A step and its items; the states are drawn in `docs/lifecycle.md`.

    `done` counts distinct tasks that have settled, `rows_refused` rows of which no task
    could be made because a template failed on them.
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


class RowFailure(Body):
    step: str
    row: int
    sample: int = 0
    kind: str
    message: str
    detail: str = ""


class RunView(Body):
    """A run. `outputs` are the workflow's named outputs, known once it has succeeded."""

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


class RunPage(Body):
    runs: list[RunView]
    next: str | None = None


class Digests(Body):
    """Digests as text; the answer of `blobs/missing` holds those that the store lacks."""

    digests: Annotated[list[str], Field(max_length=100_000)]


class ModelView(Body):
    """A model by name: `artifact` is the tree of its files."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    artifact: ArtifactView
    source: str = ""
    added_ms: int = 0


class WorkerInfo(Body):
    """What a worker is and offers; sent whole with every sync."""

    worker: str
    host: str
    runtimes: tuple[str, ...]
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    threads: int = 1
    memory_bytes: int = 0
    usd_per_hour: Amount = 0.0
    #: Batch keys whose engine is warm.
    warm: tuple[str, ...] = ()
    version: str = ""


class WorkerView(WorkerInfo):
    heard_ms: int
    leases: list[int] = []
    running: int = 0


class TaskReport(Body):
    """How one task of a lease ended: `result` is `spec.action.Result.encode()`, or a failure.

    `seconds` are those that a failed attempt took; a result says so itself. `missing` is the
    digest of an input that the store could not give.
    """

    lease: int
    task: str
    result: str | None = None
    kind: Literal["", "input", "transient", "memory", "internal", "crash"] = ""
    message: str = ""
    detail: str = ""
    seconds: Amount = 0.0
    missing: Literal[""] | DigestText = ""


class SyncRequest(Body):
    """A worker's whole state: what it is, what it runs, what it has finished.

    Reports are repeated until `SyncAnswer.settled` names them. `leaving` gives all leases
    back at once. `wait_ms` lets the server hold its answer until there is news.
    """

    info: WorkerInfo
    running: list[int] = []
    reports: list[TaskReport] = []
    leaving: bool = False
    wait_ms: Annotated[int, Field(ge=0, le=60_000)] = 0


class LeaseTask(Body):
    """One task of a lease: its action document is line `line` of the blob `pack`."""

    task: str
    pack: str
    line: int


class LeaseBody(Body):
    lease: int
    batch_key: str
    op: str
    tasks: list[LeaseTask]


class SyncAnswer(Body):
    """All that the worker should be running: what is not listed here it stops.

    `settled` are the (lease, task) pairs of reports that are durable now, or that nobody
    wants: the worker forgets them.
    """

    leases: list[LeaseBody] = []
    settled: list[tuple[int, str]] = []


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

    `children` are its parents when asked upwards, its users when asked downwards.
    """

    label: str
    kind: Literal["artifact", "row", "input", "model", "file"]
    digest: str = ""
    run: str = ""
    step: str = ""
    port: str = ""
    row: int | None = None
    task: str = ""
    facts: dict[str, Any] = {}
    children: list["LineageNode"] = []
    cut: bool = False
