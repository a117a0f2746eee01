"""Scenario files: who asks for what, on which machines, at what price, with what mishaps.

`docs/simulator.md` tells of every key. Files of traces, prices and profiles are named by path:
as it stands, beside the scenario's own file, or in `$FLOWMESH_DATA`.
"""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Positions, read
from flowmesh.spec.messages import by_path, in_words

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    """Strict: an unknown key or a value of the wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Lengths(Part):
    """Tokens, lognormal: `median`, `sigma` of the logarithm; `limit` cuts it off, to none if 0."""

    median: Positive
    sigma: AtLeastZero = 0.0
    limit: Annotated[int, Field(ge=0)] = 8192


class StepTemplate(Part):
    """A step of a workflow template.

    Attributes:
        kind: `generate` (an engine), `train` (one task of many tokens), `tool` (no model).
        rows: of a step that stands first; else `per_row` for each row of the first in `after`.
        prefix: tokens that all rows begin with: of the template's text, so that the runs of all
            tenants share it, of the `step`'s own, or growing as in `conversation`s.
        lengths: `azure` takes prompt and output as in that trace, in place of `prompt` and
            `output`.
        own_rows: `rows` holds, though steps stand before it.
        trains: all weights, or an adapter; which settles the memory that it takes.
        tokens: that are trained on, a row; times `epochs`.
        flops_per_parameter: of a trained token: 6 for all weights, 4 for an adapter's.
        adapter: it runs with an adapter that a step before it has trained.
        own: probability that a run from the common pool has settings of its own from here on.
        work: seconds of a row on one core of the reference machine, of a `tool`.
    """

    name: str
    kind: Literal["generate", "train", "tool"] = "generate"
    after: tuple[str, ...] = ()
    operator: str = ""
    model: str = ""
    rows: Count = 1
    per_row: Positive = 1.0
    prompt: Lengths = Lengths(median=512)
    output: Lengths = Lengths(median=128)
    prefix: Annotated[int, Field(ge=0)] = 0
    prefix_of: Literal["step", "template", "conversation"] = "template"
    lengths: Literal["own", "azure"] = "own"
    own_rows: bool = False
    trains: Literal["adapter", "all"] = "adapter"
    tokens: Positive = 512.0
    epochs: Positive = 1.0
    flops_per_parameter: Positive = 6.0
    adapter: bool = False
    own: Share = 0.0
    work: AtLeastZero = 1.0
    max_batch: Count | None = None
    linger_ms: Annotated[int, Field(ge=0)] = 0


class Template(Part):
    """A workflow. `typical_s` is what a deadline's slack is multiplied with.

    `pool`: entries of the common pool, in place of the scenario's.
    """

    steps: Annotated[tuple[StepTemplate, ...], Field(min_length=1)]
    typical_s: Positive = 1800.0
    pool: Count | None = None
    priority: int = 0
    source: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> "Template":
        seen: list[str] = []
        for step in self.steps:
            for before in step.after:
                if before not in seen:
                    raise ValueError(f"step {step.name!r} comes after {before!r}, which is not")
            seen.append(step.name)
        if len(dict.fromkeys(seen)) < len(seen):
            raise ValueError("two steps have one name")
        return self


class TenantSpec(Part):
    """`mix` is in place of the scenario's; `rate` is its share of the runs, beside others."""

    name: str
    weight: Positive = 1.0
    rate: Positive = 1.0
    mix: dict[str, Positive] = {}


class Arrivals(Part):
    """When runs are submitted.

    `source`: `fitted` (gamma renewal, burstiness by tenant), `poisson`, `even`, `at-once`, or
    a trace by its name: `azure`, `servegen`, `gavel`; or a file of one second count a line.
    `cv` is in place of the burstiness that was fitted.
    """

    source: str = "fitted"
    cv: Positive | None = None


class Given(Part):
    """A run that is submitted for certain, beside those that are drawn."""

    at_s: AtLeastZero = 0.0
    tenant: str
    template: str


class Deadlines(Part):
    """`share` of runs have one: `slack` times what their workflow typically takes."""

    share: Share = 0.0
    slack: Positive = 2.0


class Machines(Part):
    """A part of a fixed fleet. `price`: see `Market.price`; or `usd_per_hour`, of a machine."""

    kind: str
    count: Count = 1
    gpus: Count = 1
    usd_per_hour: AtLeastZero | None = None
    price: Literal["on_demand", "marketplace", "spot"] = "on_demand"
    place: str = "home"
    slots: Count = 1


