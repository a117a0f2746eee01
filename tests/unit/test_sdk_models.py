"""A model is converted once, and known again by what fixes its content."""

import os
import struct
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import SpecError
from flowmesh.sdk.models import ModelImporter, check_source, model_source
from flowmesh.spec.workflow import ModelSource
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import read_manifest


class Destination:
    """A store, with or without a directory that the importer may write to."""

    def __init__(self, root: Path, *, is_local: bool) -> None:
        self.store = FileStore(root)
        self.uploads = 0
        self._is_local = is_local

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return set(digests) - self.store.has(digests)

    def upload(self, digest: Digest, content: bytes | Path) -> None:
        self.uploads += 1
        self.store.put(content, digest)

    def local_store(self) -> Path | None:
        return self.store.root if self._is_local else None


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The smallest folder that is a model: a configuration and empty weights."""
    pytest.importorskip("safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


@pytest.fixture
def importer(tmp_path: Path) -> Callable[[list[str]], ModelImporter]:
    return lambda notes: ModelImporter(tmp_path / "home", notes.append)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_model_is_made_once_and_again_when_it_changes(
    tmp_path: Path,
    model: Path,
    importer: Callable[[list[str]], ModelImporter],
    is_local: bool,
) -> None:
    notes: list[str] = []
    there = Destination(tmp_path / "store", is_local=is_local)
    source = ModelSource(path="model")
    first = importer(notes).tree(source, tmp_path, there)
    assert not there.missing([Digest.parse(one) for one in first.blobs])
    files = read_manifest(there.store, Digest.parse(first.digest)).files
    assert [file.path for file in files] == ["config.json", "model.safetensors"]
    assert there.uploads == (0 if is_local else 3)

    told = len(notes)
    assert importer(notes).tree(source, tmp_path, there) == first
    assert len(notes) == told, "made again although nothing has changed"

    (model / "config.json").write_text('{"model_type": "gemma"}')
    os.utime(model / "config.json", ns=(1, 1))
    assert importer(notes).tree(source, tmp_path, there).digest != first.digest


def test_an_adapter_is_copied_as_it_is(
    tmp_path: Path, importer: Callable[[list[str]], ModelImporter]
) -> None:
    """So that what was downloaded is the same tree again; what trainers leave stays behind."""
    pytest.importorskip("safetensors")
    folder = tmp_path / "lora"
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    there = Destination(tmp_path / "store", is_local=True)
    source = ModelSource(path="lora")
    assert check_source(source, tmp_path) is None
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-10" / "trainer_state.json").write_text("{}")
    without = importer([]).tree(source, tmp_path, there)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    manifest = read_manifest(there.store, Digest.parse(without.digest))
    assert [file.path for file in manifest.files] == names
    for name in names:
        digest = next(file.digest for file in manifest.files if file.path == name)
        assert there.store.read(digest) == (folder / name).read_bytes()

    (folder / "flowmesh.json").write_text('{"base":"sha256:x"}')
    origin = importer([]).tree(source, tmp_path, there)
    files = read_manifest(there.store, Digest.parse(origin.digest)).files
    assert [file.path for file in files] == [*names, "flowmesh.json"]

    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(SpecError, match="the type 'IA3'; only LORA"):
        importer([]).tree(source, tmp_path, there)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"a pickle")
    with pytest.raises(SpecError, match="is not a safetensors file"):
        importer([]).tree(source, tmp_path, there)


def test_a_store_that_lost_a_file_is_given_it_again(
    tmp_path: Path, model: Path, importer: Callable[[list[str]], ModelImporter]
) -> None:
    there = Destination(tmp_path / "store", is_local=True)
    source = ModelSource(path=str(model))
    first = importer([]).tree(source, Path(), there)
    there.store.delete(Digest.parse(first.blobs[0]))
    assert importer([]).tree(source, Path(), there) == first
    assert there.missing([Digest.parse(first.blobs[0])]) == set()


def test_what_is_no_model_is_refused_without_a_trace(
    tmp_path: Path, model: Path, importer: Callable[[list[str]], ModelImporter]
) -> None:
    (model / "model.safetensors").write_bytes(b"a pickle")
    there = Destination(tmp_path / "store", is_local=True)
    with pytest.raises(SpecError, match="is not a safetensors file") as caught:
        importer([]).tree(ModelSource(path="model"), tmp_path, there)
    assert "Traceback" not in str(caught.value)
    assert list(there.store.list()) == []
    assert list((tmp_path / "home" / "imports").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ModelSource(package="click"), "package 'click' holds no model"),
        (ModelSource(package="clicc"), "did you mean 'click'?"),
        (ModelSource(path="pickled"), "pickled' holds no *.safetensors weights"),
        (ModelSource(path="bare"), "bare' is neither a model nor an adapter: the folder has no"),
        (ModelSource(path="lora"), "lora' holds no adapter_model.safetensors weights"),
        (ModelSource(path="nowhere"), "there is no model at"),
    ],
)
def test_what_cannot_be_a_model_is_known_before_anything_is_made(
    tmp_path: Path, source: ModelSource, words: str
) -> None:
    for name in ("pickled", "bare"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    fault = check_source(source, tmp_path)
    assert fault is not None
    assert words in fault[1]


def test_a_source_from_options() -> None:
    assert model_source(package="x", path=None).package == "x"
    with pytest.raises(SpecError, match="exactly one of package"):
        model_source(package="x", path="y")
    with pytest.raises(SpecError, match="needs `revision`"):
        model_source(hub="a/b")
