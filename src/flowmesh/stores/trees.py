"""Trees: directories in a blob store, as a model's or a data set's.

A tree is a blob, its manifest: canonical JSON `{"files":[{"digest":...,"path":...},...]}`,
sorted by path. Equal directories give equal manifests, and trees share the files that
are equal. A manifest from elsewhere is not believed: no path in it can leave the folder.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import msgspec

from flowmesh.base.digest import Digest, canonical
from flowmesh.base.errors import LimitExceeded, Problem, SpecError, StoreError
from flowmesh.stores.base import BlobStore

MAX_FILES = 100_000
MAX_PATH_BYTES = 1_000
MAX_NAME_BYTES = 255
MAX_MANIFEST_BYTES = 64 << 20
#: Why a hard link may be refused although a copy would do.
_CANNOT_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP}


@dataclass(frozen=True, slots=True)
class TreeFile:
    path: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a tree, sorted by path; every path is relative, plain and unique."""

    files: tuple[TreeFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.digest.size_bytes for file in self.files)

    def encode(self) -> bytes:
        ordered = sorted(self.files, key=lambda file: file.path)
        files = [{"digest": str(file.digest), "path": file.path} for file in ordered]
        return canonical({"files": files})


class _FileEntry(msgspec.Struct, forbid_unknown_fields=True):
    digest: str
    path: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    files: list[_FileEntry]


class Keeper(Protocol):
    """The part of a store that it takes to keep a tree."""

    def put(self, content: bytes | Path) -> Digest: ...


def put_tree(store: Keeper, directory: Path, *, within: Path | None = None) -> Digest:
    """Store the files under a directory; return the digest of its manifest.

    A link to a file is followed if it ends inside `within` (by default the directory
    itself). Empty directories are not kept.

    Raises:
        SpecError: not a directory, no files in it, a link that leaves it or leads to a
            directory, something that is no regular file, or a name that a tree cannot hold.
        LimitExceeded: more than `MAX_FILES` files.
    """
    if not directory.is_dir():
        raise _wrong(f"{directory} is not a directory; a tree is made of one")
    bounds = (within or directory).resolve()
    found: list[tuple[str, Path]] = []
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        if fault := _path_fault(name):
            raise _wrong(f"the name of {name!r} {fault}", file=str(directory))
        found.append((name, _real_file(path, bounds)))
        if len(found) > MAX_FILES:
            raise LimitExceeded(f"{directory} holds more than {MAX_FILES} files")
    if not found:
        raise _wrong(f"{directory} holds no files")
    files = tuple(TreeFile(name, store.put(path)) for name, path in sorted(found))
    return store.put(Manifest(files).encode())


def read_manifest(store: BlobStore, digest: Digest) -> Manifest:
    """Read and check a manifest.

    Raises BlobMissing, DigestMismatch; SpecError if the blob is no manifest or one of its
    paths could leave the folder; LimitExceeded.
    """
    source = f"tree {digest.short}"
    if digest.size_bytes > MAX_MANIFEST_BYTES:
        raise LimitExceeded(
            f"{source}: the manifest is {digest.size_bytes} bytes, over {MAX_MANIFEST_BYTES}"
        )
    data = store.read(digest)
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"not the manifest of a tree: {error}", file=source) from error
    if len(document.files) > MAX_FILES:
        raise LimitExceeded(f"{source} holds more than {MAX_FILES} files")
    _check_paths([entry.path for entry in document.files], source)
    files = []
    for n, entry in enumerate(document.files):
        try:
            files.append(TreeFile(entry.path, Digest.parse(entry.digest)))
        except ValueError as error:
            raise _wrong(str(error), file=source, path=f"files[{n}].digest") from error
    manifest = Manifest(tuple(files))
    if manifest.encode() != data:
        raise _wrong("the manifest is not in canonical form, sorted by path", file=source)
    return manifest


def materialise(store: BlobStore, digest: Digest, directory: Path) -> None:
    """Lay a tree out as a directory, all of it or nothing; files must not be written to.

    Files are hard links to the store's own where that can be, else read-only copies. A
    directory that is there already is taken to be the tree: no other code makes one there.
    A process that dies on the way leaves a `.tree-*` directory beside it.

    Raises BlobMissing, DigestMismatch, SpecError, LimitExceeded, StoreError.
    """
    if directory.is_dir():
        return
    manifest = read_manifest(store, digest)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".tree-", dir=directory.parent))
        try:
            for file in manifest.files:
                place = draft / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                _lay_out(store, file.digest, place)
            draft.chmod(0o755)
            _rename_unless_there(draft, directory)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"cannot lay out a tree at {directory}: {error.strerror}") from error


def blobs_of_tree(store: BlobStore, digest: Digest) -> set[Digest]:
    """The digests that a tree needs: its manifest's own and those of its files."""
    return {digest, *(file.digest for file in read_manifest(store, digest).files)}


def _walk(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise StoreError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(directory, onerror=fail):
        for name in names:
            yield Path(parent, name)
        for name in folders:
            if Path(parent, name).is_symlink():
                raise _wrong(f"{Path(parent, name)} is a link to a directory; copy it instead")


def _real_file(path: Path, bounds: Path) -> Path:
    real = path.resolve()
    if not real.is_relative_to(bounds):
        raise _wrong(f"{path} is a link that leaves {bounds}; copy the file instead")
    if not real.is_file():
        kind = "is a link to nothing" if not real.exists() else "is not a regular file"
        raise _wrong(f"{path} {kind}")
    return real


def _check_paths(paths: list[str], source: str) -> None:
    seen: set[str] = set()
    for n, path in enumerate(paths):
        if fault := _path_fault(path):
            raise _wrong(f"{path[:100]!r} {fault}", file=source, path=f"files[{n}].path")
        if path in seen:
            raise _wrong(f"{path!r} is there twice", file=source, path=f"files[{n}].path")
        seen.add(path)
    for n, path in enumerate(paths):
        for parent in PurePosixPath(path).parents:
            if str(parent) in seen:
                message = f"{str(parent)!r} is both a file and a directory"
                raise _wrong(message, file=source, path=f"files[{n}].path")


def _path_fault(path: str) -> str:
    """What makes this no path of a tree, or nothing."""
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if not 0 < size_bytes <= MAX_PATH_BYTES:
        return f"is {size_bytes} bytes long; paths have 1 to {MAX_PATH_BYTES}"
    if path.startswith("/"):
        return "is an absolute path; paths of a tree are relative"
    if any(ord(character) < 32 or character in "\\\x7f" for character in path):
        return "holds a backslash or control character"
    for name in path.split("/"):
        if name in ("", ".", ".."):
            return f"has a part {name!r}, which names no file"
        if len(name.encode()) > MAX_NAME_BYTES:
            return f"has a part over {MAX_NAME_BYTES} bytes"
    return ""


def _lay_out(store: BlobStore, digest: Digest, place: Path) -> None:
    source = store.path(digest)
    if source is not None:
        try:
            os.link(source, place, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
    with place.open("xb") as file:
        for chunk in store.stream(digest):
            file.write(chunk)
        os.fchmod(file.fileno(), 0o444)


def _rename_unless_there(draft: Path, directory: Path) -> None:
    try:
        draft.rename(directory)
    except OSError as error:
        # Somebody else was faster, with the same tree.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _wrong(message: str, **place: Any) -> SpecError:
    return SpecError(Problem(message, **place))
