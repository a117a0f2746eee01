"""What becomes of checkpoints between the process that makes them and the server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from flowmesh.base.digest import Digest
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.worker.cache import Cache
from flowmesh.worker.child import LocalBlobs
from flowmesh.worker.frames import Frame
from flowmesh.worker.saving import Saving
from flowmesh.worker.transport import Transport
from worker_support.server import FakeServer


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def transport(server: FakeServer) -> AsyncIterator[Transport]:
    transport = Transport(server.address, None, "w")
    yield transport
    await transport.close()


class Recorder:
    """As a child's blobs: what was put since it was last asked."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.puts: list[str] = []

    def put(self, content: bytes | Path) -> Digest:
        digest = self._cache.store.put(content)
        self.puts.append(str(digest))
        return digest


def saved(cache: Cache, folder: Path, step: int) -> Frame:
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text(f"step {step}")
    (folder / "config").write_text("{}")
    recorder = Recorder(cache)
    tree = put_tree(recorder, folder)
    return {"task": "t", "saved": str(tree), "step": step, "puts": recorder.puts}


def listed_bytes(cache: Cache) -> int:
    return sum(info.digest.size_bytes for info in cache.store.list())


async def test_checkpoints_that_are_passed_over_do_not_fill_the_disk(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    """On a slow line many are made while one is on its way; what counts them can evict them."""
    cache = Cache(tmp_path / "cache", transport, limit_bytes=0)
    told: list[int] = []
    server.open.clear()
    async with asyncio.TaskGroup() as group:
        saving = Saving(
            cache, group, lambda task, tree, step: told.append(step), lambda task, why: None
        )
        saving.add(saved(cache, tmp_path / "made", 1))
        await server.until(lambda: server.waiting == 2)
        for step in range(2, 9):
            saving.add(saved(cache, tmp_path / "made", step))
        states = [Digest.of(f"step {step}".encode()) for step in range(1, 9)]
        assert cache.store.has(states) == {states[0], states[-1]}, "on its way, and the newest"
        server.open.set()
    assert told == [1, 8]
    saving.close()
    assert listed_bytes(cache) == cache.size_bytes == 0


async def test_what_could_not_be_sent_is_let_go_with_the_batch(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", transport, limit_bytes=1000)
    troubles: list[str] = []
    server.full = True
    async with asyncio.TaskGroup() as group:
        saving = Saving(
            cache, group, lambda task, tree, step: None, lambda task, why: troubles.append(why)
        )
        saving.add(saved(cache, tmp_path / "made", 1))
    assert "step 1 could not be stored" in troubles[0]
    saving.close()
    assert listed_bytes(cache) == cache.size_bytes > 0, "all of it is counted"


def test_what_threads_put_is_told_whole(tmp_path: Path) -> None:
    """A file that nobody told of would not be sent, and the checkpoint not be whole."""

    class Store:
        def put(self, content: bytes) -> Digest:
            return Digest("0" * 64, int(content))

    blobs = LocalBlobs(cast(FileStore, Store()), tmp_path)
    count, told = 3_000, list[str]()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            puts = [
                threads.submit(lambda start: [blobs.put(b"%d" % n) for n in start], start)
                for start in (range(count), range(count, 2 * count))
            ]
            while not all(one.done() for one in puts):
                told += blobs.taken()
    finally:
        sys.setswitchinterval(before)
    told += blobs.taken()
    assert len(told) == 2 * count
