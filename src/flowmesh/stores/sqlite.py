"""SQLite: one writer thread with group commit, many readers; and the journal on top.

Calls from many threads that arrive together share one transaction, so that one flush to
the disk serves them all. Each call is a savepoint inside it: all of the call or nothing.
"""

import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from flowmesh.base.digest import Digest
from flowmesh.base.errors import StoreError, StoreInUse
from flowmesh.stores.base import Checkpoint, Statement

T = TypeVar("T")

#: Calls that may wait for the writer; beyond that, `write` waits itself.
QUEUE_LIMIT = 10_000
#: Calls that share one commit at most.
COMMIT_LIMIT = 1_000
CHECKPOINTS_KEPT = 3
_REPLAY_PAGE = 500
_BUSY_S = 30.0
#: After these the file's state is unknown and must be found out by opening it anew.
_FATAL = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

#: What a SqliteJournal needs; part of the first version given to `Database.migrate`.
JOURNAL_TABLES = (
    "CREATE TABLE journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL,"
    " records BLOB NOT NULL)",
    "CREATE TABLE checkpoints (seq INTEGER PRIMARY KEY, state BLOB NOT NULL,"
    " digest TEXT NOT NULL, at_ms INTEGER NOT NULL)",
)

_log = logging.getLogger(__name__)


class _Call:
    """Work for the writer thread, and the future that tells of its end."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()
        # Running from the start, so that nobody can cancel a place in the order.
        self.future.set_running_or_notify_cancel()
        self.result: Any = None


class Database:
    """A SQLite file that one process at a time may own.

    Args:
        path: made if it is not there; `<path>.lock` beside it holds the owner's process id.
        synchronous: "FULL": what was acknowledged survives a power cut. "NORMAL": only the
            death of processes.

    Raises:
        StoreError: another process (or object) owns the file, or it is no database.
    """

    def __init__(self, path: Path, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        self.path = path = path.resolve()  # two names of one file must meet in one lock
        self._closed = False
        self._broken: Exception | None = None
        self._gate = threading.Lock()
        self._calls: queue.Queue[_Call | None] = queue.Queue(QUEUE_LIMIT)
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._lock = _own(path)
        try:
            self._writer = _open_writer(path, synchronous)
        except sqlite3.Error as error:
            self._lock.close()
            raise StoreError(f"cannot open {path}: {error}") from error
        self._thread = threading.Thread(target=self._run, name=f"writer of {path}", daemon=True)
        self._thread.start()

    def write(self, statements: Sequence[Statement]) -> Future[None]:
        """Apply statements, all or none. Order of calls is order of application.

        The future resolves once they are durable. It gets a StoreError if a statement fails
        (other calls are not affected, but for a full disk) or the commit does; it cannot be
        cancelled. The call itself waits while `QUEUE_LIMIT` others are ahead, so it must
        not be made from a future's callback.

        Raises:
            StoreError: the database is closed, or stopped after an I/O error.
        """
        return self.transact(lambda connection: _apply(connection, statements))

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """As `write`, with a function that runs in the writer thread; gives its result.

        It must neither begin nor end transactions, and be quick.
        """
        call = _Call(work)
        with self._gate:
            self._check_open()
            self._calls.put(call)
        return call.future

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query over what is committed, from any thread."""
        self._check_open()
        try:
            with self._reader() as connection:
                return connection.execute(sql, params).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read from {self.path}: {error}") from error

    def migrate(self, versions: Sequence[Sequence[str]]) -> None:
        """Bring the schema to version `len(versions)`; entry n leads from version n to n+1.

        Each version is applied as a whole or not at all. Entries are never changed once
        released, only added.

        Raises:
            StoreError: the file is of a newer version, or a statement fails.
        """
        (found,) = self.read("PRAGMA user_version")[0]
        if found > len(versions):
            raise StoreError(
                f"{self.path} has schema version {found} and this FlowMesh knows up to "
                f"{len(versions)}; use the newer FlowMesh that wrote it"
            )
        for number, statements in enumerate(versions[found:], start=found + 1):
            steps = [*statements, f"PRAGMA user_version = {number}"]
            self.write([(sql, ()) for sql in steps]).result()

    def close(self) -> None:
        """Finish the writes that were asked for, then let the file go. May be repeated."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._calls.put(None)
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()
        self._writer.close()
        self._lock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        if self._broken is not None:
            raise StoreError(
                f"{self.path} takes no more work after an error: {self._broken}; "
                "check the disk and start again"
            ) from self._broken

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = _open_reader(self.path)
        try:
            yield connection
        finally:
            if self._closed:
                connection.close()
            else:
                self._idle.put(connection)

    def _run(self) -> None:
        last = False
        while not last:
            first = self._calls.get()
            calls, last = self._together(first)
            if calls:
                self._commit(calls)

    def _together(self, first: _Call | None) -> tuple[list[_Call], bool]:
        """What is waiting now, up to the limit; and whether the end was among it."""
        if first is None:
            return [], True
        calls = [first]
        with contextlib.suppress(queue.Empty):
            while len(calls) < COMMIT_LIMIT:
                call = self._calls.get_nowait()
                if call is None:
                    return calls, True
                calls.append(call)
        return calls, False

    def _commit(self, calls: list[_Call]) -> None:
        done: list[_Call] = []
        failed: list[tuple[_Call, Exception]] = []
        try:
            self._check_usable()
            self._writer.execute("BEGIN IMMEDIATE")
            for call in calls:
                refusal = self._attempt(call)
                if refusal is None:
                    done.append(call)
                else:
                    failed.append((call, refusal))
            self._writer.execute("COMMIT")
        except Exception as error:
            self._roll_back(error)
            for call in calls:
                call.future.set_exception(_told(self.path, error))
            return
        for call, refusal in failed:
            call.future.set_exception(_told(self.path, refusal))
        for call in done:
            call.future.set_result(call.result)

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise StoreError(f"{self.path} stopped after an error: {self._broken}")

    def _attempt(self, call: _Call) -> Exception | None:
        """Run one call in a savepoint; an error that it survived is the call's own."""
        self._writer.execute("SAVEPOINT one_call")
        try:
            call.result = call.work(self._writer)
        except Exception as error:
            if not self._writer.in_transaction or _code(error) in _FATAL | {sqlite3.SQLITE_FULL}:
                raise  # the whole transaction is lost, or its commit would be
            self._writer.execute("ROLLBACK TO one_call")
            self._writer.execute("RELEASE one_call")
            return error
        self._writer.execute("RELEASE one_call")
        return None

    def _roll_back(self, error: Exception) -> None:
        if _code(error) in _FATAL:
            self._broken = error
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error as worse:
            self._broken = worse


