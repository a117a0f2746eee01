"""The loop: event -> step -> journal -> perform. Everything the core does, it does here.

One asyncio thread steps the core. An answer that depends on a record is given once that
record is durable. If the journal fails, the process must end: a new one replays.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from flowmesh.base.errors import BlobMissing, StoreError
from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, WorkerId
from flowmesh.core.decisions import DECISIONS, Decision
from flowmesh.core.events import (
    EVENTS,
    Event,
    PlaneStarted,
    RunCancelled,
    RunSubmitted,
    StepAssembled,
    StepExpanded,
    StepReopened,
    TaskResult,
    Tick,
    WorkerGone,
    WorkerSynced,
)
from flowmesh.core.machine import ControlPlane
from flowmesh.core.records import Failure, Step, StepStatus
from flowmesh.core.state import Changes, State
from flowmesh.server.items import Items
from flowmesh.server.project import RunRecord, pack, statements
from flowmesh.server.signals import Signals
from flowmesh.server.steps import StepWork
from flowmesh.server.submission import Submission
from flowmesh.spec.action import Result
from flowmesh.spec.operator import Operator
from flowmesh.stores.base import BlobStore
from flowmesh.stores.codec import Codec, decode_state, encode_state
from flowmesh.stores.sqlite import Database, SqliteJournal
from flowmesh.wire import (
    CreateRun,
    LeaseBody,
    LeaseTask,
    SyncAnswer,
    SyncRequest,
    TaskReport,
    WorkerInfo,
)

CHECKPOINT_RECORDS = 5_000
STEP_THREADS = 2
TICK_S = 0.5
#: Well under the time after which a silent worker is lost.
WAIT_LIMIT_MS = 10_000
#: Submissions kept in memory; others are read again from their run's request.
SUBMISSIONS_KEPT = 1_000

_log = logging.getLogger(__name__)


StepFunction = Callable[[Submission, StepId, int], StepExpanded | StepAssembled | StepReopened]


def run_of(step: StepId) -> RunId:
    return RunId(step.split("/", 1)[0])


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Driver:
    def __init__(
        self,
        database: Database,
        store: BlobStore,
        catalog: Mapping[str, Operator],
        weights: Mapping[str, float],
    ) -> None:
        self.database = database
        self.store = store
        self.catalog = catalog
        self.weights = weights
        self.signals = Signals()
        self.infos: dict[WorkerId, WorkerInfo] = {}
        #: Set with the reason when the process cannot go on.
        self.fatal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._journal = SqliteJournal(database)
        self._codec: Codec[Event | Decision] = Codec([*EVENTS, *DECISIONS])
        self._work = StepWork(database, store)
        self._threads = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="steps")
        self._submissions: dict[RunId, Submission] = {}
        self._performing: set[tuple[StepId, StepStatus]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._since_checkpoint = 0
        self._last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.plane = self._recovered()

    def _recovered(self) -> ControlPlane:
        last = self._journal.last_checkpoint()
        plane = ControlPlane(state=decode_state(last.state, State) if last else None)
        for _, records in self._journal.replay(last.seq if last else 0):
            plane.replay(self._codec.decode_many(records))
            plane.state.drain()
            self._since_checkpoint += 1
        return plane

    async def start(self) -> None:
        """Take up the work where the journal left it."""
        left = self.plane.outstanding()
        await self._step(PlaneStarted(now_ms()))
        self._take_up(left)
        self._spawn(self._ticks())

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._threads.shutdown(wait=True)
        if not self.fatal.done():
            await self._checkpoint()
        self.database.close()

    async def submit(self, request: CreateRun, run: RunId) -> bool:
        """Accept a run; it is durable when this returns. False if it was known already.

        Raises SpecError for a wrong document, BlobMissing for inputs that were not put.
        """
        if self.database.read("SELECT 1 FROM runs WHERE run = ?", (run,)):
            return False
        submission = await asyncio.to_thread(self._checked, request)
        if run in self.plane.state.runs or run in self.plane.state.settled_ms:
            return False
        at_ms = now_ms()
        weight = self.weights.get(request.tenant, 1.0)
        core_run, steps = submission.core_run(run, at_ms, weight)
        graph = submission.graph
        names = [(name, graph.steps[name].op.name) for name in graph.order]
        title = graph.workflow.name or request.file
        record = pack(RunRecord(title, request.model_dump_json(), names))
        self._remember(run, submission)
        await self._step(RunSubmitted(at_ms, core_run, steps, record))
        return True

    def _checked(self, request: CreateRun) -> Submission:
        submission = Submission.of(request, self.catalog)
        needed = {artifact.address for artifact in submission.artifacts()}
        for digest in sorted(needed - self.store.has(needed)):
            raise BlobMissing(digest, "the server's store")
        return submission

    async def cancel(self, run: RunId) -> None:
        await self._step(RunCancelled(now_ms(), run))

    async def worker_gone(self, prefix: str) -> None:
        """The process of a local worker, whose id starts with `prefix`, has ended."""
        for worker in [known for known in self.plane.state.workers if known.startswith(prefix)]:
            await self._step(WorkerGone(now_ms(), worker))

    async def sync(self, request: SyncRequest) -> SyncAnswer:
        """Take a worker's report; answer with all that it should be running.

        The answer waits, up to `wait_ms`, until it would tell the worker something new.
        """
        worker = WorkerId(request.info.worker)
        self.infos[worker] = request.info
        news = self.signals.worker(worker)
        lacking = self._lacking(request)
        await self._step(_synced(request))
        for step, digest in lacking:
            self._spawn(self._make_again(step, digest))
        settled = [(report.lease, report.task) for report in request.reports]
        deadline = time.monotonic() + min(request.wait_ms, WAIT_LIMIT_MS) / 1000
        while True:
            news.clear()
            leases = [] if request.leaving else self._desired(worker)
            told = {lease.lease for lease in leases} != set(request.running)
            if settled or told or request.leaving or self.signals.closing:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline - time.monotonic()):
                    await news.wait()
                    continue
            break
        await self._durable()
        return SyncAnswer(leases=leases, settled=settled)

    def _lacking(self, request: SyncRequest) -> list[tuple[StepId, str]]:
        """Steps whose tasks could not run for want of a blob, and which."""
        wants = self.plane.state.wants
        pairs = [
            (step, report.missing)
            for report in request.reports
            if report.missing
            for step in wants.get(TaskId(report.task), ())
        ]
        return list(dict.fromkeys(pairs))

    async def _make_again(self, step: StepId, digest: str) -> None:
        submission = await asyncio.to_thread(self.submission, run_of(step))
        reopened = await asyncio.to_thread(self._work.lost, submission, step, digest, now_ms())
        if reopened is not None:
            await self._step(reopened)

    def _desired(self, worker: WorkerId) -> list[LeaseBody]:
        tasks = self.plane.state.tasks
        return [
            LeaseBody(
                lease=lease.id,
                batch_key=lease.batch_key,
                op=lease.batch_key.split("@", 1)[0],
                tasks=[
                    _lease_task(task, tasks[task].spec.pack, tasks[task].spec.line) for task in left
                ],
            )
            for lease, left in self.plane.desired(worker)
        ]

    async def _step(self, event: Event) -> None:
        """Step the core; return once the event and what it led to are durable."""
        decisions = self.plane.step(event)
        changes = self.plane.state.drain()
        records = self._codec.encode_many([event, *decisions])
        rows = statements(event, decisions, changes)
        self._last = asyncio.wrap_future(self._journal.append(event.at_ms, records, rows))
        await self._durable()
        self._since_checkpoint += 1
        self._perform(changes)
        if self._since_checkpoint >= CHECKPOINT_RECORDS:
            self._since_checkpoint = 0
            self._spawn(self._checkpoint())

    async def _durable(self) -> None:
        """Wait until every record made so far is durable: only then may it be told or done."""
        try:
            await asyncio.shield(self._last)
        except StoreError as error:
            self._stop(str(error))
            raise

    async def _checkpoint(self) -> None:
        """Keep the state, once every record behind it is durable."""
        state = encode_state(self.plane.state)
        seq = await asyncio.wrap_future(self._journal.append(now_ms(), self._codec.encode_many([])))
        await asyncio.wrap_future(self._journal.checkpoint(seq, state, now_ms()))

    def _perform(self, changes: Changes) -> None:
        """Carry out what is durable now. Every part may be done twice."""
        for lease, _ in (*changes.granted, *changes.ended):
            self.signals.worker(lease.worker).set()
        for accepted in changes.accepted:
            self.signals.worker(accepted.worker).set()
        touched = {step.run for step in changes.steps.values()} | changes.runs.keys()
        for run in touched:
            self.signals.run_changed(run, settled=run not in self.plane.state.runs)
        self._take_up(changes.steps.values())

    def _take_up(self, steps: Iterable[Step]) -> None:
        """Expand and assemble those of `steps` that the core waits for."""
        for step in steps:
            key = (step.id, step.status)
            if step.status not in (StepStatus.EXPANDING, StepStatus.ASSEMBLING):
                continue
            if key not in self._performing:
                self._performing.add(key)
                self._spawn(self._do(*key))

    async def _do(self, step: StepId, status: StepStatus) -> None:
        work: StepFunction
        work = self._work.expand if status is StepStatus.EXPANDING else self._work.assemble
        try:
            loop = asyncio.get_running_loop()
            event = await loop.run_in_executor(self._threads, self._in_thread, work, step)
            await self._step(event)
        finally:
            self._performing.discard((step, status))

    def _in_thread(self, work: StepFunction, step: StepId) -> Event:
        return work(self.submission(run_of(step)), step, now_ms())

    def items(self, step: StepId) -> Items:
        """The items of an expanded step."""
        return self._work.items(step)

    def submission(self, run: RunId) -> Submission:
        """A run's request and graph, from memory or from the tables."""
        known = self._submissions.get(run)
        if known is None:
            ((request,),) = self.database.read("SELECT request FROM runs WHERE run = ?", (run,))
            known = Submission.of(CreateRun.model_validate_json(request), self.catalog)
            self._remember(run, known)
        return known

    def _remember(self, run: RunId, submission: Submission) -> None:
        self._submissions[run] = submission
        if len(self._submissions) > SUBMISSIONS_KEPT:
            self._submissions.pop(next(iter(self._submissions)))

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            deadline_ms = self.plane.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= now_ms():
                await self._step(Tick(now_ms()))
                lost = self.infos.keys() - self.plane.state.workers.keys()
                for worker in lost:
                    del self.infos[worker]
                    self.signals.forget_worker(worker)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the driver failed", exc_info=error)
            self._stop(f"{type(error).__name__}: {error}")

    def _stop(self, reason: str) -> None:
        if not self.fatal.done():
            self.fatal.set_result(reason)


def _synced(request: SyncRequest) -> WorkerSynced:
    info = request.info
    results = tuple(_task_result(report) for report in request.reports)
    return WorkerSynced(
        now_ms(),
        WorkerId(info.worker),
        info.runtimes,
        info.slots,
        info.usd_per_hour,
        info.warm,
        results,
        request.leaving,
    )


def _task_result(report: TaskReport) -> TaskResult:
    ended = (LeaseId(report.lease), TaskId(report.task))
    if report.result is None:
        failure = Failure(report.kind)
        return TaskResult(*ended, failure, "", report.message, report.detail, report.seconds)
    seconds = Result.decode(report.result).usage.seconds
    return TaskResult(*ended, output=report.result, seconds=seconds)


def _lease_task(task: TaskId, pack: str, line: int) -> LeaseTask:
    return LeaseTask(task=task, pack=pack, line=line)
