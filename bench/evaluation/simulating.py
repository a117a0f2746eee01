"""Carries out one cell in this process: the simulation, and the bound that it is held against."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

from flowmesh.sim.clairvoyant import bound_of
from flowmesh.sim.cluster import simulate
from flowmesh.sim.policies import Entry, find
from flowmesh.sim.scenario import Scenario, load_scenario

from .cells import Cell, Setting

#: Settings of a cell that are of the world a policy works in, not of the policy.
WORLD = ("dedup", "isolated", "scope")


def outcome(cell: Cell) -> dict[str, Any]:
    """The report as plain data, without its runs, and the oracle's bound."""
    scenario = changed(load_scenario(cell.scenario), cell.changes + as_changes(cell.knobs))
    report = simulate(scenario, entry_of(cell), cell.seed)
    told = report.as_json()
    told["failed_runs"] = sum(run.status not in ("succeeded", "running") for run in report.runs)
    told["submitted"] = len(report.runs)
    del told["runs"]
    bound = bound_of(scenario, cell.seed)
    return told | {"bound": {"usd": bound.usd, "joules": bound.joules}}


def entry_of(cell: Cell) -> Entry:
    """The policy with the settings of the cell."""
    entry = find(cell.policy)
    world = {name: value for name, value in cell.settings if name in WORLD}
    own = {name: value for name, value in cell.settings if name not in WORLD}
    return replace(entry, make=partial(entry.make, **own), **world) if cell.settings else entry


def as_changes(knobs: Setting) -> Setting:
    """Knobs and weights are parts of a scenario."""
    return tuple(
        (name if name.startswith("weights.") else f"knobs.{name}", value) for name, value in knobs
    )


def changed(scenario: Scenario, changes: Setting) -> Scenario:
    """The scenario with other values at dotted paths; `*` is each part of a list.

    Raises ValueError for a path that is not there, or a value that is not allowed.
    """
    told = scenario.model_dump()
    for path, value in changes:
        _put(told, path.split("."), value)
    return Scenario.model_validate(told)


def _put(told: Any, path: list[str], value: Any) -> None:
    name, rest = path[0], path[1:]
    if name == "*":
        for part in told:
            _put(part, rest, value)
    elif rest:
        if told.get(name) is None:
            raise ValueError(f"a scenario has no {name!r} to change {'.'.join(rest)} of")
        _put(told[name], rest, value)
    else:
        told[name] = _plain(value)


def _plain(value: Any) -> Any:
    """Lists of mappings are given as JSON, as cells are hashed."""
    if isinstance(value, str) and value.startswith("["):
        return json.loads(value)
    return value
