"""Trees: manifests from elsewhere, links, laying out; and collecting around them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.digest import Digest, canonical
from flowmesh.base.errors import BlobMissing, DigestMismatch, LimitExceeded, SpecError
from flowmesh.stores import trees
from flowmesh.stores.base import BlobStore
from flowmesh.stores.files import FileStore
from flowmesh.stores.gc import collect, verify
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.trees import blobs_of_tree, materialise, put_tree, read_manifest

NOW_MS = 1_000_000_000_000
HOUR_MS = 3_600_000
EMPTY = str(Digest.of(b""))


def fill(directory: Path) -> Path:
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "config.json").write_bytes(b"{}")
    (directory / "sub" / "weights").write_bytes(b"w" * 1000)
    (directory / "sub" / "deep" / "copy").write_bytes(b"w" * 1000)
    return directory


def put_manifest(store: BlobStore, *paths: str, digest: str = EMPTY) -> Digest:
    return store.put(canonical({"files": [{"path": path, "digest": digest} for path in paths]}))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryStore()
    return FileStore(tmp_path / "store", durable=False)


def test_a_tree_comes_back_as_it_was(store: BlobStore, tmp_path: Path) -> None:
    source = fill(tmp_path / "model")
    digest = put_tree(store, source)
    materialise(store, digest, tmp_path / "out" / "tree")
    assert contents(tmp_path / "out" / "tree") == contents(source)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tree"]


def test_laying_out_again_changes_nothing(store: BlobStore, tmp_path: Path) -> None:
    digest = put_tree(store, fill(tmp_path / "model"))
    materialise(store, digest, tmp_path / "tree")
    materialise(store, digest, tmp_path / "tree")
    assert contents(tmp_path / "tree") == contents(tmp_path / "model")


def test_equal_files_are_stored_once_and_the_manifest_is_as_documented(tmp_path: Path) -> None:
    store = MemoryStore()
    digest = put_tree(store, fill(tmp_path / "model"))
    weights, config = Digest.of(b"w" * 1000), Digest.of(b"{}")
    assert json.loads(store.read(digest)) == {
        "files": [
            {"digest": str(config), "path": "config.json"},
            {"digest": str(weights), "path": "sub/deep/copy"},
            {"digest": str(weights), "path": "sub/weights"},
        ]
    }
    assert blobs_of_tree(store, digest) == {digest, weights, config}
    assert read_manifest(store, digest).size_bytes == 2002


def test_files_of_a_local_store_are_linked_not_copied(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    materialise(store, put_tree(store, fill(tmp_path / "model")), tmp_path / "tree")
    path = store.path(Digest.of(b"{}"))
    assert (tmp_path / "tree" / "config.json").samefile(path)


def test_a_tree_with_a_missing_file_is_not_laid_out_at_all(
    store: BlobStore, tmp_path: Path
) -> None:
    digest = put_tree(store, fill(tmp_path / "model"))
    store.delete(Digest.of(b"w" * 1000))
    with pytest.raises(BlobMissing):
        materialise(store, digest, tmp_path / "out" / "tree")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "a/../../x", "/etc/passwd", "", ".", "..", "a//b", "a/", "./a", "a\\b"),
        *("a\0b", "a\x1bb", "a\nb", "a\x7f", "a/" + "b" * 256, "a/" * 500 + "b"),
    ],
)
def test_no_path_leaves_the_folder(store: BlobStore, tmp_path: Path, path: str) -> None:
    digest = put_manifest(store, "a", path)
    with pytest.raises(SpecError, match=r"files\[1\].path"):
        materialise(store, digest, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


@given(st.lists(st.text(alphabet="ab./\\\0é", min_size=1, max_size=8), max_size=4))
def test_every_path_of_a_manifest_stays_inside(paths: list[str]) -> None:
    """Whatever is written in it."""
    store = MemoryStore()
    try:
        manifest = read_manifest(store, put_manifest(store, *paths))
    except SpecError:
        return
    for file in manifest.files:
        assert os.path.normpath(os.path.join("/root", file.path)) == f"/root/{file.path}"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"not json", "not the manifest of a tree"),
        (b"\xff", "not the manifest of a tree"),
        (b"[]", "not the manifest of a tree"),
        (b'{"files":[],"more":1}', "not the manifest of a tree"),
        (b'{"files":[{"path":"a"}]}', "not the manifest of a tree"),
        (b'{"files":[{"digest":"sha256:0","path":"a"}]}', r"files\[0\].digest"),
        (b'{"files": []}', "canonical"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, says: str) -> None:
    store = MemoryStore()
    with pytest.raises(SpecError, match=says):
        read_manifest(store, store.put(data))


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (("a", "a"), "twice"),
        (("a", "a/b"), "both a file and a directory"),
        (("a/b/c", "a/b"), "both a file and a directory"),
        (("b", "a"), "sorted"),
        (("/etc/passwd",), "absolute"),
    ],
)
def test_paths_that_clash_are_refused(paths: tuple[str, ...], says: str) -> None:
    store = MemoryStore()
    with pytest.raises(SpecError, match=says):
        read_manifest(store, put_manifest(store, *paths))


def test_limits_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = MemoryStore()
    monkeypatch.setattr(trees, "MAX_FILES", 2)
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        read_manifest(store, put_manifest(store, "a", "b", "c"))
    with pytest.raises(LimitExceeded, match="more than 2 files"):
        put_tree(store, fill(tmp_path / "model"))
    monkeypatch.setattr(trees, "MAX_MANIFEST_BYTES", 10)
    with pytest.raises(LimitExceeded, match="over 10"):
        read_manifest(store, put_manifest(store, "a"))


def test_links_inside_are_followed_and_others_refused(tmp_path: Path) -> None:
    store, source = MemoryStore(), fill(tmp_path / "model")
    (source / "link").symlink_to("sub/weights")
    digest = put_tree(store, source)
    assert "link" in [file.path for file in read_manifest(store, digest).files]
    (tmp_path / "outside").write_bytes(b"secret")
    (source / "link2").symlink_to("../outside")
    with pytest.raises(SpecError, match="leaves"):
        put_tree(store, source)
    assert put_tree(store, source, within=tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "directory link", "dangling link"])
def test_only_regular_files_make_a_tree(kind: str, tmp_path: Path) -> None:
    source = fill(tmp_path / "model")
    match kind:
        case "pipe":
            os.mkfifo(source / "odd")
        case "directory link":
            (source / "odd").symlink_to("sub")
        case _:
            (source / "odd").symlink_to("nothing")
    with pytest.raises(SpecError, match="odd"):
        put_tree(MemoryStore(), source)


def test_nothing_and_no_directory_make_no_tree(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a directory"):
        put_tree(MemoryStore(), tmp_path / "absent")
    with pytest.raises(SpecError, match="holds no files"):
        put_tree(MemoryStore(), tmp_path)


def test_verify_finds_what_is_damaged() -> None:
    store = MemoryStore()
    good, bad = store.put(b"good"), store.put(b"bad")
    store.damage(bad, b"dab")
    report = verify(store)
    assert (report.blobs, report.size_bytes, report.bad) == (2, 7, (bad,))
    assert [info.digest for info in store.list()] == [good]
    assert verify(store).bad == ()


def sweep(store: BlobStore, **choices: Any) -> set[Digest]:
    asked: dict[str, Any] = {
        "live": [],
        "trees": [],
        "grace_ms": HOUR_MS,
        "now_ms": NOW_MS,
    } | choices
    return set(collect(store, **asked).removed)


def test_what_is_needed_and_what_is_young_stays(tmp_path: Path) -> None:
    now = [NOW_MS - 2 * HOUR_MS]
    store = MemoryStore(now_ms=lambda: now[0])
    tree = put_tree(store, fill(tmp_path / "model"))
    live, dead = store.put(b"live"), store.put(b"dead")
    now[0] = NOW_MS
    young = store.put(b"young")
    before = {info.digest for info in store.list()}
    assert sweep(store, live=[live], trees=[tree], dry_run=True) == {dead}
    assert {info.digest for info in store.list()} == before
    assert sweep(store, live=[live], trees=[tree]) == {dead}
    assert {info.digest for info in store.list()} == before - {dead}
    assert sweep(store, live=[live]) == before - {dead, live, young}


def test_a_blob_that_is_wanted_while_sweeping_stays() -> None:
    now = [NOW_MS - 2 * HOUR_MS]

    class Wanted(MemoryStore):
        def delete(self, digest: Digest, *, if_before_ms: int | None = None) -> bool:
            now[0] = NOW_MS
            self.has([digest])  # somebody asks between listing and deleting
            return super().delete(digest, if_before_ms=if_before_ms)

    store = Wanted(now_ms=lambda: now[0])
    store.put(b"x")
    assert sweep(store) == set()


def test_what_is_needed_and_gone_is_reported(tmp_path: Path) -> None:
    store = MemoryStore(now_ms=lambda: NOW_MS)
    absent = Digest.of(b"absent")
    damaged = put_tree(store, fill(tmp_path / "model"))
    store.damage(damaged, b"?")
    odd = store.put(b"no manifest")
    report = collect(store, live=[absent], trees=[damaged, odd], grace_ms=HOUR_MS, now_ms=NOW_MS)
    assert report.missing == tuple(sorted([absent, damaged]))
    assert report.bad == tuple(sorted([damaged, odd]))
    with pytest.raises(BlobMissing):
        store.read(damaged)


def test_a_damaged_manifest_is_not_believed(tmp_path: Path) -> None:
    store = MemoryStore()
    digest = put_tree(store, fill(tmp_path / "model"))
    store.damage(digest, canonical({"files": []}))
    with pytest.raises(DigestMismatch):
        materialise(store, digest, tmp_path / "tree")