class Limits(Part):
    """Of renting, as in `core.scale.FleetLimits`; what is not given is as there."""

    min_instances: Annotated[int, Field(ge=0)] = 0
    max_instances: Count = 64
    usd_per_hour: AtLeastZero = 0.0
    margin: AtLeastZero | None = None
    horizon_s: Positive | None = None
    quiet_s: AtLeastZero | None = None
    haste: AtLeastZero | None = None


class Market(Part):
    """What can be rented.

    Attributes:
        kinds: of machines, as `H100`, `4xA100-80`; all of the table if none is named.
        price: kinds of offers: on-demand, of a marketplace, spot.
        available: machines of each offer.
        startup_s: the least and the most that a machine takes to start.
        failures: share of launches that come to nothing.
    """

    kinds: tuple[str, ...] = ()
    price: tuple[Literal["on_demand", "marketplace", "spot"], ...] = ("on_demand",)
    places: tuple[str, ...] = ("home",)
    available: Count = 16
    startup_s: tuple[Positive, Positive] = (60.0, 180.0)
    billing_s: Positive = 1.0
    failures: Share = 0.0
    limits: Limits = Limits()


class Interruptions(Part):
    """Machines that are taken away: spot ones, or where there are none, all of a fixed fleet.

    Attributes:
        source: `none`, `poisson`, `bamboo` (its trace, played over and over), or a file.
        per_hour: over `machines` machines, of `poisson`.
        notice_s: before a machine goes; 0 for none.
        back_s: until a fixed fleet has another in its place, in the mean.
    """

    source: str = "none"
    per_hour: AtLeastZero = 7.0
    machines: Count = 32
    notice_s: AtLeastZero = 0.0
    back_s: Positive = 300.0


class Place(Part):
    """A region. `gbit_per_s` is of one machine to the store; egress is paid on leaving it."""

    gbit_per_s: Positive = 10.0
    egress_usd_per_gb: AtLeastZero = 0.0


class Network(Part):
    store: str = "home"
    places: dict[str, Place] = {"home": Place()}


class DeviceSpec(Part):
    """A device by measured coefficients, in place of a profile.

    Attributes:
        fixed_s: of a batch. prompt_s, output_s: of a token. step_s: of one decode step.
        work_s: of a unit of work.
        load_s: of a cold engine.
        concurrency: rows of a batch that decode at one time; all if 0.
        engines: that stay loaded at one time.
        by: other values for single operators: `generate`, or `generate@1:model`.
    """

    fixed_s: AtLeastZero = 0.0
    prompt_s: AtLeastZero = 0.0
    step_s: AtLeastZero = 0.0
    output_s: AtLeastZero = 0.0
    work_s: AtLeastZero = 0.0
    load_s: AtLeastZero = 0.0
    concurrency: Annotated[int, Field(ge=0)] = 0
    engines: Count = 1
    flops_per_s: AtLeastZero = 0.0
    bandwidth_bytes_per_s: AtLeastZero = 0.0
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    idle_w: AtLeastZero = 0.0
    busy_w: AtLeastZero = 0.0
    usd_per_hour: AtLeastZero = 0.0
    by: dict[str, dict[str, AtLeastZero]] = {}


class Files(Part):
    """In place of the tables that are built in, or of those in `$FLOWMESH_DATA`."""

    prices: str | None = None
    arrivals: str | None = None
    profiles: str | None = None


class Scenario(Part):
    """A whole scenario; see the attributes of its parts.

    Attributes:
        duration_s: in which runs are submitted.
        runs: that are submitted in it, by all tenants; times `load`.
        overlap: probability that a run is drawn from a pool that is common to all tenants, of
            `pool` entries for each template, and not of its tenant's own making.
        rows: multiplies the rows of every step.
        templates: workflows beside those that are shipped; see `templates.yaml`.
        noise: sigma of the logarithm of what a batch takes.
        limit_s: the simulation ends so long after the last submission, whatever is open.
        tick_s: while nothing happens, policies are asked no more often than this, whenever they
            want to be: simulations of long hours take less time.
        check_every: events between checks of the core's invariants; 0 for none.
    """

    name: str
    about: str = ""
    duration_s: Positive = 3600.0
    runs: Annotated[int, Field(ge=0)] = 100
    load: Positive = 1.0
    tenants: Count | tuple[TenantSpec, ...] = 12
    mix: Annotated[dict[str, Positive], Field(min_length=1)]
    overlap: Share = 0.5
    pool: Count = 3
    rows: Positive = 1.0
    given: tuple[Given, ...] = ()
    templates: dict[str, Template] = {}
    arrivals: Arrivals = Arrivals()
    deadlines: Deadlines = Deadlines()
    fleet: tuple[Machines, ...] = ()
    market: Market | None = None
    interruptions: Interruptions = Interruptions()
    network: Network = Network()
    devices: dict[str, DeviceSpec] = {}
    objective: str = "balanced"
    weights: dict[str, float] = {}
    knobs: dict[str, bool | float] = {}
    files: Files = Files()
    noise: AtLeastZero = 0.05
    limit_s: Positive = 7 * 86_400.0
    tick_s: AtLeastZero = 0.0
    check_every: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_machines(self) -> "Scenario":
        if not self.fleet and self.market is None:
            raise ValueError("there is neither `fleet` nor `market`: nothing could ever run")
        if not self.runs and not self.given:
            raise ValueError("there are neither `runs` nor `given` ones: nothing would run")
        return self

    def with_files(
        self, prices: str | None = None, arrivals: str | None = None, profiles: str | None = None
    ) -> "Scenario":
        """The same scenario on other tables."""
        given = {"prices": prices, "arrivals": arrivals, "profiles": profiles}
        named = {name: value for name, value in given.items() if value is not None}
        return self.model_copy(update={"files": self.files.model_copy(update=named)})


