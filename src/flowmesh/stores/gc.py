"""Care for a blob store: find damage, and take away what nobody needs."""

from collections.abc import Iterable
from dataclasses import dataclass

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, LimitExceeded, SpecError
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
    needed, bad = _with_trees(store, live, trees)
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


@dataclass(frozen=True, slots=True)
class Removal:
    """What `remove_trees` took away; `done` are trees of which nothing more can go."""

    done: list[Digest]
    removed: list[Digest]

    @property
    def removed_bytes(self) -> int:
        return sum(digest.size_bytes for digest in self.removed)


def remove_trees(
    store: BlobStore,
    unwanted: Iterable[Digest],
    *,
    live: Iterable[Digest],
    kept: Iterable[Digest],
    before_ms: int,
) -> Removal:
    """Remove trees with those of their blobs that nothing else needs.

    The manifest goes last, so that what was cut off on the way can be taken up again. A tree
    that is needed itself is not done, nor is one with a blob that was renewed since
    `before_ms`: somebody may be about to name it.

    Args:
        live, kept: blobs and trees to keep, as for `collect`; read after `before_ms`, which is
            well above `stores.base.RENEW_MS` ago.
    """
    needed, _ = _with_trees(store, live, kept)
    result = Removal([], [])
    for tree in unwanted:
        if tree in needed:
            continue  # as a whole, by somebody; perhaps not for long
        try:
            files = blobs_of_tree(store, tree) - {tree}
        except (BlobMissing, DigestMismatch, SpecError, LimitExceeded):
            result.done.append(tree)  # gone, or no tree: nothing of it can be found
            continue
        young = False
        for blob in (*sorted(files), tree):
            if blob in needed or (young and blob == tree):
                continue  # what another tree needs goes with that one
            if store.delete(blob, if_before_ms=before_ms):
                result.removed.append(blob)
            else:
                young |= _is_there(store, blob)
        if not young:
            result.done.append(tree)
    return result


def _is_there(store: BlobStore, digest: Digest) -> bool:
    """Whether the store holds a blob, told without renewing it."""
    try:
        for _ in store.stream(digest):
            break
    except BlobMissing:
        return False
    except DigestMismatch:
        pass  # set aside by this
    return True


def _with_trees(
    store: BlobStore, live: Iterable[Digest], trees: Iterable[Digest]
) -> tuple[set[Digest], list[Digest]]:
    """All blobs that are needed; and the trees whose manifests are damaged or none."""
    needed, bad = set(live), []
    for tree in trees:
        needed.add(tree)
        try:
            needed |= blobs_of_tree(store, tree)
        except (DigestMismatch, SpecError):
            bad.append(tree)
        except BlobMissing:
            pass  # reported with everything else that is not there
    return needed, bad
