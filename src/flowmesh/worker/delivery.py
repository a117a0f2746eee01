"""What becomes of a batch's outcomes: time shared out, outputs sent, then the reports.

A result is reported only when the server has every blob that it needs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.errors import FlowMeshError
from flowmesh.runtimes.base import FailureKind
from flowmesh.spec.action import Result
from flowmesh.wire import BatchReport, LeaseBody, TaskReport
from flowmesh.worker.cache import Cache, Pin
from flowmesh.worker.frames import Frame
from flowmesh.worker.progress import Tidings
from flowmesh.worker.saving import Saving

#: Outcomes that come within this time are handed on together, and share its cost.
COALESCE_S = 0.02


@dataclass(frozen=True, slots=True)
class Lack:
    """An input that cannot be had. `digest` is empty where that is not the store's fault."""

    message: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A lease as this worker has it.

    `wanted` are the tasks still asked for, and may shrink while it runs; `open` those not
    reported yet. `tell` is told of progress and checkpoints. `stop` is set to have the work
    end at the next safe point, which only works while `can_stop` is set.
    """

    lease: LeaseBody
    send: Callable[[TaskReport], None]
    wanted: set[str]
    open: set[str]
    tell: Tidings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    can_stop: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, task: str, result: Result, batch: BatchReport | None = None) -> None:
        """`batch` is what all that was executed together took, told with the last of it."""
        lease, text = self.lease.lease, result.encode()
        self._report(TaskReport(lease=lease, task=task, result=text, batch=batch))

    def failed(
        self,
        task: str,
        kind: FailureKind,
        message: str,
        detail: str = "",
        seconds: float = 0.0,
        batch: BatchReport | None = None,
    ) -> None:
        """`batch` as of `done`."""
        why = {"kind": kind.value, "message": message, "detail": detail}
        self._fail(task, {**why, "seconds": seconds, "batch": batch})

    def lacks(self, task: str, lack: Lack) -> None:
        """A task cannot run for want of an input; the server may have it made again."""
        failure = {"kind": FailureKind.TRANSIENT.value, "message": lack.message}
        self._fail(task, {**failure, "missing": lack.digest})

    def _fail(self, task: str, failure: Mapping[str, object]) -> None:
        self._report(
            TaskReport.model_validate({"lease": self.lease.lease, "task": task, **failure})
        )

    def _report(self, report: TaskReport) -> None:
        self.open.remove(report.task)
        self.send(report)


class Delivery:
    """The outcomes of one batch, from the child to the reports; made by `delivering`."""

    def __init__(
        self,
        assignment: Assignment,
        tasks: Iterable[str],
        cache: Cache,
        pin: Pin,
        group: asyncio.TaskGroup,
    ) -> None:
        self._assignment, self._cache, self._pin, self._group = assignment, cache, pin, group
        self._waiting = dict.fromkeys(tasks)
        self._unreported = len(self._waiting)
        self._arrived: list[tuple[Frame, Result | None]] = []
        self._sending: dict[str, asyncio.Task[str]] = {}
        self._loop = asyncio.get_running_loop()
        self._batch: asyncio.Future[BatchReport | None] = self._loop.create_future()
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        lease, tell = assignment.lease.lease, assignment.tell
        self._saving = Saving(
            cache,
            group,
            lambda task, tree, step: tell.saved(lease, task, tree, step),
            lambda task, why: tell.trouble(lease, task, why),
        )

    def begin(self, spent_s: float) -> None:
        """The batch runs from now on; `spent_s` it has cost already, to fetch and to start."""
        self._since = self._loop.time() - spent_s

    @property
    def is_complete(self) -> bool:
        """Whether every task has an outcome."""
        return not self._waiting

    def add(self, frame: Frame) -> None:
        """An outcome as `child.py` tells it, or what `monitor.py` says before."""
        if "progress" in frame:
            tell, told = self._assignment.tell, frame["progress"]
            tell.progress(self._assignment.lease.lease, frame["task"], **told)
            return
        if "saved" in frame:
            self._saving.add(frame)
            return
        del self._waiting[frame["task"]]
        self._arrived.append(_decoded(frame))
        if self._timer is None:
            self._timer = self._loop.call_later(COALESCE_S, self.flush)

    def ended(self, batch: BatchReport | None) -> None:
        """The batch is over: what it took goes with its last report."""
        self._batch.set_result(batch)

    def rest_failed(self, kind: FailureKind, message: str) -> None:
        """Whatever has no outcome by now failed, for this reason."""
        self.flush()
        for task, seconds in zip(
            self._waiting, self._shares([0] * len(self._waiting)), strict=True
        ):
            self._assignment.failed(task, kind, message, seconds=seconds)
        self._unreported -= len(self._waiting)
        self._waiting.clear()

    def flush(self) -> None:
        """Hand on what has arrived since the last time."""
        self.stop()
        arrived, self._arrived = self._arrived, []
        tokens = [_tokens(result) for _, result in arrived]
        for (frame, result), seconds in zip(arrived, self._shares(tokens), strict=True):
            self._group.create_task(self._report(frame, result, seconds))

    def _shares(self, tokens: list[int]) -> list[float]:
        """The time since the last call, shared out among tasks with so many tokens."""
        now = self._loop.time()
        seconds, self._since = (now - self._since, now) if tokens else (0.0, self._since)
        return shares(tokens, seconds)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Everything that was under way has ended."""
        self._saving.close()

    def _send(self, digests: Iterable[str]) -> None:
        """Start to send what is not under way; the server has what it gave us itself."""
        for text in digests:
            digest = Digest.parse(text)
            if text not in self._sending and digest not in self._pin:
                self._sending[text] = self._group.create_task(self._sent(digest))

    async def _sent(self, digest: Digest) -> str:
        """Why a blob cannot be sent, or nothing once it was."""
        try:
            await self._cache.send(digest, self._pin)
        except FlowMeshError as error:
            return f"an output of this task cannot be stored: {error}"
        return ""

    async def _sent_all(self, frame: Frame, result: Result | None) -> list[str]:
        """Send what an outcome needs; what could not be sent, in words."""
        needed = frame["puts"] + list(result.digests() if result else ())
        self._send(needed)
        if result is not None:
            trees = [made.address for made in result.outputs.values() if made.kind == "tree"]
            try:
                owed = await self._saving.owed(trees)
            except FlowMeshError as error:
                return [f"an output of this task is damaged: {error}"]
            self._send(owed)
            needed += owed
        sends = [self._sending[text] for text in needed if text in self._sending]
        return [fault for fault in await asyncio.gather(*sends) if fault]

    async def _report(
        self,
        frame: Frame,
        result: Result | None,
        seconds: float,
    ) -> None:
        """Report a task when all that it needs has arrived."""
        task = frame["task"]
        if result is not None:
            self._saving.settled(task)
        faults = await self._sent_all(frame, result)
        self._unreported -= 1
        batch = await self._batch if not self._unreported else None
        if result is None:
            kind, why = FailureKind(frame["kind"]), (frame["message"], frame["detail"])
            self._assignment.failed(task, kind, *why, seconds, batch)
        elif faults:
            self._assignment.failed(task, FailureKind.TRANSIENT, faults[0], "", seconds, batch)
        else:
            # What a runtime has measured itself stays.
            usage = replace(result.usage, seconds=result.usage.seconds or seconds)
            self._assignment.done(task, replace(result, usage=usage), batch)


