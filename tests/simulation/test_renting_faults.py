"""Whole deployments that rent, under faults, from a seed. One seed: SIM_FIRST=17 SIM_SEEDS=1."""

import os

import pytest

from flowmesh.core.decisions import LaunchInstance
from flowmesh.core.machine import ControlPlane
from flowmesh.core.records import RunStatus
from flowmesh.sim.world import World
from support.hashing import told

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
FIRST = int(os.environ.get("SIM_FIRST", "0"))
SEEDS = int(os.environ.get("SIM_SEEDS", "25"))
#: Launches for one run: preemption, machines that never start, and a start for each of its steps.
LAUNCHES_A_RUN = 6


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_rented_machines_do_all_work_and_are_all_given_back(seed: int) -> None:
    """Own workers or not; `check` and the limits on the way are in `World`."""
    world = World(seed, workers=seed % 2, rents=True)
    renting = world.renting
    assert renting is not None
    world.run(until_ms=world.rng.randrange(30 * MINUTE_MS))
    world.heal()
    world.run_until_quiet(limit_ms=world.now_ms + 24 * HOUR_MS)
    assert world.unsettled() == [], f"seed {seed} stuck at {world.now_ms} ms"
    # A machine that is paid for by the hour is kept for the hour.
    world.run(until_ms=world.now_ms + 75 * MINUTE_MS)
    assert renting.provider.held == (), f"seed {seed} leaks"
    assert world.plane.state.instances == {}, f"seed {seed}"
    assert len(renting.asked) <= LAUNCHES_A_RUN * len(world.submitted), f"seed {seed}"


@pytest.mark.parametrize("seed", range(5))
def test_without_faults_it_works_on_rented_machines_alone(seed: int) -> None:
    world = World(seed, workers=0, rents=True)
    world.faults.stop()
    renting = world.renting
    assert renting is not None
    renting.heal()
    world.run(until_ms=3 * HOUR_MS)
    expected = {RunStatus.SUCCEEDED, RunStatus.FAILED}  # inputs may be bad
    assert world.unsettled() == []
    assert dict.fromkeys(world.settled.values()).keys() <= expected
    assert set(world.executions.values()) == {1}
    assert renting.provider.launches == len(renting.asked) > 0


def test_histories_are_the_same_in_any_process() -> None:
    code = (
        "from flowmesh.sim.world import World\n"
        "for seed in range(6):\n"
        "    w = World(seed, workers=1, rents=True); w.run(until_ms=1_200_000); print(w.trace())"
    )
    one, other = told(code)
    assert one == other and one


@pytest.mark.parametrize("seed", range(3))
def test_another_policy_replays_a_journal_of_renting(seed: int) -> None:
    world = World(seed, workers=0, rents=True)
    world.run(until_ms=30 * MINUTE_MS)
    assert any(isinstance(record, LaunchInstance) for record in world.journal)
    later = ControlPlane()  # which rents nothing
    later.replay(world.journal)
    assert later.state == world.plane.state
