"""A child process: opens the engines of one child key, and runs batch after batch.

    worker -> child   {"store", "durable", "trees"} once: where the blobs are, see `cache.py`
                      {"works": [{"task", "action", "checkpoint"}], "entry", "engine",
                       "batch_key", "scratch", "interruptions_per_hour", "slowdown"}
    child -> worker   {"task", "result", "puts"} or {"task", "kind", "message", "detail", "puts"}
                      for each task as it is known, then {"end": true, "retire": bool, "took"},
                      see `timing.Took`; before, what `monitor.py` says

`puts` are the digests put in the store since the last message. A child whose worker has
gone dies with it. A child that ran out of memory retires: its engine may hold too much. So
does one that was asked to stop (SIGTERM): its engine may end the batch without outcomes.
"""

import importlib
import os
import shutil
import socket
import tempfile
import threading
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, StoreError
from flowmesh.runtimes.base import (
    Done,
    Engine,
    Failed,
    FailureKind,
    OpenEngine,
    Outcome,
    Stopped,
    Work,
)
from flowmesh.spec.action import INLINE_LIMIT_BYTES, Action
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.worker import frames
from flowmesh.worker.monitor import ChildMonitor, StopFlag
from flowmesh.worker.timing import Stopwatch

#: A message is one line for a person, a detail the end of a traceback.
MESSAGE_LIMIT = 1000
DETAIL_LIMIT = 16_000


