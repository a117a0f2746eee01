"""Stores in memory: for tests and the simulator. They keep what the durable ones promise."""

import builtins
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, StoreError
from flowmesh.stores.base import CHUNK_BYTES, BlobInfo, Checkpoint, Statement, wall_ms


class MemoryStore:
    """A BlobStore in a dictionary."""

    def __init__(self, name: str = "memory", *, now_ms: Callable[[], int] = wall_ms) -> None:
        self.name = name
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._blobs: dict[Digest, tuple[bytes, int]] = {}
        self.quarantined: dict[Digest, bytes] = {}

    def has(self, digests: Iterable[Digest]) -> set[Digest]:
        with self._lock:
            held = {digest for digest in digests if _checked(digest) in self._blobs}
            for digest in held:
                self._blobs[digest] = (self._blobs[digest][0], self._now_ms())
            return held

    def put(self, content: bytes | Path | BinaryIO, expect: Digest | None = None) -> Digest:
        if isinstance(content, bytes):
            data = content
        elif isinstance(content, Path):
            try:
                data = content.read_bytes()
            except OSError as error:
                raise StoreError(f"cannot read {content}: {error.strerror}") from error
        else:
            data = content.read(-1 if expect is None else expect.size_bytes + 1)
        digest = Digest.of(data)
        if expect is not None and expect != digest:
            raise DigestMismatch(want=expect, got=digest, source="the content to store")
        with self._lock:
            self._blobs[digest] = (data, self._now_ms())
        return digest

    def read(self, digest: Digest) -> bytes:
        with self._lock:
            found = self._blobs.get(_checked(digest))
            if found is None:
                raise BlobMissing(digest, self.name)
            got = Digest.of(found[0])
            if got != digest:
                self.quarantined[digest] = self._blobs.pop(digest)[0]
                raise DigestMismatch(want=digest, got=got, source=self.name)
            return found[0]

    def open(self, digest: Digest) -> BinaryIO:
        return io.BytesIO(self.read(digest))

    def stream(self, digest: Digest, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        data = self.read(digest)
        starts = range(0, len(data), chunk_bytes)
        return iter([data[start : start + chunk_bytes] for start in starts])

    def path(self, digest: Digest) -> Path | None:
        self.read(digest)
        return None

    def delete(self, digest: Digest, *, if_before_ms: int | None = None) -> bool:
        with self._lock:
            found = self._blobs.get(_checked(digest))
            if found is None or (if_before_ms is not None and found[1] >= if_before_ms):
                return False
            del self._blobs[digest]
            return True

    def list(self) -> Iterator[BlobInfo]:
        with self._lock:
            blobs = builtins.list(self._blobs.items())
        return (BlobInfo(digest, modified_ms) for digest, (_, modified_ms) in blobs)

    def quarantine(self, digest: Digest) -> None:
        with self._lock:
            if _checked(digest) in self._blobs:
                self.quarantined[digest] = self._blobs.pop(digest)[0]

    def damage(self, digest: Digest, data: bytes) -> None:
        """Put other bytes in a blob's place, as a failing disk would: to inject faults."""
        with self._lock:
            self._blobs[digest] = (data, self._blobs[digest][1])


class MemoryJournal:
    """A Journal in a list. It has no read models: the statements of `rows` are not run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[bytes] = []
        self._checkpoints: list[Checkpoint] = []

    def append(self, at_ms: int, records: bytes, rows: Sequence[Statement] = ()) -> Future[int]:
        done: Future[int] = Future()
        with self._lock:
            self._records.append(records)
            done.set_result(len(self._records))
        return done

    def replay(self, after_seq: int = 0) -> Iterator[tuple[int, bytes]]:
        with self._lock:
            records = self._records[after_seq:]
        return iter(list(enumerate(records, start=after_seq + 1)))

    def checkpoint(self, seq: int, state: bytes, at_ms: int) -> Future[None]:
        done: Future[None] = Future()
        with self._lock:
            if not 1 <= seq <= len(self._records):
                done.set_exception(StoreError(f"the journal holds no record {seq}"))
                return done
            self._checkpoints = [kept for kept in self._checkpoints if kept.seq != seq]
            self._checkpoints.append(Checkpoint(seq, state, at_ms))
            done.set_result(None)
        return done

    def last_checkpoint(self) -> Checkpoint | None:
        with self._lock:
            return max(self._checkpoints, key=lambda kept: kept.seq, default=None)


def _checked(digest: Digest) -> Digest:
    return Digest.parse(str(digest))
