"""Who waits for news of a run or a worker, and how they are woken."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flowmesh.base.ids import RunId, WorkerId


@dataclass(slots=True)
class Watcher:
    """`changed` is set whenever something of a run has changed, `settled` with its end."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Signals:
    def __init__(self) -> None:
        #: The server ends: whoever waits answers at once.
        self.closing = False
        self._workers: dict[WorkerId, asyncio.Event] = {}
        self._watchers: dict[RunId, list[Watcher]] = {}

    def worker(self, worker: WorkerId) -> asyncio.Event:
        """Set whenever there may be something new to tell a worker."""
        return self._workers.setdefault(worker, asyncio.Event())

    def forget_worker(self, worker: WorkerId) -> None:
        """There will be no news for it; whoever waits for some is woken."""
        event = self._workers.pop(worker, None)
        if event is not None:
            event.set()

    def run_changed(self, run: RunId, *, settled: bool) -> None:
        for watcher in self._watchers.get(run, ()):
            watcher.changed.set()
            if settled:
                watcher.settled.set()

    @contextmanager
    def watching(self, run: RunId) -> Iterator[Watcher]:
        """Be told of a run's changes for as long as the block lasts."""
        watcher = Watcher()
        self._watchers.setdefault(run, []).append(watcher)
        try:
            yield watcher
        finally:
            self._watchers[run].remove(watcher)
            if not self._watchers[run]:
                del self._watchers[run]

    def close(self) -> None:
        """Wake everybody, for the last time."""
        self.closing = True
        for event in self._workers.values():
            event.set()
        for run in self._watchers:
            self.run_changed(run, settled=True)
