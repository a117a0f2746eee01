"""Whole deployments, under faults, from a seed. To replay one: SIM_FIRST=17 SIM_SEEDS=1."""

import os

import pytest

from flowmesh.core.apply import REOPEN_LIMIT
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.records import RunStatus
from flowmesh.core.utility import PRESETS
from flowmesh.sim.world import World
from support.hashing import told

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
FIRST = int(os.environ.get("SIM_FIRST", "0"))
SEEDS = int(os.environ.get("SIM_SEEDS", "100"))


def expected(world: World, run: str) -> set[RunStatus]:
    """How a run may end, from what is wrong with its inputs and what happened to it."""
    steps = [step for step in world.steps.values() if step.run == run]
    may = {RunStatus.SUCCEEDED}
    if any(world.workload.must_fail(step.id) for step in steps):
        may = {RunStatus.FAILED}
    if any(step.reopened >= REOPEN_LIMIT for step in steps):
        may |= {RunStatus.FAILED}
    if run in world.cancelled:
        may |= {RunStatus.CANCELLED}
    return may


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_every_run_settles_as_it_must_once_faults_stop(seed: int) -> None:
    """Safety while anything may break, then liveness when only some workers come back."""
    world = World(seed)
    attempts_fail = world.faults.attempts_fail
    world.run(until_ms=world.rng.randrange(30 * MINUTE_MS))  # `check` runs after every step
    world.heal()
    world.run_until_quiet(limit_ms=world.now_ms + 24 * HOUR_MS)
    assert world.unsettled() == [], f"seed {seed} stuck at {world.now_ms} ms"
    if not attempts_fail:
        wrong = {run: end for run, end in world.settled.items() if end not in expected(world, run)}
        assert wrong == {}, f"seed {seed}"


def test_the_same_seed_gives_the_same_history_in_any_process() -> None:
    """Two hash seeds, so that the order of a set or a hash cannot hide."""
    code = (
        "from flowmesh.sim.world import World\n"
        "for seed in range(8): w = World(seed); w.run(until_ms=1_200_000); print(w.trace())"
    )
    one, other = told(code)
    assert one == other and one


@pytest.mark.parametrize("seed", range(6))
def test_a_new_policy_replays_an_old_journal(seed: int) -> None:
    world = World(seed)
    world.run(until_ms=HOUR_MS)
    later = ControlPlane(Utility(PRESETS["cost"]))
    later.replay(world.journal)
    assert later.state == world.plane.state


def test_long_tasks_are_gone_on_with() -> None:
    """That no lease repeats what is saved is asserted on the way, in `World`."""
    worlds = [World(seed) for seed in range(8)]
    for world in worlds:
        world.run(until_ms=15 * MINUTE_MS)
    assert sum(world.resumed for world in worlds) > 4


@pytest.mark.parametrize("seed", range(5))
def test_without_faults_shared_work_runs_once(seed: int) -> None:
    world = World(seed, runs=40)
    world.faults.stop()
    world.run(until_ms=6 * HOUR_MS)
    assert world.unsettled() == []
    assert set(world.executions.values()) == {1}
    asked = sum(len(set(world.workload.tasks(step))) for step in world.steps)
    assert len(world.executions) < asked
