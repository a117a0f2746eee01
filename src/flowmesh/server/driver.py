"""The loop: event -> step -> journal -> perform. Everything the core does, it does here."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from flowmesh.base.errors import BlobMissing, Conflict, LimitExceeded, SpecError, StoreError
from flowmesh.base.ids import RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.budgets import waits_for
from flowmesh.core.checkpoints import STOP_MS
from flowmesh.core.events import (
    Event,
    PlaneStarted,
    RunCancelled,
    RunSubmitted,
    StepAssembled,
    StepExpanded,
    Tick,
    WorkerGone,
)
from flowmesh.core.forecast import snapshot
from flowmesh.core.machine import ControlPlane
from flowmesh.core.needs import PATIENCE_MS, unmet
from flowmesh.core.plan import Policy
from flowmesh.core.records import Step, StepStatus
from flowmesh.core.state import Changes
from flowmesh.fleets.base import Provider
from flowmesh.server.access import Access
from flowmesh.server.checkpoints import Checkpoints
from flowmesh.server.fleet import Fleet
from flowmesh.server.forecasts import Forecasts
from flowmesh.server.items import Items
from flowmesh.server.ledger import Ledger
from flowmesh.server.project import RunRecord, pack
from flowmesh.server.quotas import TenantSettings, changes_of
from flowmesh.server.reports import synced, within_time
from flowmesh.server.signals import Signals
from flowmesh.server.steps import StepWork
from flowmesh.server.submission import Submission
from flowmesh.server.submissions import Submissions
from flowmesh.server.uploads import Uploads
from flowmesh.spec.operator import Operator
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database
from flowmesh.wire import (
    CreateRun,
    LeaseBody,
    LeaseStop,
    LeaseTask,
    SyncAnswer,
    SyncRequest,
    WorkerInfo,
)

STEP_THREADS = 2
TICK_S = 0.5
#: Runs of one tenant that have not settled.
OPEN_RUNS_LIMIT = 1_000
#: Tenants that have had a run; those that the deployment names are always let in.
TENANTS_LIMIT = 10_000
#: Well under the time after which a silent worker is lost.
WAIT_LIMIT_MS = 10_000
#: How long an answer may wait while the worker has work that is being stopped.
STOPPING_WAIT_S = 0.2
#: Beyond the time for a checkpoint, how long a cancellation waits for work to be gone.
STOP_MARGIN_S = 0.8
#: Seconds before each further attempt at a step that the store's trouble has cut short.
STORE_RETRIES_S = (0.5, 2.0, 8.0)

_log = logging.getLogger(__name__)


def run_of(step: StepId) -> RunId:
    return RunId(step.split("/", 1)[0])


class Driver:
    """Holds the ledger and serves runs and workers; one for each server process.

    Args:
        tenants: their weights and quotas; those not named have weight 1 and no quota.
        policy: with the limits of what may be rented; `Utility()`, which rents nothing, if None.
        providers: of machines.
    """

    def __init__(
        self,
        database: Database,
        store: BlobStore,
        access: Access,
        catalog: Mapping[str, Operator],
        tenants: Mapping[str, TenantSettings],
        *,
        policy: Policy | None = None,
        providers: Sequence[Provider] = (),
    ) -> None:
        self.database = database
        self.store = store
        self.access = access
        self.signals = Signals()
        self.submissions = Submissions(database, catalog)
        self.infos: dict[WorkerId, WorkerInfo] = {}
        self._tenants = tenants
        self._ledger = Ledger(database, self._perform, policy)
        self.fleet = Fleet(
            providers,
            step=self._ledger.step,
            durable=self._ledger.durable,
            state=lambda: self.plane.state,
            now_ms=self.now_ms,
        )
        self.uploads = Uploads(access, lambda: self.plane.state)
        self.checkpoints = Checkpoints(database, store, self._ledger)
        self.forecasts = Forecasts(database, store, lambda: self.plane)
        #: What each worker said it runs.
        self._running: dict[WorkerId, frozenset[int]] = {}
        self._work = StepWork(database, store)
        self._threads = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="steps")
        self._performing: set[tuple[StepId, StepStatus, int]] = set()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def plane(self) -> ControlPlane:
        return self._ledger.plane

    @property
    def fatal(self) -> asyncio.Future[str]:
        """Set with the reason when the process cannot go on."""
        return self._ledger.fatal

    def now_ms(self) -> int:
        return self._ledger.now_ms()

    async def start(self) -> None:
        """Take up the work where the journal left it."""
        left = self.plane.outstanding()
        await self._ledger.step(PlaneStarted(self.now_ms()))
        await self.access.learn_sizes(self.store)
        for change in changes_of(self.plane.state, self._tenants, self.now_ms()):
            await self._ledger.step(change)
        self._take_up(left)
        self._spawn(self._ticks())
        self._spawn(self.checkpoints.tend())
        self._spawn(self.fleet.run())

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._threads.shutdown(wait=True)
        self.forecasts.close()
        if not self.fatal.done():
            await self._ledger.checkpoint()
        self.database.close()

    # Runs

    async def submit(self, request: CreateRun, run: RunId) -> bool:
        """Accept a run; it is durable when this returns. False if it was known already.

        Raises:
            SpecError: the document is wrong.
            BlobMissing: inputs were not put, or are not the tenant's.
            Conflict: the key belongs to another request.
            LimitExceeded: the tenant has too many open runs, or there are too many tenants.
        """
        if self._is_known(run, request):
            return False
        submission = await asyncio.to_thread(self.checked, request)
        if run in self.plane.state.runs or run in self.plane.state.settled_ms:
            await self._ledger.durable()
            return not self._is_known(run, request)
        self._check_room(request.tenant)
        at_ms = self.now_ms()
        core_run, steps = submission.core_run(run, at_ms, self.weight_of(request.tenant))
        graph = submission.graph
        names = [(name, graph.steps[name].op.name) for name in graph.order]
        title = graph.workflow.name or request.file
        record = pack(RunRecord(title, request.model_dump_json(), names))
        self.submissions.keep(run, submission)
        before = snapshot(self.plane.state, at_ms)
        await self._ledger.step(RunSubmitted(at_ms, core_run, steps, record))
        self._spawn(self.forecasts.keep(submission, core_run, before))
        return True

    def weight_of(self, tenant: str) -> float:
        return self._tenants.get(tenant, TenantSettings()).weight

    def _check_room(self, tenant: str) -> None:
        tenants = self.plane.state.tenants
        known = tenants.get(TenantId(tenant))
        if known is None and tenant not in self._tenants and len(tenants) >= TENANTS_LIMIT:
            raise LimitExceeded(
                f"the server knows {len(tenants)} tenants, the limit; whoever runs it can let in"
                f" {tenant} by naming it with --tenants"
            )
        if known is not None and known.open_runs >= OPEN_RUNS_LIMIT:
            raise LimitExceeded(
                f"tenant {tenant} has {known.open_runs} open runs, the limit; "
                "wait for some to end, or cancel them"
            )

    def _is_known(self, run: RunId, request: CreateRun) -> bool:
        found = self.database.read("SELECT request FROM runs WHERE run = ?", (run,))
        if found and CreateRun.model_validate_json(found[0][0]) != request:
            raise Conflict(f"the key {request.key!r} belongs to run {run} of another request")
        return bool(found)

    def checked(self, request: CreateRun) -> Submission:
        """What a request comes to. Raises SpecError, BlobMissing."""
        submission = self.submissions.check(request)
        needed = {artifact.address for artifact in submission.artifacts()}
        there = self.store.has(needed)
        for digest in sorted(needed):
            if digest not in there or not self.access.may_use(request.tenant, digest):
                raise BlobMissing(digest, f"the store of tenant {request.tenant}")
        for tree in {one.address for one in submission.artifacts() if one.kind == "tree"}:
            if (hidden := self.access.hidden_file(request.tenant, tree, self.store)) is not None:
                raise BlobMissing(hidden, f"the store of tenant {request.tenant}")
        return submission

    async def cancel(self, run: RunId, *, checkpoint: bool = False) -> None:
        """End a run.

        With `checkpoint`, this returns once what was stopped has left one, or its time is up.
        """
        await self._ledger.step(RunCancelled(self.now_ms(), run, checkpoint))
        stops = dict(self.plane.state.stopping) if checkpoint else {}
        deadline = time.monotonic() + STOP_MS / 1000 + STOP_MARGIN_S
        while time.monotonic() < deadline and not self.signals.closing:
            stops = {n: one for n, one in stops.items() if n in self._running.get(one.worker, ())}
            if not stops:
                return
            await asyncio.sleep(0.05)

    def unmet(self, run: RunId, patience_ms: int = PATIENCE_MS) -> dict[str, str]:
        """By the names of a run's steps: what their tasks wait for that no worker or quota has.

        That no worker fits is told of tasks that have been ready for `patience_ms`.
        """
        state, now_ms = self.plane.state, self.now_ms()
        known = state.runs.get(run)
        told = {
            step: unmet(state, step, now_ms, patience_ms) or waits_for(state, step)
            for step in (known.steps if known else ())
        }
        return {step.removeprefix(f"{run}/"): words for step, words in told.items() if words}

    def items(self, step: StepId) -> Items:
        """The items of an expanded step."""
        return self._work.items(step)

    # Workers

    async def worker_gone(self, prefix: str) -> None:
        """The process of a local worker, whose id starts with `prefix`, has ended."""
        for worker in [known for known in self.plane.state.workers if known.startswith(prefix)]:
            await self._ledger.step(WorkerGone(self.now_ms(), worker))

    async def sync(self, request: SyncRequest) -> SyncAnswer:
        """Take a worker's report; answer with all that it should be running.

        The answer waits, up to `wait_ms`, until it would tell the worker something new.
        """
        worker = WorkerId(request.info.worker)
        self.infos[worker] = request.info
        lacking = self._lacking(request)
        for event in self.checkpoints.events(request, self.now_ms()):
            await self._ledger.step(event)
        self._running[worker] = frozenset(request.running)
        told = synced(request, self.now_ms())
        await self._ledger.step(within_time(told, self.plane.state))
        for step, digest in lacking:
            self._spawn(self._make_again(step, digest))
        settled = [(report.lease, report.task) for report in request.reports]
        saved = [
            (one.lease, one.task, one.checkpoint) for one in request.progress if one.checkpoint
        ]
        if request.leaving:
            self._forget(worker)
            return SyncAnswer(settled=settled, saved=saved)
        wait_s = min(request.wait_ms, WAIT_LIMIT_MS) / 1000
        stopping = {stop.lease for stop in self._stopping(worker)} & set(request.running)
        deadline = time.monotonic() + (min(wait_s, STOPPING_WAIT_S) if stopping else wait_s)
        leases = first = self._desired(worker)
        while not settled and not saved and not self.signals.closing:
            if worker not in self.plane.state.workers:
                break  # lost or gone since it asked: it hears that it runs nothing
            # Anew each time: a worker that leaves and is heard of again has another one.
            news = self.signals.worker(worker)
            news.clear()
            leases = self._desired(worker)
            running = set(request.running) - stopping
            if leases != first or {lease.lease for lease in leases} != running:
                break
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await news.wait()
            except TimeoutError:
                break
        await self._ledger.durable()
        stops = self._stopping(worker)
        return SyncAnswer(leases=leases, settled=settled, saved=saved, stopping=stops)

    def _stopping(self, worker: WorkerId) -> list[LeaseStop]:
        now_ms = self.now_ms()
        due = self.plane.stopping(worker)
        return [LeaseStop(lease=n, within_ms=max(0, due_ms - now_ms)) for n, due_ms in due]

    def _lacking(self, request: SyncRequest) -> list[tuple[Step, str]]:
        """Steps whose tasks could not run for want of a blob, and which."""
        state = self.plane.state
        pairs = [
            (state.steps[step], report.missing)
            for report in request.reports
            if report.missing
            for step in state.wants.get(TaskId(report.task), ())
        ]
        return list(dict.fromkeys(pairs))

    async def _make_again(self, step: Step, digest: str) -> None:
        def work() -> Event | None:
            submission = self.submissions.of(step.run)
            return self._work.lost(submission, step, digest, self.now_ms())

        with contextlib.suppress(SpecError):  # the step itself meets it too, and says so
            reopened = await asyncio.to_thread(work)
            if reopened is not None:
                await self._ledger.step(reopened)

    def _desired(self, worker: WorkerId) -> list[LeaseBody]:
        known = self.plane.state.tasks
        bodies = []
        for lease, left in self.plane.desired(worker):
            trees = dict(zip(lease.tasks, lease.checkpoints, strict=False))
            tasks = [
                LeaseTask(
                    task=task,
                    pack=known[task].spec.pack,
                    line=known[task].spec.line,
                    work=known[task].spec.work,
                    checkpoint=trees.get(task, ""),
                )
                for task in left
            ]
            op = lease.batch_key.split("@", 1)[0]
            bodies.append(LeaseBody(lease=lease.id, batch_key=lease.batch_key, op=op, tasks=tasks))
        return bodies

    def _forget(self, worker: WorkerId) -> None:
        self.infos.pop(worker, None)
        self._running.pop(worker, None)
        self.signals.forget_worker(worker)

    # Performing

    def _perform(self, changes: Changes) -> None:
        """Carry out what is durable now. Every part may be done twice."""
        workers = {lease.worker for lease, _ in (*changes.granted, *changes.ended)}
        workers |= {accepted.worker for accepted in changes.accepted}
        for worker in workers.union(changes.trimmed) & self.plane.state.workers.keys():
            self.signals.worker(worker).set()
        runs = {step.run for step in changes.steps.values()} | changes.runs.keys()
        for _, leased_for in changes.granted:
            runs.update(leased_for)
        for progressed in changes.progressed:
            runs.update(progressed.runs)
        for run in runs:
            self.signals.run_changed(run, settled=run not in self.plane.state.runs)
        self._take_up(changes.steps.values())
        self.fleet.changed(changes)

    def _take_up(self, steps: Iterable[Step]) -> None:
        """Expand and assemble those of `steps` that the core waits for."""
        for step in steps:
            key = (step.id, step.status, step.turn)
            if step.status not in (StepStatus.EXPANDING, StepStatus.ASSEMBLING):
                continue
            if key not in self._performing:
                self._performing.add(key)
                self._spawn(self._do(step))

    async def _do(self, step: Step) -> None:
        loop = asyncio.get_running_loop()
        try:
            event = await loop.run_in_executor(self._threads, self._event_for, step)
            if event is not None:
                await self._ledger.step(event)
        finally:
            self._performing.discard((step.id, step.status, step.turn))

    def _event_for(self, step: Step) -> Event | None:
        """What became of a step's expansion or assembly; None if it was put back meanwhile.

        Nothing that a user has written may end the server, so every exception becomes the
        step's failure. Trouble with the store may pass: it is tried again for a while.
        """
        expands = step.status is StepStatus.EXPANDING
        work = self._work.expand if expands else self._work.assemble
        for wait_s in (*STORE_RETRIES_S, None):
            now = self.plane.state.steps.get(step.id)
            if now is None or (now.turn, now.status) != (step.turn, step.status):
                return None
            try:
                return work(self.submissions.of(step.run), step, self.now_ms())
            except StoreError as error:
                message = str(error)
                if wait_s is None:
                    break
                time.sleep(wait_s)
            except SpecError as error:
                message = str(error)
                break
            except Exception as error:
                _log.exception("step %s", step.id)
                message = (
                    f"the server met an error of its own ({type(error).__name__}); see its log"
                )
                break
        failed: Callable[..., Event] = StepExpanded if expands else StepAssembled
        return failed(self.now_ms(), step.id, error=message, turn=step.turn)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            deadline_ms = self.plane.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= self.now_ms():
                await self._ledger.step(Tick(self.now_ms()))
            for worker in self.infos.keys() - self.plane.state.workers.keys():
                self._forget(worker)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the driver failed", exc_info=error)
            self._ledger.stop(f"{type(error).__name__}: {error}")
