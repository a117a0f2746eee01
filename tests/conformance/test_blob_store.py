"""What every BlobStore promises (`stores/base.py`), for each one there is."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, StoreError
from flowmesh.stores.base import RENEW_MS, VERIFY_FIRST_BYTES, BlobStore
from flowmesh.stores.files import FileStore
from flowmesh.stores.memory import MemoryStore

ABSENT = Digest.of(b"never stored")
LARGE = bytes(range(256)) * ((VERIFY_FIRST_BYTES >> 8) + 1) + b"tail"


@dataclass
class Clock:
    now_ms: int = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class Bench:
    """A store, its clock, and a way to spoil a blob behind its back."""

    store: BlobStore
    clock: Clock
    damage: Callable[[Digest, bytes], None]


@pytest.fixture(params=["memory", "files"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    clock = Clock()
    if request.param == "memory":
        memory = MemoryStore(now_ms=clock)
        return Bench(memory, clock, memory.damage)
    files = FileStore(tmp_path / "store", durable=False, now_ms=clock)

    def damage(digest: Digest, data: bytes) -> None:
        place = files.path(digest)
        place.chmod(0o644)
        place.write_bytes(data)

    return Bench(files, clock, damage)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), chunk_bytes=st.integers(1, 400))
def test_bytes_come_back_by_every_way_of_reading(
    bench: Bench, data: bytes, chunk_bytes: int
) -> None:
    digest = bench.store.put(data)
    assert digest == Digest.of(data)
    assert bench.store.read(digest) == data
    assert b"".join(bench.store.stream(digest, chunk_bytes)) == data
    with bench.store.open(digest) as file:
        assert file.read() == data
    path = bench.store.path(digest)
    assert path is None or path.read_bytes() == data


def test_bytes_files_and_streams_make_the_same_blob(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"same")
    made = {
        bench.store.put(b"same"),
        bench.store.put(tmp_path / "content"),
        bench.store.put(io.BytesIO(b"same")),
    }
    assert made == {Digest.of(b"same")}
    assert [info.digest for info in bench.store.list()] == [Digest.of(b"same")]


@pytest.mark.parametrize("read", ["read", "open", "stream", "path"])
def test_what_is_not_there_is_missing_at_the_call(bench: Bench, read: str) -> None:
    with pytest.raises(BlobMissing):
        getattr(bench.store, read)(ABSENT)


def test_a_large_blob_that_is_missing_is_missing_at_the_call(bench: Bench) -> None:
    with pytest.raises(BlobMissing):
        bench.store.stream(Digest.of(LARGE))


def test_has_names_what_is_there(bench: Bench) -> None:
    one = bench.store.put(b"one")
    assert bench.store.has([one, ABSENT]) == {one}
    assert bench.store.has([Digest(one.hash, one.size_bytes + 1)]) == set()


@pytest.mark.parametrize("read", ["read", "open", "stream", "path"])
@pytest.mark.parametrize("spoilt", [b"nothing", b"", b"rightful"])
def test_damage_is_found_set_aside_and_healed(bench: Bench, read: str, spoilt: bytes) -> None:
    digest = bench.store.put(b"rightfuL")
    bench.damage(digest, spoilt)
    with pytest.raises(DigestMismatch):
        getattr(bench.store, read)(digest)
    with pytest.raises(BlobMissing):
        getattr(bench.store, read)(digest)
    assert bench.store.has([digest]) == set()
    assert bench.store.put(b"rightfuL") == digest
    assert bench.store.read(digest) == b"rightfuL"


@pytest.mark.parametrize("expect", [None, Digest.of(b"right")])
def test_putting_over_damage_heals_it(bench: Bench, expect: Digest | None) -> None:
    digest = bench.store.put(b"right")
    bench.damage(digest, b"wrong")
    bench.store.put(b"right", expect)
    assert bench.store.read(digest) == b"right"


def test_a_damaged_large_blob_is_never_seen_to_its_end(bench: Bench) -> None:
    digest = bench.store.put(LARGE)
    bench.damage(digest, LARGE[:-1] + b"?")
    seen = 0
    with pytest.raises(DigestMismatch):
        for chunk in bench.store.stream(digest):
            seen += len(chunk)
    assert seen < len(LARGE)
    assert bench.store.has([digest]) == set()


def test_a_sound_large_blob_streams_whole(bench: Bench) -> None:
    digest = bench.store.put(LARGE)
    assert b"".join(bench.store.stream(digest)) == LARGE


def test_content_that_is_not_as_expected_is_not_kept(bench: Bench) -> None:
    with pytest.raises(DigestMismatch):
        bench.store.put(b"other", expect=ABSENT)
    assert list(bench.store.list()) == []


def test_content_beyond_the_expected_length_is_not_read_on(bench: Bench) -> None:
    source = io.BytesIO(LARGE)
    with pytest.raises(DigestMismatch):
        bench.store.put(source, expect=ABSENT)
    assert source.tell() < len(LARGE)


def test_a_source_that_cannot_be_read_is_named(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        bench.store.put(tmp_path / "absent")
    assert list(bench.store.list()) == []


def test_deleted_is_missing_and_may_be_put_again(bench: Bench) -> None:
    digest = bench.store.put(b"x")
    assert bench.store.delete(digest)
    assert not bench.store.delete(digest)
    with pytest.raises(BlobMissing):
        bench.store.read(digest)
    assert bench.store.read(bench.store.put(b"x")) == b"x"


@pytest.mark.parametrize("renew", ["has", "put"])
def test_asking_and_putting_renew(bench: Bench, renew: str) -> None:
    digest = bench.store.put(b"x")
    assert [info.modified_ms for info in bench.store.list()] == [bench.clock.now_ms]
    bench.clock.now_ms += 10 * RENEW_MS
    if renew == "has":
        bench.store.has([digest])
    else:
        bench.store.put(b"x")
    assert [info.modified_ms for info in bench.store.list()] == [bench.clock.now_ms]
    assert not bench.store.delete(digest, if_before_ms=bench.clock.now_ms)
    assert bench.store.delete(digest, if_before_ms=bench.clock.now_ms + 1)


def test_a_quarantined_blob_is_missing_until_put_again(bench: Bench) -> None:
    digest = bench.store.put(b"x")
    bench.store.quarantine(digest)
    bench.store.quarantine(digest)
    with pytest.raises(BlobMissing):
        bench.store.read(digest)
    assert bench.store.read(bench.store.put(b"x")) == b"x"


@pytest.mark.parametrize("hash_", ["../../etc/passwd", "A" * 64, "", "0" * 63])
def test_a_made_up_hash_never_becomes_a_path(bench: Bench, hash_: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        bench.store.delete(Digest(hash_, 1))
    with pytest.raises(ValueError, match="not a digest"):
        bench.store.read(Digest(hash_, 1))


def test_an_open_reader_keeps_its_bytes_while_the_blob_goes(bench: Bench) -> None:
    digest = bench.store.put(b"kept")
    with bench.store.open(digest) as file:
        bench.store.delete(digest)
        assert file.read() == b"kept"


def test_local_files_are_read_only(bench: Bench) -> None:
    path = bench.store.path(bench.store.put(b"x"))
    assert path is None or os.stat(path).st_mode & 0o777 == 0o444
