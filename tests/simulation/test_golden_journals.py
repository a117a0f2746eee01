"""Journals of past versions replay to what they led to then, and life goes on from there.

A journal is never made anew: it was written by the version that its name tells.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flowmesh.core.check import check
from flowmesh.core.decisions import DECISIONS, GrantLease
from flowmesh.core.events import EVENTS, PlaneStarted, TaskResult, WorkerSynced
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.utility import PRESETS, Knobs
from flowmesh.stores.codec import Codec

JOURNALS = sorted(Path(__file__).parent.joinpath("journals").glob("*.json.gz"))
POLICIES = [
    Utility(PRESETS["latency"]),
    Utility(knobs=Knobs(batching=False, hold=False, fairness=False, path=False)),
]


def read(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return told


def replayed(told: dict[str, Any], policy: Utility) -> ControlPlane:
    codec, plane = Codec([*EVENTS, *DECISIONS]), ControlPlane(policy)
    plane.replay(codec.decode_many(msgspec.json.encode(told["records"])))
    return plane


def test_there_are_journals() -> None:
    assert JOURNALS


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.name.removesuffix(".json.gz"))
@pytest.mark.parametrize("policy", range(len(POLICIES)))
def test_a_journal_leads_to_what_it_led_to(path: Path, policy: int) -> None:
    told = read(path)
    plane = replayed(told, POLICIES[policy])
    state = plane.state
    check(state)
    ended = {one.id: one.status.value for one in state.changes.runs.values()}
    assert {run: end for run, end in ended.items() if run not in state.runs} == told["settled"]
    assert sorted(state.tasks) == sorted(told["open_tasks"])
    assert sorted(state.leases) == sorted(told["leases"])
    assert state.next_lease == told["next_lease"]
    assert sorted(state.workers) == sorted(told["workers"])


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_life_goes_on_from_a_journal(path: Path) -> None:
    """All that was open is granted anew, to a worker that was not there before, and ends."""
    plane = replayed(read(path), Utility())
    now_ms = plane.state.now_ms + 1
    plane.step(PlaneStarted(now_ms))
    for _ in range(200):
        if not any(task.status != "succeeded" for task in plane.state.tasks.values()):
            break
        now_ms += 5_000
        held = plane.desired("new")  # type: ignore[arg-type]
        results = tuple(TaskResult(lease.id, task) for lease, left in held for task in left)
        synced = WorkerSynced(now_ms, "new", ("models", "tables"), 2, 1.0, results=results)  # type: ignore[arg-type]
        decisions = plane.step(synced)
        assert all(one.expected.total_s > 0 for one in decisions if isinstance(one, GrantLease))
        check(plane.state)
    assert not [task for task in plane.state.tasks.values() if task.status != "succeeded"]
