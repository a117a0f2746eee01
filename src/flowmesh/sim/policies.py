"""Policies by name, for `flowmesh sim run --policy` and for the evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.core.plan import Policy, Utility
from flowmesh.core.scale import FleetLimits
from flowmesh.core.utility import PRESETS, Knobs, Weights
from flowmesh.sim.engines import Truth
from flowmesh.sim.scenario import Scenario
from flowmesh.sim.tenants import Plan


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may be made from: baselines are told the truth, ours sees `scenario` only."""

    scenario: Scenario
    plan: Plan
    truth: Truth


Factory = Callable[[Setting], Policy]


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy, and in which world it works.

    Attributes:
        make: a fresh policy for a simulation.
        dedup: off, every run has tasks of its own, and finds nothing in the cache.
        isolated: batch keys bear their run's name, so that no batch and no warm engine serves
            two runs; `run_of` tells whose a key is.
        scope: what "run" above is: a `run`, or all runs of a `tenant`, which then share.
    """

    name: str
    make: Factory
    about: str = ""
    dedup: bool = True
    isolated: bool = False
    scope: Literal["run", "tenant"] = "run"


_ENTRIES: dict[str, Entry] = {}
#: Between a batch key and the run that it is for.
OF_RUN = "#"


def register(entry: Entry) -> Entry:
    """Make a policy known by its name; the last one of a name holds."""
    _ENTRIES[entry.name] = entry
    return entry


def names() -> list[str]:
    """Of all policies that are known."""
    return sorted(_ENTRIES)


def find(name: str) -> Entry:
    """Raises SpecError for an unknown name."""
    if name not in _ENTRIES:
        raise SpecError(Problem(f"there is no policy {name!r}{nearest(name, _ENTRIES)}"))
    return _ENTRIES[name]


def run_of(batch_key: str) -> str:
    """The run that an isolated batch key is for; empty if it is for all."""
    return batch_key.partition(OF_RUN)[2]


def weights_of(scenario: Scenario) -> Weights:
    """The preset that the scenario names, with its own values over it. Raises SpecError."""
    if scenario.objective not in PRESETS:
        guess = nearest(scenario.objective, PRESETS)
        raise SpecError(Problem(f"there is no objective {scenario.objective!r}{guess}"))
    network = scenario.network
    store = network.places[network.store]
    own = {"home": network.store, "usd_per_gb": store.egress_usd_per_gb, **scenario.weights}
    try:
        return replace(PRESETS[scenario.objective], **own)  # type: ignore[arg-type]
    except TypeError as error:
        raise SpecError(Problem(f"`weights`: {error}")) from None


def knobs_of(scenario: Scenario) -> Knobs:
    """Raises SpecError for a knob that there is not."""
    try:
        return Knobs(**scenario.knobs)  # type: ignore[arg-type]
    except TypeError as error:
        raise SpecError(Problem(f"`knobs`: {error}")) from None


def limits_of(scenario: Scenario) -> FleetLimits:
    """What may be rented: nothing, where the fleet is fixed."""
    if scenario.market is None:
        return FleetLimits(max_instances=0)
    told = scenario.market.limits.model_dump(exclude_none=True)
    return FleetLimits(**told)


def _flowmesh(setting: Setting) -> Policy:
    scenario = setting.scenario
    return Utility(weights_of(scenario), knobs_of(scenario), fleet=limits_of(scenario))


register(Entry("flowmesh", _flowmesh, "the one utility function"))
