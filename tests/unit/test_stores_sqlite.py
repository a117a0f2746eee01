"""The database: group commit, failures, ownership, migration; and death at any moment."""

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from flowmesh.base.errors import StoreError
from flowmesh.stores import sqlite
from flowmesh.stores.base import Checkpoint
from flowmesh.stores.sqlite import JOURNAL_TABLES, Database, SqliteJournal

SCHEMA = [[*JOURNAL_TABLES, "CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT NOT NULL)"]]
INSERT = "INSERT INTO t VALUES (?, ?)"

APPENDER = """
import sys, threading
from pathlib import Path
from flowmesh.stores.sqlite import Database, SqliteJournal
database = Database(Path(sys.argv[1]))
journal, printing = SqliteJournal(database), threading.Lock()
def append(first):
    for n in range(first, 10**9, 4):
        rows = [("INSERT INTO t VALUES ((SELECT max(seq) FROM journal), ?)", (str(n),))]
        seq = journal.append(0, b"%d" % n, rows).result()
        with printing:
            print(seq, n, flush=True)
for first in range(4):
    threading.Thread(target=append, args=(first,)).start()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flowmesh.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path, synchronous="NORMAL")
    database.migrate(SCHEMA)
    yield database
    database.close()


def rows(database: Database) -> list[tuple[int, str]]:
    return [(k, v) for k, v in database.read("SELECT k, v FROM t ORDER BY k")]


def hold(database: Database) -> threading.Event:
    """Keep the writer busy until the event is set, so that later calls share a commit."""
    release = threading.Event()
    entered = threading.Event()

    def wait(_: sqlite3.Connection) -> None:
        entered.set()
        release.wait()

    database.transact(wait)
    entered.wait()
    return release


def test_a_write_is_seen_once_its_future_resolves(database: Database) -> None:
    database.write([(INSERT, (1, "a")), (INSERT, (2, "b"))]).result()
    assert rows(database) == [(1, "a"), (2, "b")]


def test_a_failing_call_fails_alone_and_whole(database: Database) -> None:
    release = hold(database)
    good = database.write([(INSERT, (1, "a"))])
    bad = database.write([(INSERT, (2, "b")), (INSERT, (1, "again"))])
    worse = database.write([("INSERT INTO nowhere VALUES (1)", ())])
    later = database.write([(INSERT, (3, "c"))])
    release.set()
    later.result()
    good.result()
    with pytest.raises(StoreError, match="UNIQUE"):
        bad.result()
    with pytest.raises(StoreError, match="nowhere"):
        worse.result()
    assert rows(database) == [(1, "a"), (3, "c")]


def test_calls_that_wait_together_share_a_commit(database: Database) -> None:
    release = hold(database)
    statements: list[str] = []
    traced = database.transact(lambda db: db.set_trace_callback(statements.append))
    futures = [database.write([(INSERT, (n, ""))]) for n in range(50)]
    release.set()
    traced.result()
    for future in futures:
        future.result()
    database.transact(lambda db: db.set_trace_callback(None)).result()
    assert statements.count("COMMIT") <= 2
    assert len(rows(database)) == 50


def test_nothing_is_seen_before_the_commit(database: Database) -> None:
    seen: list[object] = []

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(INSERT, (1, "a"))
        seen.extend(rows(database))

    database.transact(work).result()
    assert seen == []
    assert rows(database) == [(1, "a")]


def test_many_threads_write_and_read(database: Database) -> None:
    def work(first: int) -> None:
        for n in range(first, 200, 8):
            database.write([(INSERT, (n, ""))]).result()
            assert (n,) in database.read("SELECT k FROM t WHERE k = ?", (n,))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(database)) == 200


def test_a_full_disk_is_reported_and_survived(database: Database) -> None:
    database.transact(lambda db: db.execute("PRAGMA max_page_count = 20").fetchall()).result()
    release = hold(database)
    large = database.write([(INSERT, (1, "x" * 500_000))])
    small = database.write([(INSERT, (2, "y"))])
    release.set()
    for future in (large, small):
        with pytest.raises(StoreError, match="full"):
            future.result()
    database.write([(INSERT, (3, "z"))]).result()
    assert rows(database) == [(3, "z")]


class Failing:
    """A connection whose commits fail with an I/O error, as on a dying disk."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, sql: str, params: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._real.execute(sql, params)