def shipped() -> list[str]:
    """Names of the scenarios that come with FlowMesh."""
    folder = files("flowmesh.sim") / "scenarios"
    found = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def load_scenario(
    path_or_name: str | Path,
    prices: str | None = None,
    arrivals: str | None = None,
    profiles: str | None = None,
) -> Scenario:
    """A scenario from a file, or one that is shipped, by its name.

    Raises SpecError, with lines, if it is not one.
    """
    text, name = _text_of(path_or_name)
    data, positions = read(text, name)
    if not isinstance(data, dict):
        raise SpecError(positions.problem("a scenario is a mapping of keys to values"))
    data.setdefault("name", Path(name).stem)
    unknown = list(_unknown_templates(data, positions))
    try:
        scenario = parse(Scenario, data, positions)
    except SpecError as error:
        raise SpecError(*_in_order([*error.problems, *unknown])) from None
    if unknown:
        raise SpecError(*_in_order(unknown))
    return scenario.with_files(prices, arrivals, profiles)


def _unknown_templates(data: dict[str, Any], positions: Positions) -> Iterator[Problem]:
    """Names of templates that nobody has, wherever a scenario names one; of unchecked data."""
    own: Any = data.get("templates")
    source = files("flowmesh.sim") / "templates.yaml"
    templates: Any = read(source.read_bytes(), "templates.yaml")[0]
    known = [*templates, *(own if _is_dict(own) else ())]
    named: list[tuple[Any, tuple[str | int, ...]]] = []
    mixes: list[tuple[Any, tuple[str | int, ...]]] = [(data.get("mix"), ("mix",))]
    for number, one in _each(data.get("tenants")):
        mixes.append((one.get("mix"), ("tenants", number, "mix")))
    for mix, path in mixes:
        named += [(name, (*path, name)) for name in (mix if _is_dict(mix) else ())]
    for number, one in _each(data.get("given")):
        named.append((one.get("template"), ("given", number, "template")))
    for name, path in named:
        if isinstance(name, str) and name not in known:
            yield positions.problem(f"there is no template {name!r}{nearest(name, known)}", *path)


def _is_dict(data: Any) -> bool:
    return isinstance(data, dict)


def _each(data: Any) -> list[tuple[int, dict[str, Any]]]:
    listed = data if isinstance(data, list) else []
    return [(number, one) for number, one in enumerate(listed) if isinstance(one, dict)]


def _in_order(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda one: (one.line, one.column))


def _text_of(path_or_name: str | Path) -> tuple[bytes, str]:
    path = Path(path_or_name)
    if path.is_file():
        return path.read_bytes(), str(path)
    if str(path_or_name) not in shipped():
        guess = nearest(str(path_or_name), shipped())
        message = f"there is no scenario {str(path_or_name)!r}, neither a file nor a shipped one"
        raise SpecError(Problem(message + guess))
    entry = files("flowmesh.sim") / "scenarios" / f"{path_or_name}.yaml"
    return entry.read_bytes(), f"{path_or_name}.yaml"


def parse(model: type[Model], data: Any, positions: Positions) -> Model:
    """Checked data. Raises SpecError with a line for every problem found."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        found: list[Problem] = []
        for path, errors in by_path(data, error.errors(include_url=False)).items():
            for one in errors:
                if one["type"] == "extra_forbidden":
                    found.append(positions.problem(f"unknown key {path[-1]!r}", *path))
                elif one["type"] == "missing":
                    message = f"key {str(one['loc'][-1])!r} is missing"
                    found.append(positions.problem(message, *path))
            others = [e for e in errors if e["type"] not in ("extra_forbidden", "missing")]
            if others:
                found.append(positions.problem(in_words(others), *path))
        raise SpecError(*_in_order(found)) from None
