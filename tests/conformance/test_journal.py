"""What every Journal promises (`stores/base.py`), for each one there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmesh.base.errors import StoreError
from flowmesh.stores.base import Checkpoint, Journal
from flowmesh.stores.memory import MemoryJournal
from flowmesh.stores.sqlite import JOURNAL_TABLES, Database, SqliteJournal


@pytest.fixture(params=["memory", "sqlite"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    database = Database(tmp_path / "journal.db", synchronous="NORMAL")
    database.migrate([JOURNAL_TABLES])
    yield SqliteJournal(database)
    database.close()


def test_an_empty_journal_has_nothing(journal: Journal) -> None:
    assert list(journal.replay()) == []
    assert journal.last_checkpoint() is None


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20), st.integers(0, 20))
def test_records_come_back_in_order_from_any_place(
    journal: Journal, records: list[bytes], skipped: int
) -> None:
    start = len(list(journal.replay()))
    seqs = [journal.append(n, record).result() for n, record in enumerate(records)]
    assert seqs == list(range(start + 1, start + len(records) + 1))
    expected = list(zip(seqs, records, strict=True))[skipped:]
    assert list(journal.replay(start + skipped)) == expected


def test_order_of_calls_is_order_of_records(journal: Journal) -> None:
    futures = [journal.append(0, b"%d" % n) for n in range(1200)]
    assert [future.result() for future in futures] == list(range(1, 1201))
    assert [record for _, record in journal.replay()] == [b"%d" % n for n in range(1200)]


def test_an_append_cannot_be_cancelled(journal: Journal) -> None:
    assert not journal.append(0, b"x").cancel()
    journal.append(0, b"y").result()
    assert [record for _, record in journal.replay()] == [b"x", b"y"]


def test_the_newest_checkpoint_counts(journal: Journal) -> None:
    for n in range(1, 11):
        journal.append(n, b"r")
        journal.checkpoint(n, b"state %d" % n, at_ms=n).result()
    assert journal.last_checkpoint() == Checkpoint(10, b"state 10", 10)
    assert len(list(journal.replay())) == 10


def test_a_checkpoint_may_be_repeated(journal: Journal) -> None:
    journal.append(0, b"r").result()
    journal.checkpoint(1, b"one", at_ms=1).result()
    journal.checkpoint(1, b"two", at_ms=2).result()
    assert journal.last_checkpoint() == Checkpoint(1, b"two", 2)


@pytest.mark.parametrize("seq", [0, 2])
def test_a_checkpoint_belongs_to_a_record(journal: Journal, seq: int) -> None:
    journal.append(0, b"r").result()
    with pytest.raises(StoreError, match=f"no record {seq}"):
        journal.checkpoint(seq, b"state", at_ms=0).result()
    assert journal.last_checkpoint() is None
