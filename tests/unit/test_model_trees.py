"""Weights leave the store as plain files, for those who may read them and for nobody else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import DigestMismatch, NotFound, SpecError
from flowmesh.sdk.client import Client
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.trees import Manifest, TreeFile
from flowmesh.wire import CreateRun
from support.models import PNG, Bench, bench, put_files, training

SECRET = b"what only alice may read"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def alice(served: Bench) -> Client:
    return served.client("alice")


@pytest.fixture
def mallory(served: Bench) -> Client:
    return served.client("mallory")


def upload(client: Client, files: dict[str, bytes]) -> str:
    store = MemoryStore()
    digest = put_files(store, files)
    for info in store.list():
        client.store_put(store.read(info.digest))
    return digest


def test_outputs_are_written_as_what_they_are(served: Bench, alice: Client, tmp_path: Path) -> None:
    run = served.run(alice, training())
    written = {name: one.path(tmp_path / "out") for name, one in run.outputs.items()}
    assert (written["curve"].name, written["curve"].read_bytes()) == ("curve.png", PNG)
    folder = written["adapter"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (folder / "adapter_config.json").write_text("ours to change")
    with pytest.raises(SpecError, match="holds something"):
        run.output("adapter").path(tmp_path / "out")
    assert (folder / "adapter_config.json").read_text() == "ours to change"
    assert run.output("curve").path(tmp_path / "out") == written["curve"], "a file is replaced"


def test_weights_are_downloaded_by_name_run_and_digest(
    served: Bench, alice: Client, tmp_path: Path
) -> None:
    digest = upload(alice, {"config.json": b"{}", "sub/part one.txt": b"1"})
    alice.tag_model(digest, "nested@v1")
    (tmp_path / "empty").mkdir()
    for what, place in (("nested@v1", "a/b"), (digest, "empty")):
        found = alice.download_model(what, tmp_path / place)
        assert (found / "sub" / "part one.txt").read_bytes() == b"1"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "a"}, "nothing is left beside"
    with pytest.raises(SpecError, match="holds something"):
        alice.download_model("nested@v1", tmp_path / "empty")
    with pytest.raises(SpecError, match="is there already"):
        (tmp_path / "file").write_text("")
        alice.download_model("nested@v1", tmp_path / "file")
    with pytest.raises(NotFound):
        alice.download_model("nested@v2", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_arrives_damaged_leaves_nothing(
    served: Bench, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = upload(alice, {"config.json": b"sound"})
    alice.tag_model(digest, "damaged")

    def spoilt(path: str, to: Path, **more: Any) -> Digest:
        to.write_bytes(b"rotten")
        return Digest.of(b"rotten")

    monkeypatch.setattr(type(alice.transport), "download", staticmethod(spoilt))
    with pytest.raises(DigestMismatch):
        alice.download_model("damaged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_downloaded_to_where_one_stands(
    served: Bench, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    alice.tag_model(upload(alice, {"config.json": b"{}"}), "standing")
    alice.download_model("standing", ".")
    assert (tmp_path / "here" / "config.json").read_bytes() == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_download_is_tried_again_from_its_beginning(
    served: Bench, alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What broke off in the middle is no part of what comes next."""
    alice.tag_model(upload(alice, {"config.json": b"whole"}), "broken")
    alice.transport.sleep = lambda pause_s: None
    whole = httpx.Response.iter_bytes
    tries: list[None] = []

    def breaking(response: httpx.Response, chunk_bytes: int | None = None) -> Iterator[bytes]:
        tries.append(None)
        if len(tries) == 1:
            yield b"who"
            raise httpx.ReadError("it broke off")
        yield from whole(response, chunk_bytes)

    monkeypatch.setattr(httpx.Response, "iter_bytes", breaking)
    alice.download_model("broken", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == b"whole"
    assert len(tries) > 1


def test_an_output_whose_name_leads_elsewhere_is_not_written(
    served: Bench, alice: Client, tmp_path: Path
) -> None:
    made = served.run(alice, training()).output("curve")
    for name in ("../out", "..", "a/b", ""):
        with pytest.raises(SpecError, match="no name for a file"):
            replace(made, name=name).path(tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_of_another_tenant_is_closed(
    served: Bench, alice: Client, mallory: Client, tmp_path: Path
) -> None:
    run = served.run(alice, training(rate=0.5))
    digest = run.output("adapter").digest
    for what in (digest, f"{run.id}:adapter"):
        with pytest.raises(NotFound):
            mallory.download_model(what, tmp_path / "out")
    path = f"/v1/trees/{Digest.parse(digest).hash}"
    for place in (path, f"{path}/adapter_config.json"):
        with pytest.raises(NotFound):
            mallory.transport.request("GET", place)
        assert alice.transport.request("GET", place)
    with pytest.raises(NotFound, match="holds no file 'nothing'"):
        alice.transport.request("GET", f"{path}/nothing")


def test_a_shared_name_opens_a_tree_and_no_other_blob(
    served: Bench, alice: Client, mallory: Client, tmp_path: Path
) -> None:
    digest = upload(alice, {"config.json": b"for all", "weights.bin": b"too"})
    alice.tag_model(digest, "open", shared=True)
    assert (mallory.download_model("open", tmp_path / "out") / "config.json").exists()
    with pytest.raises(NotFound):
        mallory.store_get(Digest.of(b"for all").hash)
    alice.remove_model("open", shared=True)
    with pytest.raises(NotFound):
        mallory.download_model(digest, tmp_path / "again")


def test_to_name_a_blob_in_a_manifest_is_not_to_read_it(
    served: Bench, alice: Client, mallory: Client, tmp_path: Path
) -> None:
    """A manifest is easily made up; what it names must be the tenant's own."""
    alice.store_put(SECRET)
    stolen = Manifest((TreeFile("config.json", Digest.of(SECRET)),)).encode()
    digest = mallory.store_put(stolen)
    path = f"/v1/trees/{digest.hash}"
    assert mallory.transport.request("GET", path) == stolen
    with pytest.raises(NotFound):
        mallory.transport.request("GET", f"{path}/config.json")
    for shared in (False, True):
        with pytest.raises(NotFound, match="store of tenant mallory"):
            mallory.tag_model(str(digest), "mine", shared=shared)
    with pytest.raises(NotFound, match="store of tenant mallory"):
        mallory.submit(training(model={"digest": str(digest)}), inputs={"data": [{"prompt": "a"}]})
    disguised: dict[str, Any] = {
        "document": json.dumps(training()),
        "tenant": "mallory",
        "key": "disguised",
        "inputs": {"data": {"kind": "tree", "digest": str(digest)}},
    }
    with pytest.raises(NotFound, match="store of tenant mallory"):
        mallory.transport.request("POST", "/v1/runs", body=CreateRun(**disguised))
    with pytest.raises(NotFound):
        mallory.download_model(str(digest), tmp_path / "out")
    assert alice.store_get(Digest.of(SECRET)) == SECRET
