"""Progress and checkpoints of tasks: what workers say of them, and what may be taken away.

A checkpoint that a newer one has replaced, and those of tasks that are done, are of no use to
anyone. Their blobs go by themselves, as soon as they are old enough that nobody can be about
to name them, and but for what something else needs.
"""

import asyncio
import logging
import time
from collections.abc import Iterator

from flowmesh.base.digest import Digest
from flowmesh.base.errors import StoreError
from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.core.checkpoints import granted
from flowmesh.core.events import ProgressForgotten, TaskProgressed
from flowmesh.core.records import TaskStatus
from flowmesh.server.ledger import Ledger
from flowmesh.server.live import live_blobs
from flowmesh.server.project import ProgressRecord, pack
from flowmesh.stores.base import BlobStore
from flowmesh.stores.gc import remove_trees
from flowmesh.stores.sqlite import Database
from flowmesh.wire import SyncRequest, TaskProgress

#: Progress of a task is journaled this often at most. Below the gap of `worker.progress`.
GAP_MS = 4_000
#: How often superseded checkpoints are looked for.
COLLECT_S = 60.0
#: Blobs that were put or asked for within this time stay; as the least grace of `store gc`.
GRACE_MS = 300_000
#: Progress and checkpoint of a task that nobody wants are kept for so long.
KEPT_MS = 7 * 24 * 3_600_000

_log = logging.getLogger(__name__)


class Checkpoints:
    def __init__(self, database: Database, store: BlobStore, ledger: Ledger) -> None:
        self._database, self._store, self._ledger = database, store, ledger
        #: When progress of a task was last journaled.
        self._noted_ms: dict[TaskId, int] = {}

    def events(self, request: SyncRequest, at_ms: int) -> Iterator[TaskProgressed]:
        """What of a worker's progress goes into the journal: all checkpoints, some of the rest."""
        worker, state = WorkerId(request.info.worker), self._ledger.plane.state
        for told in request.progress:
            task = TaskId(told.task)
            if granted(state, LeaseId(told.lease), task, worker) is None:
                continue  # nothing would come of it
            if not told.checkpoint:
                if at_ms - self._noted_ms.get(task, -GAP_MS) < GAP_MS:
                    continue
                self._noted_ms[task] = at_ms
            yield TaskProgressed(
                at_ms,
                worker,
                LeaseId(told.lease),
                task,
                told.step,
                told.checkpoint,
                "" if told.checkpoint else _record(told),
            )

    def held(self) -> tuple[set[str], set[str]]:
        """Of what is in memory: packs of documents, and checkpoints that may be gone on from."""
        state = self._ledger.plane.state
        packs = {task.spec.pack for task in state.tasks.values()}
        open_tasks = (one for one in state.tasks.values() if one.status is not TaskStatus.SUCCEEDED)
        trees = {task.checkpoint for task in open_tasks}
        trees |= {left.checkpoint for left in state.left.values()}
        for lease in state.leases.values():
            for task_id, tree in zip(lease.tasks, lease.checkpoints, strict=False):
                task = state.tasks.get(task_id)
                # What has left a checkpoint of its own has read the one it began with.
                if task is not None and task.lease == lease.id != task.saved_by:
                    trees.add(tree)
        return packs, trees - {""}

    async def tend(self) -> None:
        """Take away what is of no use, for ever."""
        while True:
            await asyncio.sleep(COLLECT_S)
            try:
                await self.tidy()
            except StoreError as error:
                _log.warning("superseded checkpoints stay for now: %s", error)

    async def tidy(self) -> None:
        """Take away what is of no use now. Raises StoreError."""
        tasks = self._ledger.plane.state.tasks
        for task in self._noted_ms.keys() - tasks.keys():
            del self._noted_ms[task]
        now_ms = self._ledger.now_ms()
        old = self._database.read("SELECT task FROM progress WHERE at_ms < ?", (now_ms - KEPT_MS,))
        unwanted = tuple(TaskId(task) for (task,) in old if task not in tasks)
        if unwanted:
            await self._ledger.step(ProgressForgotten(now_ms, unwanted))
        # What becomes live from here on is young, so the order matters.
        before_ms = time.time_ns() // 1_000_000 - GRACE_MS
        superseded = self._database.read("SELECT tree FROM superseded")
        if not superseded:
            return
        packs, trees = self.held()
        given = [Digest.parse(tree) for (tree,) in superseded]
        done = await asyncio.to_thread(self._remove, given, packs, trees, before_ms)
        gone = [("DELETE FROM superseded WHERE tree = ?", (str(tree),)) for tree in done]
        await asyncio.wrap_future(self._database.write(gone))

    def _remove(
        self, superseded: list[Digest], packs: set[str], held: set[str], before_ms: int
    ) -> list[Digest]:
        live, trees = live_blobs(self._database, packs, held)
        report = remove_trees(self._store, superseded, live=live, kept=trees, before_ms=before_ms)
        if report.removed:
            count, size = len(report.removed), report.removed_bytes / 1e6
            _log.info("removed %d blobs, %.1f MB, of superseded checkpoints", count, size)
        return report.done


def _record(told: TaskProgress) -> str:
    return pack(ProgressRecord(told.steps, told.facts, told.message))
