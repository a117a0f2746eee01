"""Who submits which run, and when: drawn from a scenario and a seed, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.ids import RunId, TenantId
from flowmesh.base.nearest import nearest
from flowmesh.sim import data, fitted
from flowmesh.sim.scenario import Scenario, Template, TenantSpec
from flowmesh.sim.workflows import Library, templates

Floats = npt.NDArray[np.float64]

#: Streams of chance that must not disturb each other.
ARRIVALS, CHOICES = 1, 2


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """`upstream` are positions in the run's steps."""

    name: str
    fingerprint: str
    upstream: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """A run to come. `deadline_ms` is 0 if it has none."""

    at_ms: int
    run: RunId
    tenant: TenantId
    weight: float
    priority: int
    template: str
    steps: tuple[PlannedStep, ...]
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be submitted, in order of time; and which data it was drawn from."""

    submissions: tuple[Submission, ...]
    library: Library
    sources: dict[str, str]


def stream(seed: int, number: int) -> np.random.Generator:
    """An independent stream of chance."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))


def planned(scenario: Scenario, seed: int) -> Plan:
    """What the tenants of a scenario will submit. Raises SpecError for unknown names."""
    known = {**templates(), **scenario.templates}
    tenants = _tenants(scenario)
    drawn = [name for one in tenants for name in (one.mix or scenario.mix)]
    for name in dict.fromkeys([*drawn, *(one.template for one in scenario.given)]):
        if name not in known:
            raise SpecError(Problem(f"there is no template {name!r}{nearest(name, known)}"))
    azure = data.find(data.AZURE)
    lengths = data.azure(azure)[1] if azure is not None else None
    library = Library(scenario.rows, lengths)
    sources = {"lengths": "traces" if azure is not None else "fitted"}
    times, owners = _arrivals(scenario, tenants, stream(seed, ARRIVALS), sources)
    rng = stream(seed, CHOICES)
    wishes = [
        (one.at_s, TenantSpec(name=one.tenant, mix={one.template: 1.0})) for one in scenario.given
    ]
    wishes += [(float(at), tenants[owner]) for at, owner in zip(times, owners, strict=True)]
    wishes.sort(key=lambda wish: wish[0])
    submissions = [
        _submission(scenario, known, library, rng, (number, at_s, tenant))
        for number, (at_s, tenant) in enumerate(wishes)
    ]
    return Plan(tuple(submissions), library, sources)


def _tenants(scenario: Scenario) -> tuple[TenantSpec, ...]:
    if isinstance(scenario.tenants, int):
        width = len(str(scenario.tenants - 1))
        return tuple(TenantSpec(name=f"t{n:0{width}}") for n in range(scenario.tenants))
    return scenario.tenants


def _arrivals(
    scenario: Scenario,
    tenants: tuple[TenantSpec, ...],
    rng: np.random.Generator,
    sources: dict[str, str],
) -> tuple[Floats, list[int]]:
    """Times in seconds, and whose run it is."""
    if not scenario.runs:
        return np.zeros(0), []
    total = max(1, round(scenario.runs * scenario.load))
    source = scenario.files.arrivals or scenario.arrivals.source
    weights = fitted.shares([one.rate for one in tenants])
    sources["arrivals"] = "fitted"
    if source in ("fitted", "poisson", "even", "at-once"):
        return _made_up(scenario, source, weights, rng, total)
    if source == "servegen" and (path := data.find(data.SERVEGEN)) is not None:
        sources["arrivals"] = "traces"
        clients = list(data.servegen(path).values())
        picked = [clients[int(n)] for n in rng.integers(0, len(clients), len(tenants))]
        weights = fitted.shares([rate * w for (rate, _), w in zip(picked, weights, strict=True)])
        return _renewals(scenario, weights, [cv for _, cv in picked], rng, total)
    times = _played(source, scenario, total, rng, sources)
    if times is None:
        return _made_up(scenario, "fitted", weights, rng, total)
    return times, rng.choice(len(tenants), total, p=weights).tolist()


