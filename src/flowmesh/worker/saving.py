"""Checkpoints of one batch, on their way from the child to the server.

A checkpoint counts once its manifest is in the store, which is sent last. Sending goes on
beside the task; of those that wait for it only the newest is sent. What cannot be stored does
not harm the task: it goes on, and so does the checkpoint before.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowmesh.base.digest import Digest
from flowmesh.base.errors import FlowMeshError
from flowmesh.stores.trees import blobs_of_tree
from flowmesh.worker.cache import Cache
from flowmesh.worker.frames import Frame

log = logging.getLogger("flowmesh.worker")

#: task, tree, step
OnSaved = Callable[[str, str, int], None]
#: task, what is wrong
OnTrouble = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Saved:
    """`puts` are the blobs that were put for it."""

    task: str
    tree: Digest
    step: int
    puts: tuple[Digest, ...]


class Saving:
    """Args: `group` runs the sending; `on_saved` and `on_trouble` are told of its end."""

    def __init__(
        self,
        cache: Cache,
        group: asyncio.TaskGroup,
        on_saved: OnSaved,
        on_trouble: OnTrouble,
    ) -> None:
        self._cache, self._group = cache, group
        self._on_saved, self._on_trouble = on_saved, on_trouble
        #: By task: the newest that waits, and what sends.
        self._next: dict[str, _Saved] = {}
        self._senders: dict[str, asyncio.Task[None]] = {}
        #: Put for checkpoints, and not known to be on the server.
        self._unsent: dict[str, None] = {}

    def add(self, frame: Frame) -> None:
        """A checkpoint, as `monitor.py` tells it."""
        self._unsent |= dict.fromkeys(frame["puts"])
        task = frame["task"]
        passed_over = self._next.get(task)
        puts = tuple(map(Digest.parse, frame["puts"]))
        self._next[task] = _Saved(task, Digest.parse(frame["saved"]), frame["step"], puts)
        if passed_over is not None:
            waiting = {one for saved in self._next.values() for one in saved.puts}
            self._cache.adopt(one for one in passed_over.puts if one not in waiting)
        if task not in self._senders:
            self._senders[task] = self._group.create_task(self._send_all(task))

    def settled(self, task: str) -> None:
        """The task is done: nobody will go on from its checkpoints."""
        self._next.pop(task, None)
        sender = self._senders.pop(task, None)
        if sender is not None:
            sender.cancel()

    async def owed(self, trees: Iterable[Digest]) -> list[str]:
        """Blobs of these trees that were put for a checkpoint and are not on the server yet."""
        if not self._unsent:
            return []
        found: set[Digest] = set()
        for tree in trees:
            found |= await asyncio.to_thread(blobs_of_tree, self._cache.store, tree)
        return [text for text in map(str, sorted(found)) if text in self._unsent]

    def close(self) -> None:
        """The batch is over: what was not sent until now never will be."""
        self._cache.adopt(map(Digest.parse, self._unsent))
        self._unsent.clear()

    async def _send_all(self, task: str) -> None:
        try:
            while (saved := self._next.pop(task, None)) is not None:
                await self._send(saved)
        finally:
            if self._senders.get(task) is asyncio.current_task():
                del self._senders[task]

    async def _send(self, saved: _Saved) -> None:
        try:
            # Sent blobs are of no use here: the pin does not outlast the sending.
            with self._cache.pin() as pin:
                blobs = await asyncio.to_thread(blobs_of_tree, self._cache.store, saved.tree)
                files = [one for one in sorted(blobs - {saved.tree}) if str(one) in self._unsent]
                await asyncio.gather(*(self._cache.send(file, pin) for file in files))
                await self._cache.send(saved.tree, pin)
        except FlowMeshError as error:
            why = f"the checkpoint of step {saved.step} could not be stored: {error}"
            log.warning("task %s: %s", saved.task[:12], why)
            self._on_trouble(saved.task, why)
            return
        for sent in (saved.tree, *files):
            self._unsent.pop(str(sent), None)
        self._on_saved(saved.task, str(saved.tree), saved.step)
