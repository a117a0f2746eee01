"""The blobs that an artifact is made of: its own, and of a tree those of its files."""

from collections.abc import Iterable

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, SpecError
from flowmesh.spec.action import Artifact
from flowmesh.stores.base import BlobStore
from flowmesh.stores.trees import read_manifest


def parts_of(store: BlobStore, artifacts: Iterable[Artifact]) -> set[Digest]:
    """Every blob that `artifacts` need, whether it is there or not.

    Of a tree whose manifest is lost or is none, its files cannot be known: what is missing
    then is the manifest, or what is wrong with it is told by whoever uses it.
    """
    needed: set[Digest] = set()
    for artifact in artifacts:
        needed.add(artifact.address)
        if artifact.kind == "tree":
            try:
                needed |= {file.digest for file in read_manifest(store, artifact.address).files}
            except (BlobMissing, DigestMismatch, SpecError):
                continue
    return needed