def test_after_an_io_error_nothing_is_acknowledged(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(database)
    queued = [database.write([(INSERT, (n, "a"))]) for n in range(3)]
    monkeypatch.setattr(database, "_writer", Failing(database._writer))
    release.set()
    for future in queued:
        with pytest.raises(StoreError, match="I/O error"):
            future.result()
    with pytest.raises(StoreError, match="check the disk"):
        database.write([])


def test_a_second_owner_is_told_who_the_first_is(database: Database, path: Path) -> None:
    code = "import sys, pathlib; from flowmesh.stores.sqlite import Database\n"
    code += "Database(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    with pytest.raises(StoreError) as refusal:
        Database(path)
    (owner,) = (path.parent / "flowmesh.db.lock").read_text().split()
    assert f"in use by process {owner}" in str(refusal.value)
    assert f"in use by process {owner}" in other.stderr


def test_closing_finishes_what_was_asked_for_and_frees_the_file(path: Path) -> None:
    database = Database(path)
    database.migrate(SCHEMA)
    release = hold(database)
    futures = [database.write([(INSERT, (n, ""))]) for n in range(100)]
    release.set()
    database.close()
    database.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(StoreError, match="closed"):
        database.write([])
    with pytest.raises(StoreError, match="closed"):
        database.read("SELECT 1")
    again = Database(path)
    assert len(rows(again)) == 100
    again.close()


def test_what_is_no_database_is_refused_and_not_kept_locked(path: Path) -> None:
    path.write_bytes(b"certainly not a database file" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="not a database"):
            Database(path)


def test_migration_goes_on_from_where_it_was(database: Database, path: Path) -> None:
    database.write([(INSERT, (1, "a"))]).result()
    newer = [*SCHEMA, ["ALTER TABLE t ADD COLUMN w TEXT DEFAULT 'w'"]]
    database.migrate(newer)
    database.migrate(newer)
    assert database.read("SELECT * FROM t") == [(1, "a", "w")]
    with pytest.raises(StoreError, match="schema version 2 and this FlowMesh knows up to 1"):
        database.migrate(SCHEMA)


def test_a_migration_that_fails_changes_nothing(database: Database) -> None:
    with pytest.raises(StoreError, match="syntax"):
        database.migrate([*SCHEMA, ["CREATE TABLE u (k)", "NONSENSE"]])
    assert database.read("PRAGMA user_version") == [(1,)]
    assert database.read("SELECT name FROM sqlite_master WHERE name = 'u'") == []


def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(StoreError, match="readonly"):
        database.read("DELETE FROM t")


def test_a_record_and_its_rows_are_one(database: Database) -> None:
    journal = SqliteJournal(database)
    journal.append(5, b"one", [(INSERT, (1, "a"))]).result()
    assert list(journal.replay()) == [(1, b"one")]
    assert rows(database) == [(1, "a")]


def test_a_journal_stops_at_the_first_record_that_fails(database: Database) -> None:
    """A later record would build on one that is not there."""
    journal = SqliteJournal(database)
    release = hold(database)
    first = journal.append(1, b"one", [(INSERT, (1, "a"))])
    second = journal.append(2, b"two", [(INSERT, (1, "again"))])
    third = journal.append(3, b"three")
    release.set()
    assert first.result() == 1
    for future in (second, third):
        with pytest.raises(StoreError, match="UNIQUE"):
            future.result()
    with pytest.raises(StoreError, match="has stopped"):
        journal.append(4, b"four").result()
    assert list(SqliteJournal(database).replay()) == [(1, b"one")]
    assert SqliteJournal(database).append(5, b"five").result() == 2


def test_a_journal_stops_when_a_commit_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(database)
    monkeypatch.setattr(sqlite, "_FATAL", set())  # as an error that the database survives
    real = database._writer
    release = hold(database)
    monkeypatch.setattr(database, "_writer", Failing(real))
    lost = journal.append(1, b"lost")
    release.set()
    with pytest.raises(StoreError):
        lost.result()
    monkeypatch.setattr(database, "_writer", real)
    with pytest.raises(StoreError, match="has stopped"):
        journal.append(2, b"later").result()
    assert list(journal.replay()) == []


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    journal = SqliteJournal(database)
    for n in range(1, 7):
        journal.append(n, b"r")
        journal.checkpoint(n, b"state %d" % n, at_ms=n).result()
    kept = database.read("SELECT seq FROM checkpoints ORDER BY seq")
    assert kept == [(4,), (5,), (6,)]
    damage = "UPDATE checkpoints SET state = x'00' WHERE seq = ?"
    database.write([(damage, (6,))]).result()
    assert journal.last_checkpoint() == Checkpoint(5, b"state 5", 5)
    assert "checkpoint 6" in caplog.text
    database.write([(damage, (5,)), (damage, (4,))]).result()
    assert journal.last_checkpoint() is None


def test_kill_at_any_moment_loses_nothing_acknowledged(database: Database, path: Path) -> None:
    database.close()
    chance = random.Random(7)
    acknowledged: dict[int, bytes] = {}
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, path], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(chance.randrange(1, 150))]
        child.kill()
        assert all(lines), "the child ended by itself"
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        for line in lines:
            if line.endswith("\n"):
                seq, n = line.split()
                acknowledged[int(seq)] = n.encode()
        check = Database(path)
        journal = dict(SqliteJournal(check).replay())
        assert list(journal) == list(range(1, len(journal) + 1))
        assert acknowledged.items() <= journal.items()
        assert rows(check) == [(seq, n.decode()) for seq, n in journal.items()]
        check.close()
    assert acknowledged


def test_futures_of_writes_cannot_be_cancelled(database: Database) -> None:
    release = hold(database)
    future: Future[None] = database.write([(INSERT, (1, "a"))])
    assert not future.cancel()
    release.set()
    future.result()
    assert rows(database) == [(1, "a")]
