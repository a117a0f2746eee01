"""Presets of the utility, and the prices of a deployment."""

from dataclasses import replace

from flowmesh.core.utility import PRESETS, priced_as


def test_an_objective_keeps_the_prices_of_its_deployment() -> None:
    here = replace(PRESETS["balanced"], usd_per_kwh=0.5, usd_per_kg_co2=0.1, home="west")
    found = priced_as(PRESETS["cost"], here)
    assert (found.usd_per_kwh, found.usd_per_kg_co2, found.home) == (0.5, 0.1, "west")
    assert found.worth == PRESETS["cost"].worth