class SqliteJournal:
    """A Journal in a Database that has `JOURNAL_TABLES`, next to the read models."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopped: str | None = None

    def append(self, at_ms: int, records: bytes, rows: Sequence[Statement] = ()) -> Future[int]:
        def work(connection: sqlite3.Connection) -> int:
            if self._stopped is not None:
                raise StoreError(f"the journal has stopped: {self._stopped}; open it again")
            try:
                insert = "INSERT INTO journal (at_ms, records) VALUES (?, ?)"
                seq = connection.execute(insert, (at_ms, records)).lastrowid
                assert seq is not None
                _apply(connection, rows)
            except Exception as error:
                self._stopped = str(error)
                raise
            return seq

        future = self._database.transact(work)
        future.add_done_callback(self._stop_if_failed)
        return future

    def replay(self, after_seq: int = 0) -> Iterator[tuple[int, bytes]]:
        sql = "SELECT seq, records FROM journal WHERE seq > ? ORDER BY seq LIMIT ?"
        while page := self._database.read(sql, (after_seq, _REPLAY_PAGE)):
            yield from page
            after_seq = page[-1][0]

    def checkpoint(self, seq: int, state: bytes, at_ms: int) -> Future[None]:
        def work(connection: sqlite3.Connection) -> None:
            if not connection.execute("SELECT 1 FROM journal WHERE seq = ?", (seq,)).fetchone():
                raise StoreError(f"the journal holds no record {seq}")
            row = (seq, state, str(Digest.of(state)), at_ms)
            connection.execute("REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", row)
            connection.execute(
                "DELETE FROM checkpoints WHERE seq NOT IN"
                " (SELECT seq FROM checkpoints ORDER BY seq DESC LIMIT ?)",
                (CHECKPOINTS_KEPT,),
            )

        return self._database.transact(work)

    def last_checkpoint(self) -> Checkpoint | None:
        sql = "SELECT seq FROM checkpoints ORDER BY seq DESC"
        for (seq,) in self._database.read(sql):
            one = "SELECT state, digest, at_ms FROM checkpoints WHERE seq = ?"
            state, digest, at_ms = self._database.read(one, (seq,))[0]
            if str(Digest.of(state)) == digest:
                return Checkpoint(seq, state, at_ms)
            _log.warning("checkpoint %d in %s is damaged", seq, self._database.path)
        return None

    def _stop_if_failed(self, future: Future[int]) -> None:
        # Called in the writer thread before it takes the next calls.
        error = future.exception()
        if error is not None and self._stopped is None:
            self._stopped = str(error)


def _apply(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    for sql, params in statements:
        connection.execute(sql, params)


def _open_writer(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _open_reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _own(path: Path) -> BinaryIO:
    """Take the lock beside a database and write our process id into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error
    file = os.fdopen(handle, "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = file.read(20).decode(errors="replace").strip() or "unknown"
        file.close()
        raise StoreInUse(
            f"{path} is in use by process {owner}; stop that one first, or use another directory"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())
    return file


def _code(error: Exception) -> int:
    """The primary result code of a SQLite error; 0 for any other exception."""
    if not isinstance(error, sqlite3.Error):
        return 0
    # The module's own errors, as of a closed connection, have no code.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _told(path: Path, error: Exception) -> Exception:
    """A SQLite error as ours; each future gets an object of its own. Others stay as they are."""
    if isinstance(error, sqlite3.Error):
        told = StoreError(f"cannot write to {path}: {error}")
        told.__cause__ = error
        return told
    return error
