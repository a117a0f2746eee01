"""Who waits for news of a run or a worker, and how they are woken."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from flowmesh.base.ids import RunId, WorkerId


class Signals:
    def __init__(self) -> None:
        #: The server ends: whoever waits answers at once.
        self.closing = False
        self._workers: dict[WorkerId, asyncio.Event] = {}
        self._watchers: dict[RunId, list[asyncio.Event]] = {}

    def worker(self, worker: WorkerId) -> asyncio.Event:
        """Set whenever there may be something new to tell a worker."""
        return self._workers.setdefault(worker, asyncio.Event())

    def run_changed(self, run: RunId) -> None:
        for watcher in self._watchers.get(run, ()):
            watcher.set()

    @contextmanager
    def watching(self, run: RunId) -> Iterator[asyncio.Event]:
        """An event that is set whenever something of a run has changed."""
        watcher = asyncio.Event()
        self._watchers.setdefault(run, []).append(watcher)
        try:
            yield watcher
        finally:
            self._watchers[run].remove(watcher)
            if not self._watchers[run]:
                del self._watchers[run]

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    def close(self) -> None:
        """Wake everybody, for the last time."""
        self.closing = True
        for event in (
            *self._workers.values(),
            *(e for found in self._watchers.values() for e in found),
        ):
            event.set()
