"""Care for a blob store: find damage, and take away what nobody needs."""

from collections.abc import Iterable
from dataclasses import dataclass

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, SpecError
from flowmesh.stores.base import BlobStore
from flowmesh.stores.trees import blobs_of_tree


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and what was found or done.

    Attributes:
        blobs, size_bytes: all that the store held when it was listed.
        bad: damaged blobs, now in quarantine; and manifests to be kept that are none.
        missing: blobs that are needed and not there (`collect` only).
        removed, removed_bytes: what was taken away, or would be in a dry run.
    """

    blobs: int = 0
    size_bytes: int = 0
    bad: tuple[Digest, ...] = ()
    missing: tuple[Digest, ...] = ()
    removed: tuple[Digest, ...] = ()
    removed_bytes: int = 0
    dry_run: bool = False


def verify(store: BlobStore) -> Report:
    """Read every blob; damaged ones go into quarantine."""
    blobs, size_bytes, bad = 0, 0, []
    for info in store.list():
        try:
            for _ in store.stream(info.digest):
                pass
        except DigestMismatch:
            bad.append(info.digest)
        except BlobMissing:
            continue  # deleted since it was listed
        blobs += 1
        size_bytes += info.digest.size_bytes
    return Report(blobs=blobs, size_bytes=size_bytes, bad=tuple(sorted(bad)))


def collect(
    store: BlobStore,
    *,
    live: Iterable[Digest],
    trees: Iterable[Digest],
    grace_ms: int,
    now_ms: int,
    dry_run: bool = False,
) -> Report:
    """Remove the blobs that are not needed and were last renewed over `grace_ms` ago.

    Args:
        live: blobs to keep.
        trees: manifests to keep, with all files that they name. Where one is missing or
            damaged its files cannot be known and are kept only if something else needs them.
        grace_ms: at least as long as an upload may take to become part of a run, and well
            above `stores.base.RENEW_MS`.
        now_ms: by the clock that the store's own times come from.

    `live` and `trees` must be read after `now_ms`: what was put before and became live
    since is then in them, and what was put since is young.
    """
    needed, bad = set(live), []
    for tree in trees:
        needed.add(tree)
        try:
            needed |= blobs_of_tree(store, tree)
        except DigestMismatch:
            bad.append(tree)
        except BlobMissing:
            pass  # reported below, with everything else that is not there
        except SpecError:
            bad.append(tree)
    blobs, size_bytes, removed = 0, 0, []
    before_ms = now_ms - grace_ms
    held: set[Digest] = set()
    for info in store.list():
        blobs += 1
        size_bytes += info.digest.size_bytes
        held.add(info.digest)
        if info.digest in needed or info.modified_ms >= before_ms:
            continue
        if dry_run or store.delete(info.digest, if_before_ms=before_ms):
            removed.append(info.digest)
    missing = needed - held
    missing -= store.has(missing)  # some may have come since
    return Report(
        blobs=blobs,
        size_bytes=size_bytes,
        bad=tuple(sorted(bad)),
        missing=tuple(sorted(missing)),
        removed=tuple(sorted(removed)),
        removed_bytes=sum(digest.size_bytes for digest in removed),
        dry_run=dry_run,
    )
