"""The directory store: bytes on disk, links, leftovers, several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, StoreError
from flowmesh.stores.files import FileStore

WRITERS = """
import sys
from pathlib import Path
from flowmesh.stores.files import FileStore
store = FileStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(40):
    assert store.read(store.put(b"%d" % n * 1000)) == b"%d" % n * 1000
"""


def test_the_place_of_a_blob_is_as_documented(tmp_path: Path) -> None:
    digest = FileStore(tmp_path).put(b"hello")
    place = tmp_path / "sha256" / digest.hash[:2] / f"{digest.hash}-5"
    assert place.read_bytes() == b"hello"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_store_opened_again_has_everything(tmp_path: Path) -> None:
    digest = FileStore(tmp_path).put(b"hello")
    assert FileStore(tmp_path).read(digest) == b"hello"


def test_a_link_in_a_blobs_place_is_not_followed(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    secret = tmp_path / "secret"
    secret.write_bytes(b"hello")
    digest = Digest.of(b"hello")
    place = tmp_path / "store" / "sha256" / digest.hash[:2] / f"{digest.hash}-5"
    place.parent.mkdir()
    place.symlink_to(secret)
    assert store.has([digest]) == set()
    with pytest.raises(BlobMissing):
        store.read(digest)
    assert secret.read_bytes() == b"hello"
    assert store.read(store.put(b"hello")) == b"hello"
    assert not place.is_symlink()


def test_a_pipe_in_a_blobs_place_does_not_hang_the_reader(tmp_path: Path) -> None:
    store, digest = FileStore(tmp_path), Digest.of(b"hello")
    place = tmp_path / "sha256" / digest.hash[:2] / f"{digest.hash}-5"
    place.parent.mkdir()
    os.mkfifo(place)
    with pytest.raises(BlobMissing):
        store.read(digest)


def test_old_leftovers_go_and_young_ones_stay(tmp_path: Path) -> None:
    FileStore(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    for file, age_s in ((old, 3601), (young, 3000)):
        file.write_bytes(b"half")
        os.utime(file, (1_000_000_000 - age_s,) * 2)
    FileStore(tmp_path, now_ms=lambda: 1_000_000_000_000)
    assert [file.name for file in (tmp_path / "tmp").iterdir()] == ["young"]


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)

    class Torn:
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(StoreError, match="Input/output error"):
        store.put(Torn())  # type: ignore[arg-type]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_root_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StoreError, match="taken"):
        FileStore(tmp_path / "taken")


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = store.put(b"hello")
    (tmp_path / "sha256" / digest.hash[:2] / "notes.txt").write_bytes(b"?")
    (tmp_path / "sha256" / "README").write_bytes(b"?")
    assert [info.digest for info in store.list()] == [digest]


def test_a_slow_reader_of_damage_leaves_a_healed_copy_alone(tmp_path: Path) -> None:
    class Slow(FileStore):
        def _set_aside(self, digest: Digest, inode: int | None = None) -> None:
            FileStore(tmp_path).put(b"right")  # somebody finds the damage first, and heals it
            super()._set_aside(digest, inode)

    store, digest = Slow(tmp_path), Digest.of(b"right")
    place = store.path(FileStore(tmp_path).put(b"right"))
    place.chmod(0o644)
    place.write_bytes(b"wrong")
    with pytest.raises(DigestMismatch):
        store.read(digest)
    assert store.read(digest) == b"right"


def test_a_path_is_verified_again_once_its_file_was_written(tmp_path: Path) -> None:
    """The shortcut for files verified before must not hide later damage."""
    store = FileStore(tmp_path)
    place = store.path(store.put(b"hello"))
    place.chmod(0o644)
    place.write_bytes(b"jello")
    os.utime(place, (1, 1))
    with pytest.raises(StoreError):
        store.path(Digest.of(b"hello"))


def test_processes_may_write_the_same_blobs_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n")
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(list(FileStore(tmp_path).list())) == 40
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((tmp_path / "quarantine").iterdir()) == []