def _played(
    source: str, scenario: Scenario, total: int, rng: np.random.Generator, sources: dict[str, str]
) -> Floats | None:
    """`total` times of a trace from a place of it that chance settles, at the scenario's pace.

    None if it is a trace that we know and do not have.
    """
    defaults = {"azure": data.AZURE, "gavel": data.GAVEL, "servegen": data.SERVEGEN}
    path = data.find(defaults[source]) if source in defaults else data.given(source)
    if path is None:
        return None
    sources["arrivals"] = "traces"
    if source == "azure":
        all_times = data.azure(path)[0]
    else:
        all_times = data.gavel(path) if source == "gavel" else data.seconds(path)
    if len(all_times) > total:
        start = int(rng.integers(0, len(all_times) - total + 1))
        chosen = all_times[start : start + total]
    else:
        chosen = np.sort(rng.choice(all_times, total))
    span = max(float(chosen[-1] - chosen[0]), 1e-9)
    return np.asarray((chosen - chosen[0]) / span * scenario.duration_s)


def _made_up(
    scenario: Scenario, source: str, weights: Floats, rng: np.random.Generator, total: int
) -> tuple[Floats, list[int]]:
    count = len(weights)
    if source in ("even", "at-once"):
        step = scenario.duration_s / total if source == "even" else 0.0
        return np.asarray(np.arange(total) * step), [n % count for n in range(total)]
    if source == "poisson":
        times = np.asarray(np.sort(rng.random(total)) * scenario.duration_s)
        return times, rng.choice(count, total, p=weights).tolist()
    cv = scenario.arrivals.cv
    each = np.full(count, cv) if cv is not None else fitted.burstiness(rng, count)
    # Tenants of one deployment are less unlike than customers of a cloud: half the sigma.
    uneven = fitted.rates(rng, count, fitted.SERVEGEN_RATE_SIGMA / 2)
    return _renewals(scenario, fitted.shares(weights * uneven), each.tolist(), rng, total)


def _renewals(
    scenario: Scenario, weights: Floats, cvs: list[float], rng: np.random.Generator, total: int
) -> tuple[Floats, list[int]]:
    counts = rng.multinomial(total, weights)
    times = [
        fitted.renewal(rng, int(count), scenario.duration_s, cv)
        for count, cv in zip(counts, cvs, strict=True)
    ]
    owners = [n for n, count in enumerate(counts) for _ in range(int(count))]
    return np.concatenate(times), owners


def _submission(
    scenario: Scenario,
    known: Mapping[str, Template],
    library: Library,
    rng: np.random.Generator,
    who: tuple[int, float, TenantSpec],
) -> Submission:
    number, at_s, tenant = who
    mix = tenant.mix or scenario.mix
    names = sorted(mix)
    name = names[int(rng.choice(len(names), p=fitted.shares([mix[one] for one in names])))]
    template = known[name]
    run = RunId(f"r{number}")
    common, entry, dice = (
        rng.random(),
        int(rng.integers(template.pool or scenario.pool)),
        rng.random(),
    )
    settings = f"pool {entry}" if common < scenario.overlap else f"own {run}"
    steps: list[PlannedStep] = []
    places: dict[str, int] = {}
    for step in template.steps:
        if step.own and dice < step.own:
            settings = f"own {run}"
        upstream = tuple(places[before] for before in step.after)
        before = tuple(steps[at].fingerprint for at in upstream)
        fingerprint = library.add(step, f"{name}/{step.name}/{settings}", before)
        places[step.name] = len(steps)
        steps.append(PlannedStep(step.name, fingerprint, upstream))
    at_ms = round(1000 * at_s)
    has_deadline = rng.random() < scenario.deadlines.share
    slack_ms = round(1000 * template.typical_s * scenario.deadlines.slack)
    deadline_ms = at_ms + slack_ms if has_deadline else 0
    who_is = TenantId(tenant.name)
    return Submission(
        at_ms, run, who_is, tenant.weight, template.priority, name, tuple(steps), deadline_ms
    )
