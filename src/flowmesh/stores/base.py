"""What the fabric asks of storage. The docstrings here are the specification.

All implementations pass `tests/conformance`. Any call may be made from any thread. A
blob store may be used by many processes at once, a journal by one.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from flowmesh.base.digest import Digest

#: One SQL statement and its parameters.
Statement = tuple[str, Sequence[object]]

#: Blobs up to this size are verified before their first byte is handed out.
VERIFY_FIRST_BYTES = 8 << 20

#: How much is read or written at a time, unless the caller says.
CHUNK_BYTES = 1 << 20

#: How stale `BlobInfo.modified_ms` may be; grace periods must be well above it.
RENEW_MS = 60_000


def wall_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob and when it was last put or asked after with `has` (to within `RENEW_MS`)."""

    digest: Digest
    modified_ms: int


class BlobStore(Protocol):
    """Bytes by digest. A blob is there whole or not at all, and never changes.

    Damage is found by whoever reads. The first reader gets DigestMismatch and the copy is
    moved into quarantine; from then on the blob is missing, until someone puts it again.
    Every call may be repeated. Every call may raise StoreError when the medium fails, and
    ValueError for a digest that `Digest.parse` would refuse.
    """

    name: str

    def has(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that the store holds, by name and size; content is not read.

        What is reported is renewed: a collection with a grace period that starts later
        leaves it alone, so a caller may rely on the answer for that long.
        """
        ...

    def put(self, content: bytes | Path | BinaryIO, expect: Digest | None = None) -> Digest:
        """Keep bytes, a file's bytes, or what is left of a stream; return the digest.

        Atomic, and durable when it returns. Putting what is there renews it, and replaces
        a damaged copy. If the store holds `expect` already, `content` may be left unread.

        Raises:
            DigestMismatch: the content is not `expect`; nothing was stored. Content longer
                than `expect` is read no further.
        """
        ...

    def read(self, digest: Digest) -> bytes:
        """All bytes, verified. Raises BlobMissing, DigestMismatch."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """A file of the bytes, verified as a whole before this returns; the caller closes it.

        Raises BlobMissing, DigestMismatch.
        """
        ...

    def stream(self, digest: Digest, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes in pieces.

        BlobMissing is raised by the call itself, and so is DigestMismatch for blobs up to
        `VERIFY_FIRST_BYTES`. Larger ones are verified on the way: the last piece is handed
        out only if the whole is right, else the iterator raises DigestMismatch in its place.
        So who has seen the iterator end has seen the right bytes.
        """
        ...

    def path(self, digest: Digest) -> Path | None:
        """A read-only file of the bytes, or None where the store is not on a local disk.

        The content is verified unless this store object has verified that same file before
        and it has not been written since. Raises BlobMissing, DigestMismatch.
        """
        ...

    def delete(self, digest: Digest, *, if_before_ms: int | None = None) -> bool:
        """Forget a blob; true if one was removed.

        With `if_before_ms`, only if it was last renewed before that time: decided in one
        piece with the removal, so a blob that is put or asked after meanwhile stays.
        """
        ...

    def list(self) -> Iterator[BlobInfo]:
        """Every blob, in no set order; what comes or goes meanwhile may be there or not."""
        ...

    def quarantine(self, digest: Digest) -> None:
        """Set a blob aside for inspection: it is missing from now on. No effect if it is."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The core's state, encoded, as it was after the journal's record `seq`."""

    seq: int
    state: bytes
    at_ms: int


class Journal(Protocol):
    """All events and decisions, in order; the control plane's only durable state.

    `seq` counts from 1, without gaps. Order of calls is order of records.
    """

    def append(self, at_ms: int, records: bytes, rows: Sequence[Statement] = ()) -> Future[int]:
        """Add one record and change the read models with it, in one transaction.

        The future gives the record's `seq` once it is durable. Until then the record may or
        may not survive a crash. It cannot be cancelled. If an append fails, so does every
        later one (a record must not follow on one that is missing): open the journal
        again and replay.
        """
        ...

    def replay(self, after_seq: int = 0) -> Iterator[tuple[int, bytes]]:
        """`(seq, records)` of what is durable, in order, from `after_seq + 1` on."""
        ...

    def checkpoint(self, seq: int, state: bytes, at_ms: int) -> Future[None]:
        """Keep the state reached after `seq`; older checkpoints but the last few are dropped.

        The future fails with StoreError if the journal holds no record `seq`.
        """
        ...

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are as they were written, if any.

        A damaged one is passed over, with a warning in the log.
        """
        ...
