"""JSON bodies of forecasts and explanations: what a run should take, and why it went as it did.

Money in USD, energy in joules, times in seconds or milliseconds since the epoch, as the names
of the fields say.
"""

from typing import Annotated, Literal

from pydantic import Field

from flowmesh.wire import Body, CreateRun, DeviceFigures, HourlyPrice, TaskCounts

#: Offers of one request.
OFFERS_LIMIT = 100
#: Machines of one offer that a plan looks at.
MACHINES_LIMIT = 256


class OfferBody(DeviceFigures):
    """A machine that could be had, as a plan is asked about it.

    `device` is a kind of the built-in data sheets, or any name where the figures are given; a
    figure that is given counts for more than the data sheet's. Without `runtimes` it runs all.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    device: Annotated[str, Field(max_length=100)] = ""
    usd_per_hour: HourlyPrice = 0.0
    startup_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60.0
    count: Annotated[int, Field(ge=1, le=MACHINES_LIMIT)] = 1
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    runtimes: tuple[str, ...] = ()


class PlanRequest(CreateRun):
    """A run that is not to be started, and machines to plan it on besides today's fleet."""

    offers: Annotated[list[OfferBody], Field(max_length=OFFERS_LIMIT, default_factory=list)]


class Interval(Body):
    """A forecast: in 8 of 10 cases the truth should be from `low` to `high`."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0


class StepPlan(Body):
    """What a step should take on one fleet.

    `seconds` are those of workers, `start_s` and `end_s` count from the run's start. `where`
    counts batches by worker or offer, `why_not` the places that cannot run it by reason.
    """

    step: str
    batches: int = 0
    seconds: Interval = Interval()
    usd: Interval = Interval()
    joules: Interval = Interval()
    start_s: float = 0.0
    end_s: float = 0.0
    where: dict[str, int] = Field(default_factory=dict)
    why_not: dict[str, int] = Field(default_factory=dict)
    impossible: bool = False


class FleetPlan(Body):
    """A run on one fleet: the workers there are, or the offers that were given.

    `seconds` is the run's duration. `startup_usd` is in `usd`: what machines cost until they
    take work. `verdicts` say what would go wrong: nobody runs a step, a budget or a deadline
    would be exceeded.
    """

    fleet: Literal["today", "offers"]
    places: int = 0
    feasible: bool = True
    batches: int = 0
    seconds: Interval = Interval()
    usd: Interval = Interval()
    joules: Interval = Interval()
    startup_usd: float = 0.0
    steps: list[StepPlan] = Field(default_factory=list)
    verdicts: list[str] = Field(default_factory=list)


#: How the tasks of a step are known. `exact`: made from its real input and looked up;
#: `sampled`: so for some of its rows; `learnt`: by what earlier runs' steps came to;
#: `shape`: by the shape of the workflow alone.
Basis = Literal["exact", "sampled", "learnt", "shape"]


class StepTasks(Body):
    """The tasks of a step, foreseen: `executed` are those that nobody has done yet.

    Of these, `unsure` may turn out to be done already: their inputs do not exist yet.
    """

    step: str
    op: str
    basis: Basis = "exact"
    items: int = 0
    tasks: int = 0
    reused: int = 0
    executed: int = 0
    unsure: int = 0
    skipped: bool = False
    message: str = ""


class PlanView(Body):
    """What a run would do and take. `saved_usd` is what the results that it reuses had cost.

    Of `executed`, `unsure` may turn out to be done already.
    """

    name: str
    tasks: int = 0
    reused: int = 0
    executed: int = 0
    unsure: int = 0
    saved_usd: float = 0.0
    steps: list[StepTasks] = Field(default_factory=list)
    fleets: list[FleetPlan] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    made_ms: int = 0


class StepOutcome(Body):
    """What a step took: its share of the batches that ran its tasks. `seconds` of workers."""

    step: str
    status: str
    tasks: TaskCounts = TaskCounts()
    batches: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    joules: float = 0.0


class RunPlan(Body):
    """A run's forecast, made when it was submitted, beside what came of it.

    `plan` is missing where none was made, or not yet.
    """

    run: str
    status: str
    plan: PlanView | None = None
    steps: list[StepOutcome] = Field(default_factory=list)
    batches: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    joules: float = 0.0


class ScoreView(Body):
    """A utility by its terms, in USD, and the seconds that it reckoned with; see `Score`."""

    value: float = 0.0
    path: float = 0.0
    urgency: float = 0.0
    fairness: float = 0.0
    cost: float = 0.0
    egress: float = 0.0
    energy: float = 0.0
    risk: float = 0.0
    usd: float = 0.0
    wait_s: float = 0.0
    load_s: float = 0.0
    fetch_s: float = 0.0
    exec_s: float = 0.0
    seconds: float = 0.0


class OptionView(Body):
    """One place and batch size that was weighed; `words` hold it against what was chosen."""

    place: str
    kind: str = ""
    batch: int = 0
    score: ScoreView = ScoreView()
    words: str = ""


class Took(Body):
    """What a batch should take, or took."""

    load_s: float = 0.0
    fetch_s: float = 0.0
    exec_s: float = 0.0
    usd: float = 0.0
    joules: float = 0.0


class AttemptView(Body):
    """A failed attempt at a task."""

    lease: int
    kind: str
    message: str
    at_ms: int


class TaskExplanation(Body):
    """Why a task ran, or is to run, where and when it does.

    `relation` is how the run that was asked about came by it: executed, joined, reused,
    open, failed or cancelled.
    `sampled`: the decision itself was kept, so `others` and `why_not` are known. `usd` is the
    task's part in its batch, `share_usd` the run's share of that. `words` tell all of it.
    """

    task: str
    op: str = ""
    batch_key: str = ""
    status: str = ""
    relation: str = ""
    run: str = ""
    step: str = ""
    row: int | None = None
    ready_ms: int | None = None
    granted_ms: int | None = None
    ended_ms: int | None = None
    waited_s: float | None = None
    lease: int | None = None
    worker: str = ""
    kind: str = ""
    batch: int = 0
    score: ScoreView | None = None
    expected: Took | None = None
    measured: Took | None = None
    usd: float = 0.0
    share_usd: float = 0.0
    saved_usd: float = 0.0
    runs: list[str] = Field(default_factory=list)
    other_tenants: int = 0
    attempts: list[AttemptView] = Field(default_factory=list)
    sampled: bool = False
    others: list[OptionView] = Field(default_factory=list)
    why_not: dict[str, int] = Field(default_factory=dict)
    waits_for: str = ""
    words: list[str] = Field(default_factory=list)


class StepExplanation(Body):
    """One step of a run: where its batches went and what it waited for."""

    step: str
    op: str
    status: str
    tasks: TaskCounts = TaskCounts()
    batches: int = 0
    where: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    usd: float = 0.0
    wait_s: float = 0.0
    waits_for: str = ""
    words: str = ""


class RunExplanation(Body):
    """A run by steps, and the reasons that weighed most in the decisions about it."""

    run: str
    status: str
    steps: list[StepExplanation] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)
    decisions: int = 0
    sampled: int = 0


class EstimateView(Body):
    """What was learnt of batches of one key on one kind of device.

    `seconds` are by feature: a `batch` for itself, a `prompt token`, a `decode step` (in which
    every row writes a token), an `output token`, a `unit of work`. `error` is the mean absolute
    percentage error of what was foretold of each batch before it ran, as a fraction, and `sigma`
    the relative standard deviation that is reckoned with. `rate_1` and `rate_full` are `rows` or
    `tokens` (`rate_unit`) a second with one row and with `rows_full`, which run at once; `watts`
    the mean power while executing; `load_s` is for a cold engine. `operator` is `name@version`,
    empty if no step of it was expanded since the state began. `tokens_ratio` is how many prompt
    tokens engines read for each that the server had estimated.
    """

    batch_key: str
    operator: str
    kind: str
    seconds: dict[str, float]
    seen: int
    error: float
    sigma: float
    rate_unit: str
    rate_1: float
    rate_full: float
    rows_full: int
    watts: float
    load_s: float
    tokens_ratio: float = 1.0
