"""Blobs and trees on the worker's disk: fetched when needed, kept while there is room.

Two ways to be set up. With a store that is shared with the server, blobs are used in
place: only trees are laid out here (of hard links, where the disk is the same). Without
one the worker has a store of its own, filled from the server and bounded in bytes. A
tree there costs nothing beside its blobs, being links to them, and goes when one goes.
"""

import asyncio
import secrets
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

from flowmesh.base.digest import Digest
from flowmesh.base.errors import AccessDenied, BlobMissing, DigestMismatch, Unreachable
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import materialise, read_manifest
from flowmesh.worker.transport import Transport, backoff_s

#: Transfers at one time.
PARALLEL = 4


class Key(NamedTuple):
    kind: Literal["blob", "tree"]
    digest: Digest


@dataclass(frozen=True, slots=True)
class Entry:
    """`size_bytes` on disk. Of a tree, `blobs` are those that it is links to."""

    size_bytes: int
    blobs: frozenset[Digest] = frozenset()


class Pin:
    """Holds entries in place; see `Cache.pin`."""

    def __init__(self) -> None:
        self.keys: set[Key] = set()
        #: That came over the network for it.
        self.fetched_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        return Key("blob", digest) in self.keys or Key("tree", digest) in self.keys


class Cache:
    """See the module. One event loop; disk and network are waited for elsewhere."""

    def __init__(
        self, home: Path, transport: Transport, *, limit_bytes: int, shared: Path | None = None
    ) -> None:
        """Opens `home` alone: no other process may use it. Raises StoreError."""
        self._transport, self._limit_bytes = transport, limit_bytes
        self.shared = shared is not None
        # What we put in the server's own store must be as durable as what it puts there.
        self.store = FileStore(shared or home / "blobs", durable=self.shared)
        self.trees = home / "trees"
        self._incoming = home / "incoming"
        for leftover in (self.trees, self._incoming):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.mkdir(parents=True)
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._pins: Counter[Key] = Counter()
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._transfers = asyncio.Semaphore(PARALLEL)
        if not self.shared:
            for info in sorted(self.store.list(), key=lambda info: info.modified_ms):
                self._entries[Key("blob", info.digest)] = Entry(info.digest.size_bytes)

    @property
    def size_bytes(self) -> int:
        """On disk and ours."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def held(self, most: int) -> tuple[Digest, ...]:
        """Trees that are laid out here, the most recently used first."""
        trees = (key.digest for key in reversed(self._entries) if key.kind == "tree")
        return tuple(islice(trees, most))

    @contextmanager
    def pin(self) -> Iterator[Pin]:
        """What is fetched with this pin is not evicted before the block ends."""
        pin = Pin()
        try:
            yield pin
        finally:
            self._pins -= Counter(pin.keys)

    async def blob(self, digest: Digest, pin: Pin) -> Path:
        """The blob's file. Waits for the network as long as it takes.

        Raises BlobMissing, DigestMismatch, StoreError.
        """
        key = Key("blob", digest)
        self._hold(key, pin)
        if self.shared:
            return await asyncio.to_thread(self.store.path, digest)
        async with self._lock(key):
            if key in self._entries:
                self._entries.move_to_end(key)
                try:
                    return await asyncio.to_thread(self.store.path, digest)
                except (BlobMissing, DigestMismatch):
                    self._evict(key)  # Our copy is damaged; the server's need not be.
            self._make_room(digest.size_bytes)
            await self._patiently(lambda: self._fetch(digest))
            pin.fetched_bytes += digest.size_bytes
            self._entries[key] = Entry(digest.size_bytes)
            return await asyncio.to_thread(self.store.path, digest)

    async def tree(self, digest: Digest, pin: Pin) -> int:
        """Lay a tree out as `trees/<hash>`; return the bytes of its files.

        Raises BlobMissing, DigestMismatch, StoreError, SpecError if it is no tree.
        """
        key = Key("tree", digest)
        self._hold(key, pin)
        await self.blob(digest, pin)
        manifest = await asyncio.to_thread(read_manifest, self.store, digest)
        files = {file.digest for file in manifest.files}
        async with self._lock(key):
            if key not in self._entries:
                if self.shared:
                    self._make_room(manifest.size_bytes)
                await asyncio.gather(*(self.blob(file, pin) for file in files))
                await asyncio.to_thread(materialise, self.store, digest, self.trees / digest.hash)
                self._entries[key] = self._tree_entry(digest, files, manifest.size_bytes)
            for used in (Key("blob", digest), *(Key("blob", file) for file in files), key):
                if used in self._entries:
                    self._hold(used, pin)
                    self._entries.move_to_end(used)
        return manifest.size_bytes

    def drop_tree(self, digest: Digest) -> None:
        """Take a tree away that nobody uses now, and that is of no more use.

        As links, its files would keep the bytes of a store that has let go of them.
        """
        key = Key("tree", digest)
        if key in self._entries and not self._pins[key]:
            self._evict(key)

    async def send(self, digest: Digest, pin: Pin) -> None:
        """Bring a blob that a child has put here to the server.

        Raises BlobMissing, DigestMismatch, StoreError, Refused.
        """
        if self.shared:
            return
        key = Key("blob", digest)
        self._hold(key, pin)
        path = await asyncio.to_thread(self.store.path, digest)
        self._entries[key] = Entry(digest.size_bytes)
        await self._patiently(lambda: self._transport.upload(digest, path))
        self._make_room(0)

    def adopt(self, digests: Iterable[Digest]) -> None:
        """Count blobs that a child has put here, and nobody will send, as what may be evicted."""
        if self.shared:
            return
        for digest in digests:
            if self.store.has([digest]):
                self._entries.setdefault(Key("blob", digest), Entry(digest.size_bytes))
        self._make_room(0)

    def _tree_entry(self, digest: Digest, files: set[Digest], size_bytes: int) -> Entry:
        if self.shared:
            return Entry(size_bytes)
        return Entry(0, frozenset({digest, *files}))

    def _hold(self, key: Key, pin: Pin) -> None:
        if key not in pin.keys:
            pin.keys.add(key)
            self._pins[key] += 1

    def _lock(self, key: Key) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _fetch(self, digest: Digest) -> None:
        draft = self._incoming / secrets.token_hex(8)
        try:
            await self._transport.download(digest, draft)
            await asyncio.to_thread(self.store.put, draft, digest)
        finally:
            draft.unlink(missing_ok=True)

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Repeat a call until the server answers it. Only a cancellation ends the waiting."""
        attempt = 0
        while True:
            try:
                async with self._transfers:
                    return await call()
            except (Unreachable, AccessDenied):  # A refused token ends the worker, by its sync.
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    def _make_room(self, need_bytes: int) -> None:
        """Evict what was longest not used, until `need_bytes` more are within the limit.

        What is pinned stays, even beyond the limit: a batch could not run without it.
        """
        excess = self.size_bytes + need_bytes - self._limit_bytes
        for key in list(self._entries):
            if excess <= 0:
                return
            if key in self._entries and not self._pins[key]:
                excess -= self._entries[key].size_bytes
                self._evict(key)

    def _evict(self, key: Key) -> None:
        # All in one go: nobody may fetch again what is about to be deleted.
        gone = {key}
        if key.kind == "blob":
            gone |= {k for k, entry in self._entries.items() if key.digest in entry.blobs}
        for one in gone:
            del self._entries[one]
        for one in gone:
            if one.kind == "tree":
                shutil.rmtree(self.trees / one.digest.hash)
            else:
                self.store.delete(one.digest)
