"""Runs one lease: documents, inputs, a batch in a child process, outputs, reports.

Every task of a lease is reported once, whatever happens, unless the lease is taken back.
"""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.base.errors import (
    BlobMissing,
    DigestMismatch,
    FlowMeshError,
    LimitExceeded,
    SpecError,
)
from flowmesh.runtimes.base import FailureKind
from flowmesh.spec.action import Action, artifacts_of, task_of
from flowmesh.spec.operator import Operator
from flowmesh.wire import LeaseTask
from flowmesh.worker import frames
from flowmesh.worker.cache import Cache, Pin
from flowmesh.worker.children import Child, ChildDied, ChildKey, Children, NoChild
from flowmesh.worker.delivery import Assignment, Delivery, Lack, delivering
from flowmesh.worker.device import Gauge
from flowmesh.worker.offers import preloads
from flowmesh.worker.packs import Packs
from flowmesh.worker.timing import Batch, Took

log = logging.getLogger("flowmesh.worker")


@dataclass(frozen=True, slots=True)
class _Task:
    id: str
    document: Mapping[str, Any]
    action: Action
    checkpoint: str = ""
    work: float = 0.0


class Executor:
    """Runs leases, at most `slots` batches at one time."""

    def __init__(
        self,
        cache: Cache,
        children: Children,
        operators: Mapping[str, Operator],
        *,
        scratch: Path,
        slots: int,
        interruptions_per_hour: float,
        gauge: Gauge,
        slowdown: float,
    ) -> None:
        self._cache, self._children, self._operators = cache, children, operators
        self._gauge, self._slowdown = gauge, slowdown
        self._preloads = preloads(operators.values())
        self._scratch, self._interruptions_per_hour = scratch, interruptions_per_hour
        self._packs = Packs()
        self._slots = asyncio.Semaphore(slots)

    async def run(self, assignment: Assignment) -> None:
        """Run a lease and report each of its tasks. Cancelled: kill what runs, report no more."""
        tasks: list[_Task] = []
        began_s = time.monotonic()
        try:
            # The server may let go of a checkpoint while we go on from it: unlike an input, what
            # a result shares with it must be sent. So it has a pin of its own.
            with self._cache.pin() as pin, self._cache.pin() as start:
                tasks = await self._read(assignment, pin)
                tasks, tree_bytes = await self._fetch(assignment, tasks, pin)
                tasks = await self._with_checkpoints(assignment, tasks, start)
                batch = Batch(time.monotonic() - began_s, pin.fetched_bytes + start.fetched_bytes)
                async with self._slots:
                    # The lease may have become smaller while we waited.
                    tasks = [task for task in tasks if task.id in assignment.wanted]
                    if tasks:
                        await self._execute(assignment, tasks, tree_bytes, pin, batch)
        finally:
            for task in tasks:
                if task.checkpoint:
                    self._cache.drop_tree(Digest.parse(task.checkpoint))

    async def _read(self, assignment: Assignment, pin: Pin) -> list[_Task]:
        """The action documents, each checked to be what its task is named after."""
        numbers: dict[str, list[int]] = {}
        for named in assignment.lease.tasks:
            numbers.setdefault(named.pack, []).append(named.line)
        packs = {pack: await self._lines(pack, lines, pin) for pack, lines in numbers.items()}
        tasks: list[_Task] = []
        for named in assignment.lease.tasks:
            lines = packs[named.pack]
            if isinstance(lines, Lack):
                assignment.lacks(named.task, lines)
                continue
            task = _document(named, lines)
            fault = task if isinstance(task, str) else self._misfit(task, tasks)
            if isinstance(task, str) or fault:
                assignment.failed(named.task, FailureKind.INTERNAL, fault)
            else:
                tasks.append(task)
        return tasks

    async def _lines(self, pack: str, numbers: list[int], pin: Pin) -> dict[int, bytes] | Lack:
        """Lines of a pack, or why there are none."""
        try:
            digest = Digest.parse(pack)
            path = await self._cache.blob(digest, pin)
        except (FlowMeshError, ValueError) as error:
            return _lack("the pack of this task's document cannot be had", pack, error)
        return await asyncio.to_thread(self._packs.lines, digest, path, numbers)

    def _misfit(self, task: _Task, others: list[_Task]) -> str:
        """Why this worker cannot run a task in a batch with the others, or nothing."""
        action = task.action
        operator = self._operators.get(action.op)
        if operator is None or operator.version != action.version:
            ours = f"has version {operator.version}" if operator else "has no such operator"
            return f"the task asks for {action.op} version {action.version}, the worker {ours}"
        if others and self._batchable(others[0].action) != self._batchable(action):
            return "the task is of another batch key than the rest of its lease"
        return ""

    def _batchable(self, action: Action) -> tuple[object, ...]:
        return action.op, action.version, action.engine, self._models(action)

    def _models(self, action: Action) -> tuple[str, ...]:
        ports = self._operators[action.op].inputs
        bound = [action.inputs[p] for p in ports if ports[p].kind == "model" and p in action.inputs]
        return tuple(artifact.digest for one in bound for artifact in artifacts_of(one))

    async def _fetch(
        self, assignment: Assignment, tasks: list[_Task], pin: Pin
    ) -> tuple[list[_Task], int]:
        """Bring every input here; the tasks that have theirs, and the bytes of their trees."""
        needed = {(a.kind == "tree", a.digest) for task in tasks for a in task.action.artifacts()}
        asked = [(tree, Digest.parse(digest)) for tree, digest in sorted(needed)]
        got = await asyncio.gather(*(self._input(tree, digest, pin) for tree, digest in asked))
        lacks = {str(digest): lack for (_, digest), (lack, _) in zip(asked, got, strict=True)}
        ready = []
        for task in tasks:
            lacking = [lack for a in task.action.artifacts() if (lack := lacks[a.digest])]
            if lacking:
                assignment.lacks(task.id, lacking[0])
            else:
                ready.append(task)
        return ready, sum(size_bytes for _, size_bytes in got)

    async def _input(self, tree: bool, digest: Digest, pin: Pin) -> tuple[Lack | None, int]:
        """Why an input cannot be had, if so, and its bytes if it is a tree."""
        try:
            if tree:
                return None, await self._cache.tree(digest, pin)
            await self._cache.blob(digest, pin)
        except FlowMeshError as error:
            return _lack("an input of this task cannot be had", str(digest), error), 0
        return None, 0

    async def _with_checkpoints(
        self, assignment: Assignment, tasks: list[_Task], pin: Pin
    ) -> list[_Task]:
        """Bring the checkpoints here. Where one is lost for good its task starts anew.

        Trouble that may pass, as a disk that is full, is none of these: the task does not run.
        """
        ready = []
        for task in tasks:
            try:
                if task.checkpoint:
                    await self._cache.tree(Digest.parse(task.checkpoint), pin)
                ready.append(task)
            except (BlobMissing, SpecError, LimitExceeded) as error:
                log.warning("task %s starts anew; its checkpoint is lost: %s", task.id[:12], error)
                ready.append(replace(task, checkpoint=""))
            except FlowMeshError as error:
                why = f"the checkpoint of this task cannot be had: {error}"
                assignment.lacks(task.id, Lack(why))
        return ready

    async def _execute(
        self,
        assignment: Assignment,
        tasks: list[_Task],
        tree_bytes: int,
        pin: Pin,
        batch: Batch,
    ) -> None:
        action = tasks[0].action
        operator = self._operators[action.op]
        key = ChildKey(
            self._preloads[operator.runtime],
            operator.runtime,
            action.engine,
            self._models(action),
        )
        scratch = self._scratch / str(assignment.lease.lease)
        order = {
            "works": [
                {"task": task.id, "action": task.document, "checkpoint": task.checkpoint}
                for task in tasks
            ],
            "entry": operator.entry,
            "engine": action.engine,
            "batch_key": assignment.lease.batch_key,
            "scratch": str(scratch),
            "interruptions_per_hour": self._interruptions_per_hour,
            "slowdown": self._slowdown,
        }
        batch.model_bytes = tree_bytes if key.models else 0
        ids = [task.id for task in tasks]
        try:
            async with delivering(assignment, ids, self._cache, pin) as delivery:
                if operator.resumable:
                    assignment.can_stop.set()
                took = None
                try:
                    took = await self._converse(key, tree_bytes, order, assignment, delivery, batch)
                finally:
                    works = [task.work for task in tasks]
                    told = batch.report(took, works, self._gauge.joules) if took else None
                    delivery.ended(told)
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _converse(
        self,
        key: ChildKey,
        tree_bytes: int,
        order: frames.Frame,
        assignment: Assignment,
        delivery: Delivery,
        batch: Batch,
    ) -> Took | None:
        """Have a child run the batch; whatever it leaves open failed with it.

        What it took, if it came to its end.

        If it was asked to stop, what it leaves open is nobody's fault, and not reported.
        """
        kind, why = FailureKind.INTERNAL, "the operator stopped without being asked to"
        took, asked_s = None, time.monotonic()
        try:
            async with self._children.lend(key, tree_bytes) as child:
                batch.start_s = time.monotonic() - asked_s
                delivery.begin(batch.fetch_s + batch.start_s)
                stopping = asyncio.create_task(_pass_on(assignment.stop, child))
                try:
                    async for said in child.batch(order):
                        delivery.add(said)
                finally:
                    stopping.cancel()
                took = child.took
        except NoChild as error:
            kind, why = FailureKind.TRANSIENT, str(error)
        except ChildDied as error:
            kind, why = FailureKind.CRASH, f"the process that ran this task {error}"
        if not delivery.is_complete and not assignment.stop.is_set():
            delivery.rest_failed(kind, why)
        return took


async def _pass_on(stop: asyncio.Event, child: Child) -> None:
    await stop.wait()
    child.ask_to_stop()


def _document(named: LeaseTask, lines: Mapping[int, bytes]) -> _Task | str:
    """The task a line of a pack stands for, or what is wrong with it."""
    if named.line not in lines:
        return f"its pack has no line {named.line}, which the lease names"
    try:
        document = json.loads(lines[named.line])
        found = task_of(document)
        if found != named.task:
            return f"line {named.line} of its pack is the document of task {found}"
        return _Task(named.task, document, Action.of(document), named.checkpoint, named.work)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"line {named.line} of its pack is no action document: {error!r}"


def _lack(what: str, digest: str, error: Exception) -> Lack:
    lost = isinstance(error, BlobMissing | DigestMismatch)
    return Lack(f"{what}: {error}", digest if lost else "")
