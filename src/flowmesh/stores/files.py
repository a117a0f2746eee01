"""Blobs in a directory, on a local disk or a shared volume.

On disk, under the root:

    sha256/ab/<64 hex>-<size>        a blob; `ab` are its first two hex digits, <size> its
                                     length in bytes, in decimal; mode 0444; its content
                                     never changes; its mtime is when it was last renewed
    tmp/<random>                     a blob being written; no one else looks at it
    quarantine/<64 hex>-<size>.<ms>  a damaged copy, and when it was set aside
    lock                             flock'ed: shared to add or renew a blob,
                                     exclusive to take one away

A blob is written under `tmp`, flushed to the disk, renamed into place, and then its
directory is flushed. Leftovers in `tmp` older than an hour are removed when a store is
opened. Anything else in these directories is left alone and never read.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, StoreError
from flowmesh.stores.base import CHUNK_BYTES, RENEW_MS, VERIFY_FIRST_BYTES, BlobInfo, wall_ms

_NAME = re.compile(r"([0-9a-f]{64})-(\d{1,18})")
_LEFTOVER_MS = 3_600_000
#: How many files `path` remembers as verified.
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What stays equal while nobody writes to a file or puts another in its place."""

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_Stamp":
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class FileStore:
    """A BlobStore in a directory; any number of processes may share it.

    Args:
        root: made if it is not there.
        durable: flush to the disk before `put` returns. Without it (for caches) a power cut
            may leave damaged blobs, which readers find.
        now_ms: the clock, for tests.
    """

    def __init__(
        self, root: Path, *, durable: bool = True, now_ms: Callable[[], int] = wall_ms
    ) -> None:
        self.name = f"the store {root}"
        self._durable = durable
        self._now_ms = now_ms
        self._sound: dict[Digest, _Stamp] = {}
        with self._reporting("cannot open"):
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve()
            for part in ("sha256", "tmp", "quarantine"):
                (self.root / part).mkdir(exist_ok=True)
            (self.root / "lock").touch()
            self._remove_leftovers()

    def has(self, digests: Iterable[Digest]) -> set[Digest]:
        with self._reporting("cannot look into"), self._locked(fcntl.LOCK_SH):
            return {digest for digest in digests if self._renew(digest)}

    def put(self, content: bytes | Path | BinaryIO, expect: Digest | None = None) -> Digest:
        if expect is None and isinstance(content, bytes):
            digest = Digest.of(content)
            if self._kept(digest):
                return digest
        elif expect is not None and self._kept(expect):
            return expect
        with self._reporting("cannot write to"):
            draft = self.root / "tmp" / secrets.token_hex(16)
            try:
                with draft.open("xb") as file:
                    digest = _copy(content, file, expect)
                    os.fchmod(file.fileno(), 0o444)
                    if self._durable:
                        file.flush()
                        os.fsync(file.fileno())
                if not self._kept(digest):
                    self._publish(draft, digest)
            finally:
                draft.unlink(missing_ok=True)
        return digest

    def read(self, digest: Digest) -> bytes:
        with self._reporting("cannot read from"), self._file(digest) as file:
            data = file.read()
            got = Digest.of(data)
            if got != digest:
                raise self._damaged(digest, got, file)
            return data

    def open(self, digest: Digest) -> BinaryIO:
        with self._reporting("cannot read from"):
            file = self._file(digest)
            try:
                self._verify(digest, file)
                file.seek(0)
            except BaseException:  # interrupted too: what is not handed out is closed here
                file.close()
                raise
            return file

    def stream(self, digest: Digest, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        if digest.size_bytes <= VERIFY_FIRST_BYTES:
            data = self.read(digest)
            starts = range(0, len(data), chunk_bytes)
            return (data[start : start + chunk_bytes] for start in starts)
        self._file(digest).close()  # BlobMissing is for the caller, not for the first `next`
        return self._stream(digest, chunk_bytes)

    def _stream(self, digest: Digest, chunk_bytes: int) -> Iterator[bytes]:
        with self._reporting("cannot read from"), self._file(digest) as file:
            hasher, size_bytes, held = hashlib.sha256(), 0, b""
            while chunk := file.read(chunk_bytes):
                hasher.update(chunk)
                size_bytes += len(chunk)
                if held:
                    yield held
                held = chunk
            got = Digest(hasher.hexdigest(), size_bytes)
            if got != digest:
                raise self._damaged(digest, got, file)
            yield held

    def path(self, digest: Digest) -> Path:
        with self._reporting("cannot read from"), self._file(digest) as file:
            if self._sound.get(digest) != _Stamp.of(os.fstat(file.fileno())):
                self._verify(digest, file)
        return self._place(digest)

    def delete(self, digest: Digest, *, if_before_ms: int | None = None) -> bool:
        place = self._place(digest)
        with self._reporting("cannot delete from"), self._locked(fcntl.LOCK_EX):
            status = _status(place)
            if status is None:
                return False
            if if_before_ms is not None and status.st_mtime_ns // 1_000_000 >= if_before_ms:
                return False
            place.unlink()
            return True

    def list(self) -> Iterator[BlobInfo]:
        with self._reporting("cannot list"):
            for shard in sorted((self.root / "sha256").iterdir()):
                names = sorted(os.listdir(shard)) if shard.is_dir() else []
                for name in names:
                    found = _NAME.fullmatch(name)
                    status = _status(shard / name) if found else None
                    if found and status and stat.S_ISREG(status.st_mode):
                        digest = Digest(found[1], int(found[2]))
                        yield BlobInfo(digest, status.st_mtime_ns // 1_000_000)

    def quarantine(self, digest: Digest) -> None:
        with self._reporting("cannot set a blob aside in"):
            self._set_aside(digest)

    def _place(self, digest: Digest) -> Path:
        Digest.parse(str(digest))  # a made-up hash must not become a path
        name = f"{digest.hash}-{digest.size_bytes}"
        return self.root / "sha256" / digest.hash[:2] / name

    def _file(self, digest: Digest) -> io.BufferedReader:
        """Open a blob, unverified. Never follows a link, never waits on a pipe."""
        place = self._place(digest)
        status = _status(place)
        if status is None:
            raise BlobMissing(digest, self.name)
        if not stat.S_ISREG(status.st_mode):
            self._set_aside(digest, status.st_ino)
            raise BlobMissing(digest, self.name)
        try:
            return os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except FileNotFoundError as error:
            raise BlobMissing(digest, self.name) from error

    def _verify(self, digest: Digest, file: io.BufferedReader) -> None:
        stamp = _Stamp.of(os.fstat(file.fileno()))
        got = Digest(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
        if got != digest:
            raise self._damaged(digest, got, file)
        if len(self._sound) >= _REMEMBERED:
            self._sound.clear()
        self._sound[digest] = stamp

    def _damaged(self, digest: Digest, got: Digest, file: BinaryIO) -> DigestMismatch:
        self._set_aside(digest, os.fstat(file.fileno()).st_ino)
        return DigestMismatch(want=digest, got=got, source=self.name)

    def _set_aside(self, digest: Digest, inode: int | None = None) -> None:
        """Quarantine a blob; with `inode`, only if no one has put a good copy there since."""
        place = self._place(digest)
        with self._locked(fcntl.LOCK_EX):
            status = _status(place)
            if status is not None and inode in (None, status.st_ino):
                place.rename(self.root / "quarantine" / f"{place.name}.{self._now_ms()}")

    def _kept(self, digest: Digest) -> bool:
        """Renew a sound copy and see that it is durable; set a damaged one aside."""
        try:
            place = self.path(digest)
        except (BlobMissing, DigestMismatch):
            return False
        with self._reporting("cannot write to"):
            with self._locked(fcntl.LOCK_SH):
                if not self._renew(digest):
                    return False
            self._flush_directory(place.parent)  # its writer may not have come to that yet
        return True

    def _renew(self, digest: Digest) -> bool:
        """Mark a blob as wanted now; false if it is not there. The caller holds the lock."""
        place = self._place(digest)
        status = _status(place)
        if status is None or not stat.S_ISREG(status.st_mode):
            return False
        if status.st_size != digest.size_bytes:
            return False
        now_ms = self._now_ms()
        if now_ms - status.st_mtime_ns // 1_000_000 >= RENEW_MS:
            os.utime(place, ns=(now_ms * 1_000_000,) * 2)
            if self._sound.get(digest) == _Stamp.of(status):
                self._sound[digest] = _Stamp.of(place.stat())
        return True

    def _publish(self, draft: Path, digest: Digest) -> None:
        place = self._place(digest)
        os.utime(draft, ns=(self._now_ms() * 1_000_000,) * 2)
        if not place.parent.exists():
            place.parent.mkdir(exist_ok=True)
            self._flush_directory(place.parent.parent)
        with self._locked(fcntl.LOCK_SH):
            draft.rename(place)
        self._sound[digest] = _Stamp.of(place.stat())
        self._flush_directory(place.parent)

    def _flush_directory(self, directory: Path) -> None:
        if self._durable:
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _remove_leftovers(self) -> None:
        for draft in (self.root / "tmp").iterdir():
            status = _status(draft)
            if status and self._now_ms() - status.st_mtime_ns // 1_000_000 > _LEFTOVER_MS:
                draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        with (self.root / "lock").open("rb") as file:
            fcntl.flock(file, kind)  # let go by closing
            yield

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{doing} {self.name}: {error.strerror or error}") from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _copy(content: bytes | Path | BinaryIO, to: BinaryIO, expect: Digest | None) -> Digest:
    """Copy and hash. Raises DigestMismatch as soon as the content cannot be `expect`."""
    hasher, size_bytes = hashlib.sha256(), 0
    for chunk in _chunks(content):
        hasher.update(chunk)
        size_bytes += len(chunk)
        if expect is not None and size_bytes > expect.size_bytes:
            break
        to.write(chunk)
    digest = Digest(hasher.hexdigest(), size_bytes)
    if expect is not None and digest != expect:
        raise DigestMismatch(want=expect, got=digest, source="the content to store")
    return digest


def _chunks(content: bytes | Path | BinaryIO) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                yield from _chunks(file)
        except OSError as error:
            raise StoreError(f"cannot read {content}: {error.strerror}") from error
        return
    while chunk := content.read(CHUNK_BYTES):
        yield chunk
