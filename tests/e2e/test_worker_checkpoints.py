"""Long tasks on a worker: progress, checkpoints, and how they are stopped."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Action
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import blobs_of_tree
from flowmesh.wire import LeaseStop
from flowmesh.worker import monitor, progress
from flowmesh.worker.agent import work
from flowmesh.worker.settings import WorkerSettings
from worker_support.climbing import CLIMB, climbed, pids, starts
from worker_support.server import PATIENCE_S, FakeServer

TESTS = Path(__file__).parents[1]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await server.stop()


class Workers:
    """Workers of one test, started in this process."""

    def __init__(self, server: FakeServer, home: Path) -> None:
        self._server, self._home = server, home
        self._stop = asyncio.Event()
        self._works: list[asyncio.Task[None]] = []

    async def start(self, **more: Any) -> None:
        settings = WorkerSettings(
            server=self._server.address,
            home=self._home / f"worker-{len(self._works)}",
            operators={"climb": CLIMB},
            poll_ms=60_000,
            **more,
        )
        self._works.append(asyncio.create_task(work(settings, self._stop)))

    async def leave(self) -> None:
        """As after SIGTERM."""
        self._stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._works)


@pytest.fixture
async def workers(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Workers]:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(monitor, "GAP_S", 0.0)
    monkeypatch.setattr(progress, "GAP_S", 0.0)
    workers = Workers(server, tmp_path)
    yield workers
    await workers.leave()


def climb(folder: Path, **params: Any) -> Action:
    return Action("climb", 1, {"folder": str(folder), **params}, {})


async def test_progress_is_told_and_the_last_of_it_comes_through(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start(interruptions_per_hour=2.5)
    [task] = await server.grant(1, climb(tmp_path, steps=15, hold=12, every=100))
    await server.until(lambda: any(one.step == 12 for one in server.progress))
    told = server.progress[-1]
    assert (told.task, told.steps, told.checkpoint) == (task, 15, "")
    assert told.facts == {"loss": 1 / 12, "tokens_per_s": 410.0}, "NaN is no fact"
    assert "2.5" in (tmp_path / "log").read_text()
    (tmp_path / "go").touch()
    [result] = await server.results(task)
    assert server.blobs[result.outputs["rows"].address.hash].decode().count(climbed(15)) == 1


async def test_a_checkpoint_is_told_once_its_manifest_is_on_the_server(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start()
    server.open.clear()
    await server.grant(1, climb(tmp_path, hold=10))
    await server.until(lambda: server.waiting == 2)
    assert server.saved() == [], "only files are on their way"
    server.open.set()
    await server.until(server.saved)
    [saved] = server.saved()
    assert saved.step == 10
    manifest = Digest.parse(saved.checkpoint)
    assert server.uploads[-1] == manifest.hash
    store = FileStore(tmp_path / "copy")
    for content in server.blobs.values():
        store.put(content)
    assert {one.hash for one in blobs_of_tree(store, manifest)} <= server.blobs.keys()


async def test_a_task_goes_on_from_its_checkpoint(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start()
    await server.grant(1, climb(tmp_path, hold=10))
    await server.until(server.saved)
    del server.leases[1]
    await server.change()
    (tmp_path / "go").touch()
    tree = server.saved()[0].checkpoint
    tasks = await server.grant(2, climb(tmp_path, hold=10), checkpoint=tree)
    await server.results(*tasks)
    assert starts(tmp_path) == [0, 10]
    await server.until(lambda: server.syncs[-1].running == [])
    laid_out = tmp_path / "worker-0" / "trees" / Digest.parse(tree).hash
    assert not laid_out.exists(), "as links it would keep bytes that the store has let go of"


@pytest.mark.parametrize("tree", [str(Digest.of(b"nowhere")), "damaged"])
async def test_without_its_checkpoint_a_task_begins_anew(
    server: FakeServer, workers: Workers, tmp_path: Path, tree: str
) -> None:
    await workers.start()
    if tree == "damaged":
        tree = str(server.put(b"no manifest"))
    tasks = await server.grant(1, climb(tmp_path), checkpoint=tree)
    await server.results(*tasks)
    assert starts(tmp_path) == [0]


async def test_what_a_result_shares_with_the_checkpoint_it_began_with_is_sent(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    """The server may have let go of it since: a newer checkpoint need not have it."""
    await workers.start()
    await server.grant(1, climb(tmp_path, hold=10))
    await server.until(server.saved)
    tree = server.saved()[0].checkpoint
    del server.leases[1]
    await server.change()
    [task] = await server.grant(2, climb(tmp_path, hold=25, every=100), checkpoint=tree)
    await server.until(lambda: any(one.step == 25 for one in server.progress))
    manifest = json.loads(server.blobs[Digest.parse(tree).hash])
    for file in manifest["files"]:
        del server.blobs[Digest.parse(file["digest"]).hash]
    (tmp_path / "go").touch()
    [result] = await server.results(task)
    made = json.loads(server.blobs[result.outputs["model"].address.hash])
    assert {one["digest"] for one in made["files"]} & {one["digest"] for one in manifest["files"]}
    assert all(Digest.parse(one["digest"]).hash in server.blobs for one in made["files"])


async def test_a_checkpoint_that_cannot_be_had_just_now_is_not_given_up(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    """Hours of work are behind it: another try, elsewhere, is cheaper."""
    await workers.start()
    tree = server.put(b"to be read later")
    server.unreadable.add(tree.hash)
    [task] = await server.grant(1, climb(tmp_path), checkpoint=str(tree))
    [report] = await server.reported(task)
    assert (report.kind, report.missing) == ("transient", ""), "no step is to make it again"
    assert "the checkpoint of this task cannot be had" in report.message
    assert not (tmp_path / "log").exists(), "it has not begun"


async def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_task(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start()
    server.full = True
    tasks = await server.grant(1, climb(tmp_path, steps=20, hold=20))
    await server.until(lambda: server.progress and "disk is full" in server.progress[-1].message)
    assert server.saved() == []
    server.full = False
    (tmp_path / "go").touch()
    [result] = await server.results(*tasks)
    tree = result.outputs["model"].address
    store = FileStore(tmp_path / "copy")
    store.put(server.blobs[tree.hash])
    assert {one.hash for one in blobs_of_tree(store, tree)} <= server.blobs.keys(), (
        "what it shares with the checkpoint is sent with the result"
    )


async def test_a_worker_that_leaves_has_its_tasks_leave_a_checkpoint(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start()
    [task] = await server.grant(1, climb(tmp_path, hold=13))
    await server.until(lambda: any(one.step == 13 for one in server.progress))
    await workers.leave()
    assert [one.step for one in server.saved()][-1] == 13
    assert any(sync.draining and not sync.leaving for sync in server.syncs)
    assert server.syncs[-1].leaving
    assert task not in server.reports, "nobody is at fault"


async def test_what_does_not_stop_is_killed_after_the_grace(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start(stop_grace_s=0.2)
    [task] = await server.grant(1, climb(tmp_path, hold=13, stops=0))
    await server.until(lambda: any(one.step == 13 for one in server.progress))
    await workers.leave()
    assert server.syncs[-1].leaving
    assert task not in server.reports
    with pytest.raises(ProcessLookupError):
        os.kill(pids(tmp_path)[0], 0)


@pytest.mark.parametrize(("stops", "last"), [(1, 13), (0, 10)])
async def test_a_lease_that_is_over_may_leave_a_checkpoint(
    server: FakeServer, workers: Workers, tmp_path: Path, stops: int, last: int
) -> None:
    """Within its time; the worker goes on with other work."""
    await workers.start()
    [task] = await server.grant(1, climb(tmp_path, hold=13, stops=stops))
    await server.until(lambda: any(one.step == 13 for one in server.progress))
    server.stopping = [LeaseStop(lease=1, within_ms=2000 if stops else 100)]
    del server.leases[1]
    await server.change()
    await server.until(lambda: server.syncs[-1].running == [])
    assert [one.step for one in server.saved()][-1] == last
    assert task not in server.reports
    tasks = await server.grant(2, climb(tmp_path, steps=3))
    await server.results(*tasks)
    assert len(set(pids(tmp_path))) == 2, "a process that was stopped is not used again"


async def test_to_stop_unasked_is_a_failure(
    server: FakeServer, workers: Workers, tmp_path: Path
) -> None:
    await workers.start()
    [report] = await server.reported(*await server.grant(1, climb(tmp_path, bolts=1)))
    assert (report.kind, "without being asked" in report.message) == ("internal", True)
