"""A file of a tree that a step made is lost: the step makes the tree again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmesh.base.digest import Digest
from flowmesh.server.parts import parts_of
from flowmesh.spec.action import Artifact
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.trees import read_manifest
from support.fabric import until
from support.models import DATA, Bench, bench, put_files, training


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("flowmesh.core.retry.BACKOFF_MS", 0)
    with bench(tmp_path) as started:
        yield started


def test_a_tree_needs_its_files_as_far_as_they_are_known() -> None:
    store = MemoryStore()
    digest = put_files(store, {"a": b"1", "b/c": b"2"})
    whole = {Digest.parse(digest), Digest.of(b"1"), Digest.of(b"2")}
    tree = Artifact("tree", digest)
    assert parts_of(store, [tree]) == whole
    store.delete(Digest.of(b"1"))
    assert parts_of(store, [tree]) == whole
    store.delete(Digest.parse(digest))
    assert parts_of(store, [tree]) == {Digest.parse(digest)}
    no_tree = Artifact("tree", str(store.put(b"no manifest")))
    assert parts_of(store, [no_tree]) == {no_tree.address}
    file = Artifact("file", digest)
    assert parts_of(store, [file]) == {Digest.parse(digest)}


def weights_of(served: Bench, tree: str) -> Digest:
    """The blob behind a tree's weights."""
    files = {one.path: one.digest for one in read_manifest(served.store, Digest.parse(tree)).files}
    return files["adapter_model.safetensors"]


def test_a_known_result_whose_files_are_gone_is_made_again(served: Bench) -> None:
    client = served.client("alice")
    first = served.run(client, training()).output("adapter")
    lost = weights_of(served, first.digest)
    served.store.delete(lost)
    served.done.clear()
    again = served.run(client, training())
    assert again.last.status == "succeeded"
    assert served.done == ["tune"]
    assert again.output("adapter").digest == first.digest
    assert served.store.has([lost]) == {lost}


@pytest.mark.parametrize("reported", ["the file", "the tree"])
def test_a_file_that_a_worker_misses_is_made_again_with_its_tree(
    served: Bench, monkeypatch: pytest.MonkeyPatch, reported: str
) -> None:
    """Lost after the tree was made and before the next step has read it."""
    client = served.client("alice")
    run = client.submit(training(), inputs={"data": DATA})
    until(lambda: served.work() or "tune" in served.done, "the first step")
    until(lambda: run.view().steps[0].status == "succeeded", "its end")
    tree = run.last.steps[0].outputs["adapter"].digest
    if reported == "the tree":
        miss = Bench._lost

        def lost(self: Bench, artifact: Artifact) -> Digest | None:
            return artifact.address if miss(self, artifact) else None

        monkeypatch.setattr(Bench, "_lost", lost)
    served.store.delete(weights_of(served, tree))
    until(lambda: served.work() or run.view().status != "running", "the run to settle")
    assert run.last.status == "succeeded"
    assert served.done == ["tune", "tune", "measure"]


def test_a_file_of_a_given_model_cannot_be_made_again(served: Bench) -> None:
    client = served.client("alice")
    store = MemoryStore()
    digest = put_files(store, {"config.json": b"{}", "model.safetensors": b"given"})
    for info in store.list():
        client.store_put(store.read(info.digest))
    run = client.submit(training(model={"digest": digest}), inputs={"data": DATA})
    served.store.delete(Digest.of(b"given"))
    until(lambda: served.work() or run.view().status != "running", "the run to fail")
    assert (run.last.status, served.done) == ("failed", [])
