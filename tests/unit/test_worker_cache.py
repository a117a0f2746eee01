"""The worker's cache: fetched once, verified, bounded, and safe while in use."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, StoreError
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.worker.cache import Cache
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


async def test_a_blob_is_fetched_once_by_all_who_ask_at_once(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, transport, limit_bytes=1000)
    digest = server.put(b"blob")
    with cache.pin() as pin:
        paths = await asyncio.gather(*(cache.blob(digest, pin) for _ in range(5)))
    assert {path.read_bytes() for path in paths} == {b"blob"}
    assert server.downloads == [digest.hash]


async def test_the_longest_unused_goes_first(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, transport, limit_bytes=12)
    old, used, new = (server.put(text) for text in (b"old!", b"used", b"new!new!"))
    for digest in (old, used, used, new):
        with cache.pin() as pin:
            await cache.blob(digest, pin)
    assert cache.store.has([old, used, new]) == {used, new}
    assert cache.size_bytes == 12


async def test_what_is_pinned_stays_even_beyond_the_limit(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, transport, limit_bytes=4)
    first, second, third = (server.put(text) for text in (b"one!", b"two!", b"more"))
    with cache.pin() as pin, cache.pin() as other:
        await cache.blob(first, pin)
        await cache.blob(first, other)
        await cache.blob(second, pin)
        assert cache.store.has([first, second]) == {first, second}
    with cache.pin() as pin:
        await cache.blob(third, pin)
    assert cache.store.has([first, second, third]) == {third}


async def test_a_tree_goes_with_its_blobs_and_can_be_had_again(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    tree = _tree(server, tmp_path, {"a": b"aaaa", "deep/b": b"bbbb"})
    cache = Cache(tmp_path / "home", transport, limit_bytes=tree.size_bytes + 8)
    folder = cache.trees / tree.hash
    with cache.pin() as pin:
        assert await cache.tree(tree, pin) == 8
        assert (folder / "deep" / "b").read_bytes() == b"bbbb"
    with cache.pin() as pin:
        await cache.blob(server.put(b"x"), pin)
    assert not folder.exists()
    with cache.pin() as pin:
        await cache.tree(tree, pin)
        await cache.blob(server.put(b"y" * 100), pin)
        assert (folder / "a").read_bytes() == b"aaaa", "its blobs are pinned with it"


async def test_the_newest_trees_are_said_to_be_held(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    trees = [_tree(server, tmp_path / name, {name: b"x"}) for name in "abc"]
    cache = Cache(tmp_path / "home", transport, limit_bytes=10_000)
    with cache.pin() as pin:
        for tree in (*trees, trees[0]):
            await cache.tree(tree, pin)
    assert cache.held(2) == (trees[0], trees[2])
    assert pin.fetched_bytes == sum(tree.size_bytes for tree in trees) + 1, "equal files come once"


async def test_a_later_process_finds_the_blobs_and_clears_the_rest(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    digest = server.put(b"blob")
    first = Cache(tmp_path, transport, limit_bytes=100)
    with first.pin() as pin:
        await first.blob(digest, pin)
    (first.trees / "leftover").mkdir()
    later = Cache(tmp_path, transport, limit_bytes=100)
    with later.pin() as pin:
        await later.blob(digest, pin)
    assert server.downloads == [digest.hash]
    assert list(later.trees.iterdir()) == []


async def test_a_damaged_copy_is_fetched_again(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    digest = server.put(b"blob")
    cache = Cache(tmp_path, transport, limit_bytes=100)
    with cache.pin() as pin:
        path = await cache.blob(digest, pin)
        path.chmod(0o644)
        path.write_bytes(b"blub")
        assert (await cache.blob(digest, pin)).read_bytes() == b"blob"


async def test_what_the_server_lacks_or_damages_is_refused(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, transport, limit_bytes=100)
    digest = Digest.of(b"blob")
    with cache.pin() as pin:
        with pytest.raises(BlobMissing, match=digest.hash):
            await cache.blob(digest, pin)
        for wrong in (b"blub", b"blo", b"blob and more"):
            server.blobs[digest.hash] = wrong
            with pytest.raises(DigestMismatch):
                await cache.blob(digest, pin)
    assert list(cache.store.list()) == []
    assert not any((tmp_path / "incoming").iterdir())


async def test_what_cannot_be_read_here_is_trouble_with_the_store(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    """Not the end of all that the worker does: a checkpoint may be what is sent."""
    with pytest.raises(StoreError, match="cannot read"):
        await transport.upload(Digest.of(b"gone"), tmp_path / "gone")


async def test_the_network_is_waited_for(
    server: FakeServer, transport: Transport, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, transport, limit_bytes=100)
    digest = server.put(b"blob")
    await server.stop()
    with cache.pin() as pin:
        fetching = asyncio.create_task(cache.blob(digest, pin))
        await server.start()
        assert (await fetching).read_bytes() == b"blob"


async def test_trees_in_a_shared_store_are_bounded_too(
    transport: Transport, tmp_path: Path
) -> None:
    shared = FileStore(tmp_path / "shared")
    trees = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights").write_text(name)
        trees.append(put_tree(shared, folder))
    cache = Cache(tmp_path / "home", transport, limit_bytes=3, shared=shared.root)
    for tree in trees:
        with cache.pin() as pin:
            await cache.tree(tree, pin)
    assert [path.name for path in cache.trees.iterdir()] == [trees[1].hash]
    assert len(list(shared.list())) == 4, "nothing is taken from the shared store"


def _tree(server: FakeServer, tmp_path: Path, files: dict[str, bytes]) -> Digest:
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    store = FileStore(tmp_path / "made")
    tree = put_tree(store, folder)
    for info in store.list():
        server.put(store.read(info.digest))
    return tree