@asynccontextmanager
async def delivering(
    assignment: Assignment, tasks: Iterable[str], cache: Cache, pin: Pin
) -> AsyncIterator[Delivery]:
    """Deliver the outcomes of a batch of `tasks`; ends when all of them were reported."""
    delivery: Delivery | None = None
    try:
        async with asyncio.TaskGroup() as group:
            delivery = Delivery(assignment, tasks, cache, pin, group)
            try:
                yield delivery
                delivery.flush()
            finally:
                delivery.stop()
    finally:
        if delivery is not None:
            delivery.close()


def shares(tokens: list[int], seconds: float) -> list[float]:
    """Share time out by tokens, or equally where none were counted."""
    total = sum(tokens)
    return [seconds * (count / total if total else 1 / len(tokens)) for count in tokens]


def _decoded(frame: Frame) -> tuple[Frame, Result | None]:
    """An outcome and its result; one that cannot be read is the operator's failure."""
    if "result" not in frame:
        return frame, None
    try:
        return frame, Result.decode(frame["result"])
    except (msgspec.MsgspecError, RecursionError) as error:
        message = f"the operator gave a result that cannot be read: {error}"
        why = {"kind": FailureKind.INTERNAL.value, "message": message, "detail": ""}
        return {"task": frame["task"], "puts": frame["puts"], **why}, None


def _tokens(result: Result | None) -> int:
    return result.usage.prompt_tokens + result.usage.generated_tokens if result else 0
