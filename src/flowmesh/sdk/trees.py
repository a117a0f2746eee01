"""A tree of the server's store as a plain directory here: every file is verified."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from flowmesh.base.digest import Digest
from flowmesh.base.errors import DigestMismatch, Problem, SpecError
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.trees import Manifest, read_manifest

if TYPE_CHECKING:
    from flowmesh.sdk.client import Client

_FILE_S = 600.0


def manifest_of(client: "Client", tree: Digest) -> Manifest:
    """Raises NotFound for what is not there or not the tenant's; SpecError if it is no tree."""
    data = client.transport.request(
        "GET", f"/v1/trees/{tree.hash}", params={"size": tree.size_bytes}, timeout_s=_FILE_S
    )
    store = MemoryStore("the server")
    store.put(data, tree)
    return read_manifest(store, tree)


def fetch_tree(client: "Client", tree: Digest, place: Path) -> None:
    """Write a tree's files under `place`, all of them or nothing.

    The files are ordinary ones, to be changed at will. `place` may be there if it is empty.

    Raises:
        SpecError: `place` is a file, or a directory that holds something.
        NotFound: the tree or a file of it is not in the store, or not the tenant's.
        DigestMismatch: a file arrived damaged.
    """
    place = place.absolute()  # beside `.` is not within it
    check_place(place)
    manifest = manifest_of(client, tree)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=place.parent))
    try:
        for file in manifest.files:
            (draft / file.path).parent.mkdir(parents=True, exist_ok=True)
            got = client.transport.download(
                f"/v1/trees/{tree.hash}/{quote(file.path)}",
                draft / file.path,
                params={"size": tree.size_bytes},
                timeout_s=_FILE_S,
            )
            if got != file.digest:
                raise DigestMismatch(want=file.digest, got=got, source="the server")
        draft.chmod(0o755)
        check_place(place)  # it may have been filled meanwhile
        os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_place(place: Path) -> None:
    """Raises SpecError unless a directory can be made of `place` without a loss."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise SpecError(Problem("is there already; name a directory that is not", str(place)))
    if place.is_dir() and any(place.iterdir()):
        message = "is a directory that holds something; name another one, or empty it"
        raise SpecError(Problem(message, str(place)))