class LocalBlobs:
    """`runtimes.base.Blobs` over the directories of the worker's cache."""

    def __init__(self, store: FileStore, trees: Path) -> None:
        self._store, self._trees = store, trees
        self._scratch = Path()
        self._puts: list[str] = []
        self._noting = threading.Lock()  # engines may put from threads of their own

    def enter(self, scratch: Path) -> None:
        """Before each batch: an engine keeps this object for as long as it lives."""
        self._scratch = scratch

    def leave(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)  # The worker removes what is left.

    def path(self, digest: Digest) -> Path:
        return self._store.path(digest)

    def tree(self, digest: Digest) -> Path:
        path = self._trees / digest.hash
        if not path.is_dir():
            raise BlobMissing(digest, "the worker's cache of trees")
        return path

    def put(self, content: bytes | Path) -> Digest:
        digest = self._store.put(content)
        with self._noting:
            self._puts.append(str(digest))
        return digest

    def put_tree(self, folder: Path) -> Digest:
        return put_tree(self, folder)

    def scratch(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def taken(self) -> list[str]:
        """What was put since the last call."""
        with self._noting:
            puts, self._puts = self._puts, []
        return puts


class Child:
    """Engines by entry: engine family and models are the same for all that a child gets."""

    def __init__(self, channel: socket.socket, blobs: LocalBlobs, flag: StopFlag) -> None:
        self._channel, self._blobs, self._flag = channel, blobs, flag
        self._saying = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def run(self, order: frames.Frame) -> bool:
        """Run one batch; true if the child should retire after it."""
        monitors = {
            one["task"]: self._monitor(one["task"], order["interruptions_per_hour"])
            for one in order["works"]
        }
        works = [_work(one, monitors[one["task"]]) for one in order["works"]]
        self._blobs.enter(Path(order["scratch"]))
        retire, watch, entry = False, Stopwatch(order["slowdown"]), order["entry"]
        steps = self._steps(entry)
        for outcome in self._outcomes(entry, order["engine"], works, watch):
            watch.made(outcome)
            retire |= isinstance(outcome, Failed) and outcome.kind is FailureKind.MEMORY
            monitors[outcome.task].flush()
            self._say({**_plain(outcome), "puts": self._blobs.taken()})
        for monitor in monitors.values():
            monitor.flush()
        self._blobs.leave()
        retire |= self._flag.asked
        now = self._steps(entry)
        took = asdict(watch.took(None if now is None else now - (steps or 0)))
        self._say({"end": True, "retire": retire, "took": took})
        return retire

    def _steps(self, entry: str) -> int | None:
        """Passes so far of an open engine that counts them."""
        return getattr(self._engines.get(entry), "steps", None)

    def _monitor(self, task: str, interruptions_per_hour: float) -> ChildMonitor:
        taken = self._blobs.taken
        return ChildMonitor(task, self._say, taken, self._flag, interruptions_per_hour)

    def _outcomes(
        self, entry: str, engine: str, works: list[Work], watch: Stopwatch
    ) -> Iterator[Outcome]:
        """One outcome for each task, whatever the engine does short of dying or stopping."""
        waiting = {work.task: None for work in works}
        try:
            cold = entry not in self._engines
            opened = self._opened(entry, engine, works[0].action)
            watch.opened(cold=cold)
        except Exception as error:
            yield from _all_failed(waiting, _opening_failed(error), error)
            return
        try:
            for outcome in opened.run(works):
                if outcome.task not in waiting:
                    raise LookupError(f"{entry} gave an outcome for {outcome.task!r}, not asked of")
                fitted = self._fitted(outcome)
                del waiting[outcome.task]
                yield fitted
            if waiting:
                raise LookupError(f"{entry} gave no outcome for {len(waiting)} tasks")
        except Stopped:
            return
        except MemoryError as error:
            yield from _all_failed(waiting, FailureKind.MEMORY, error)
        except StoreError as error:  # A blob that went, a disk that is full: not so elsewhere.
            yield from _all_failed(waiting, FailureKind.TRANSIENT, error)
        except (Exception, SystemExit) as error:
            yield from _all_failed(waiting, FailureKind.INTERNAL, error)

    def _opened(self, entry: str, engine: str, first: Action) -> Engine:
        if entry not in self._engines:
            module, _, name = entry.partition(":")
            open_engine: OpenEngine = getattr(importlib.import_module(module), name)
            self._engines[entry] = open_engine(self._blobs, first.inputs, engine)
        return self._engines[entry]

    def _fitted(self, outcome: Outcome) -> Outcome:
        """Rows that are too many to travel in a result become a blob."""
        if isinstance(outcome, Failed) or outcome.result.rows is None:
            return outcome
        encoded = msgspec.json.encode(outcome.result.rows)
        if len(encoded) <= INLINE_LIMIT_BYTES:
            return outcome
        blob = str(self._blobs.put(encoded))
        return Done(outcome.task, replace(outcome.result, rows=None, rows_blob=blob))

    def _say(self, frame: frames.Frame) -> None:
        message = frames.encode(_sayable(frame))
        with self._saying:  # monitors speak from threads of their own
            self._channel.sendall(message)


def _work(one: dict[str, Any], monitor: ChildMonitor) -> Work:
    checkpoint = Digest.parse(one["checkpoint"]) if one["checkpoint"] else None
    return Work(one["task"], Action.of(one["action"]), checkpoint, monitor)


def _opening_failed(error: Exception) -> FailureKind:
    """What is missing on this worker may be there on another; all else is a bug."""
    if isinstance(error, MemoryError):
        return FailureKind.MEMORY
    if isinstance(error, OSError | ImportError | StoreError):
        return FailureKind.TRANSIENT
    return FailureKind.INTERNAL


def _sayable(frame: frames.Frame) -> frames.Frame:
    """A frame whose words are Unicode: an exception's text may hold halves of characters."""
    return {
        key: value.encode(errors="replace").decode() if isinstance(value, str) else value
        for key, value in frame.items()
    }


def _all_failed(tasks: Iterable[str], kind: FailureKind, error: BaseException) -> Iterator[Failed]:
    message = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    if isinstance(error, ImportError):
        message += "; install on the worker the extra that brings it, see `flowmesh worker --help`"
    detail = "".join(traceback.format_exception(error))
    for task in tasks:
        yield Failed(task, kind, message, detail)


def _plain(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Done):
        return {"task": outcome.task, "result": outcome.result.encode()}
    return {
        "task": outcome.task,
        "kind": str(outcome.kind),
        "message": outcome.message[:MESSAGE_LIMIT],
        "detail": outcome.detail[-DETAIL_LIMIT:],
    }


def main(channel: socket.socket) -> None:
    """Serve until the worker closes its end, or the child has to retire."""
    flag = StopFlag()
    flag.watch()
    places = frames.receive(channel)
    if places is None:
        return
    store = FileStore(Path(places["store"]), durable=places["durable"])
    child = Child(channel, LocalBlobs(store, Path(places["trees"])), flag)
    try:
        while (order := frames.receive(channel)) is not None:
            if child.run(order):
                return
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # The worker has gone in the middle of a batch.
