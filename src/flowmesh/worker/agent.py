"""The worker's loop: say what it runs and has finished, do what the answer says.

State is synced, not messages: every request holds all that the worker is and has to
report, every answer all that it should run. So a request or an answer that is lost, late
or repeated does no harm, and a restart of the server is ridden through by asking again.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from flowmesh.base.errors import FlowMeshError, Problem, SpecError, Unreachable
from flowmesh.base.version import __version__
from flowmesh.runtimes.base import FailureKind
from flowmesh.wire import (
    HOLDS_LIMIT,
    DeviceBody,
    LeaseBody,
    SyncAnswer,
    SyncRequest,
    TaskReport,
    WorkerInfo,
)
from flowmesh.worker.cache import Cache
from flowmesh.worker.children import Children, environment
from flowmesh.worker.delivery import Assignment
from flowmesh.worker.device import Gauge
from flowmesh.worker.executor import Executor
from flowmesh.worker.offers import offered, warm_keys
from flowmesh.worker.progress import Tidings
from flowmesh.worker.settings import WorkerSettings
from flowmesh.worker.transport import Transport, backoff_s

log = logging.getLogger("flowmesh.worker")

#: Reports of one sync; more wait for the next.
REPORTS_LIMIT = 1000
#: A request with reports is answered at once; one that is not within this time was parked.
ANSWER_S = 0.5
#: An answer that changed nothing and came sooner than this is not asked for again at once.
HASTE_S = 0.05
#: So long without work, and a worker that does not know its machine tries it.
IDLE_S = 1.0
#: How long to try to say goodbye.
GOODBYE_S = 3.0


def run_worker(settings: WorkerSettings) -> int:
    """Work until told to stop; the exit status.

    0: told to stop (SIGTERM, SIGINT). 2: wrong settings, or the server refuses this
    worker. 3: without a word from the server for `exit_when_orphaned_s`.
    """
    return asyncio.run(_run(settings))


async def _run(settings: WorkerSettings) -> int:
    stop = asyncio.Event()
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    try:
        await work(settings, stop)
    except FlowMeshError as error:
        print(f"flowmesh worker: {error}", file=sys.stderr)
        return error.exit_code
    return 0


async def work(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Work until `stop` is set.

    Raises SpecError, StoreError for settings that cannot be; AccessDenied, Refused if the
    server will not have this worker; Unreachable once it is orphaned.
    """
    with _alone_in(settings.home):
        async with AsyncExitStack() as stack:
            # New with every start: what an earlier process of this name ran is gone.
            start = f"{os.getpid()}-{secrets.token_hex(3)}"
            worker = f"{settings.name or socket.gethostname()}-{start}"
            transport = Transport(settings.server, settings.token, worker)
            stack.push_async_callback(transport.close)
            cache = Cache(
                settings.home, transport, limit_bytes=settings.cache_bytes, shared=settings.store
            )
            children = Children(
                {
                    "store": str(cache.store.root),
                    "durable": cache.shared,
                    "trees": str(cache.trees.resolve()),
                },
                threads=settings.threads,
                limit_bytes=settings.memory_bytes,
            )
            stack.push_async_callback(children.close)
            await Agent(worker, settings, transport, cache, children).run(stop)


@contextmanager
def _alone_in(home: Path) -> Iterator[None]:
    """Hold a directory: two caches in one would evict what the other runs on."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = (home / "lock").open("w")
    except OSError as error:
        raise SpecError(Problem(f"cannot use {home}: {error.strerror or error}")) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            wanted = "give each worker a home of its own"
            raise SpecError(Problem(f"{home} is in use by another worker; {wanted}")) from error
        yield


@dataclass(frozen=True, slots=True)
class _Running:
    assignment: Assignment
    work: asyncio.Task[None]

    @property
    def can_stop(self) -> bool:
        """Whether it is at something that could leave a checkpoint."""
        return self.assignment.can_stop.is_set() and not self.work.done()


class Agent:
    """One worker, as its server knows it."""

    def __init__(
        self,
        worker: str,
        settings: WorkerSettings,
        transport: Transport,
        cache: Cache,
        children: Children,
    ) -> None:
        self._worker = worker
        self._settings, self._transport, self._children = settings, transport, children
        self._cache = cache
        scratch = settings.home.resolve() / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        self._gauge = Gauge(settings)
        self._executor = Executor(
            cache,
            children,
            settings.operators,
            scratch=scratch,
            slots=settings.slots,
            interruptions_per_hour=settings.interruptions_per_hour,
            gauge=self._gauge,
            slowdown=settings.slowdown,
        )
        self._runtimes = offered(settings.operators, settings.runtimes)
        self._running: dict[int, _Running] = {}
        #: By lease and task, until settled.
        self._reports: dict[tuple[int, str], TaskReport] = {}
        self._news = asyncio.Event()
        self._tidings = Tidings(self._news.set)
        self._draining = False

    async def run(self, stop: asyncio.Event) -> None:
        """Sync until `stop` is set. Raises AccessDenied, Refused, Unreachable, see `work`."""
        await asyncio.to_thread(self._gauge.look)
        measuring = asyncio.create_task(self._measure())
        try:
            await self._serve(stop)
            await self._drain()
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
            await self._abandon(list(self._running))
        await self._say_goodbye()

    async def _measure(self) -> None:
        """Try the machine once nothing has run for a while, and offer what was found."""
        if self._gauge.is_measured:
            return
        loop = asyncio.get_running_loop()
        since = loop.time()
        while loop.time() - since < IDLE_S:
            await asyncio.sleep(IDLE_S / 10)
            if self._running:
                since = loop.time()
        try:
            await self._gauge.measure(environment(1))  # The trial has threads of its own.
        except OSError as error:
            log.warning("the machine could not be measured: %s", error)
        self._news.set()

    async def _serve(self, stop: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        heard, failures = clock(), 0
        while not stop.is_set():
            asked = clock()
            try:
                answer = await self._exchange(stop)
            except Unreachable as error:
                self._endure(error, silent_s=clock() - heard, failures=failures)
                await _first(stop, timeout_s=backoff_s(failures))
                failures += 1
                continue
            if answer is None:
                continue
            if failures:
                log.info("in contact with %s again", self._settings.server)
            heard, failures = clock(), 0
            changed = await self._obey(answer)
            if not changed and clock() - asked < HASTE_S:
                await _first(stop, self._news, timeout_s=HASTE_S)

    async def _drain(self) -> None:
        """Have what can be gone on with leave a checkpoint, while the server goes on hearing us."""
        self._draining = True
        await self._abandon([n for n, one in self._running.items() if not one.can_stop])
        for running in self._running.values():
            running.assignment.stop.set()
        clock, failures = asyncio.get_running_loop().time, 0
        deadline = clock() + self._settings.stop_grace_s
        while self._is_busy() and (left_s := deadline - clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    answer = await self._exchange()
                    if answer is not None:
                        await self._obey(answer)
            except TimeoutError:
                break
            except Unreachable:
                await _first(self._news, timeout_s=min(left_s, backoff_s(failures)))
                failures += 1

    def _is_busy(self) -> bool:
        """Whether a checkpoint is being made, sent or told."""
        return any(one.can_stop for one in self._running.values()) or bool(
            self._tidings.unsettled()
        )

    async def _exchange(self, stop: asyncio.Event | None = None) -> SyncAnswer | None:
        """One sync; None if it was cut short, as there was something new to say."""
        request = self._request()
        alarms = [] if stop is None else [stop]
        self._news.clear()
        poll = asyncio.create_task(self._transport.sync(request))
        try:
            await _first(poll, *alarms, self._news)
            if _wants_answer(request) and not poll.done():
                # The answer is on its way: to ask again would only put it off.
                await _first(poll, *alarms, timeout_s=ANSWER_S)
            return poll.result() if poll.done() else None
        finally:
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)

    def _request(self, *, leaving: bool = False) -> SyncRequest:
        unsettled = {lease for lease, _ in self._reports} | self._tidings.unsettled()
        for lease in [n for n, one in self._running.items() if one.work.done()]:
            if lease not in unsettled:
                self._forget(lease)
        request = SyncRequest(
            info=self._info(),
            running=[] if leaving else list(self._running),
            reports=list(islice(self._reports.values(), REPORTS_LIMIT)),
            progress=self._tidings.take(),
            draining=self._draining,
            leaving=leaving,
            wait_ms=0 if leaving else self._settings.poll_ms,
        )
        if _wants_answer(request) or self._draining:
            # It is given at once; were it not, it should not take a whole poll.
            request.wait_ms = min(request.wait_ms, 1000)
        return request

    def _forget(self, lease: int) -> None:
        del self._running[lease]
        self._tidings.ended(lease)

    def _info(self) -> WorkerInfo:
        settings = self._settings
        return WorkerInfo(
            worker=self._worker,
            host=socket.gethostname(),
            runtimes=self._runtimes,
            slots=settings.slots,
            threads=settings.threads,
            memory_bytes=settings.memory_bytes,
            devices=settings.devices,
            usd_per_hour=settings.usd_per_hour,
            warm=warm_keys(self._children.warm, settings.operators),
            version=__version__,
            device=DeviceBody(**asdict(self._gauge.device)),
            place=settings.place,
            holds=tuple(map(str, self._cache.held(HOLDS_LIMIT))),
            instance=settings.instance,
            interruptions_per_hour=settings.interruptions_per_hour,
        )

    async def _obey(self, answer: SyncAnswer) -> bool:
        """Make what runs equal to what is listed; true if that, or a report's fate, is new."""
        settled = set(answer.settled)
        for pair in settled:
            self._reports.pop(pair, None)
        listed = {one.lease: one for one in answer.leases}
        self._stop(answer)
        unwanted = [
            lease
            for lease, running in self._running.items()
            if lease not in listed and not (running.assignment.stop.is_set() and running.can_stop)
        ]
        started = self._tidings.settle(answer.saved)
        for lease, body in listed.items():
            running = self._running.get(lease)
            if running is None:
                started |= self._start(body, settled)
                continue
            running.assignment.wanted.intersection_update(task.task for task in body.tasks)
            if not running.assignment.wanted & running.assignment.open:
                unwanted.append(lease)
        await self._abandon(unwanted)
        for lease in unwanted:
            if lease not in listed:
                self._forget(lease)
        return bool(settled or unwanted or started)

    def _stop(self, answer: SyncAnswer) -> None:
        """Leases that are over, and whose work may leave a checkpoint, for so long."""
        for one in answer.stopping:
            running = self._running.get(one.lease)
            if running is not None and running.can_stop and not running.assignment.stop.is_set():
                running.assignment.stop.set()
                asyncio.get_running_loop().call_later(one.within_ms / 1000, running.work.cancel)

    def _start(self, body: LeaseBody, settled: set[tuple[int, str]]) -> bool:
        """Begin with a lease, unless all of it was reported, or we are about to go."""
        if self._draining:
            return False
        known = settled | self._reports.keys()
        tasks = [task for task in body.tasks if (body.lease, task.task) not in known]
        if not tasks:
            return False
        log.debug("lease %d: %d tasks of %s", body.lease, len(tasks), body.batch_key)
        ids = {task.task for task in tasks}
        lease = body.model_copy(update={"tasks": tasks})
        assignment = Assignment(lease, self._report, ids, set(ids), self._tidings)
        self._running[body.lease] = _Running(
            assignment, asyncio.create_task(self._work(assignment))
        )
        return True

    async def _work(self, assignment: Assignment) -> None:
        try:
            await self._executor.run(assignment)
        except Exception as error:  # Our own bug: told to the server, as any other failure.
            log.exception("lease %d failed", assignment.lease.lease)
            detail = "".join(traceback.format_exception(error))
            for task in sorted(assignment.open):
                assignment.failed(
                    task, FailureKind.INTERNAL, f"the worker failed: {error!r}", detail
                )
        self._news.set()

    def _report(self, report: TaskReport) -> None:
        self._reports[report.lease, report.task] = report
        self._news.set()

    async def _abandon(self, leases: Iterable[int]) -> None:
        """Stop work, and wait until its processes were killed. Reports made so far stay."""
        works = [self._running[lease].work for lease in leases]
        for work in works:
            work.cancel()
        if works:
            await asyncio.wait(works)

    async def _say_goodbye(self) -> None:
        """Give all leases back, so that nobody has to wait for them to run out."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._transport.sync(self._request(leaving=True))
        except (FlowMeshError, TimeoutError) as error:
            log.warning("left without a goodbye: %s", error or "no answer")

    def _endure(self, error: Unreachable, *, silent_s: float, failures: int) -> None:
        """Bear with a silent server, unless it was silent for too long."""
        limit_s = self._settings.exit_when_orphaned_s
        if limit_s is not None and silent_s >= limit_s:
            raise Unreachable(f"no word from the server in {silent_s:.0f} s: {error}") from error
        if not failures:
            log.warning("%s; trying on", error)


def _wants_answer(request: SyncRequest) -> bool:
    """Whether it says what the server must confirm."""
    return bool(request.reports) or any(one.checkpoint for one in request.progress)


async def _first(
    *what: asyncio.Event | asyncio.Task[SyncAnswer], timeout_s: float | None = None
) -> None:
    """Wait for the first of these to come, or for the time to pass."""
    events = [asyncio.create_task(one.wait()) for one in what if isinstance(one, asyncio.Event)]
    tasks = [one for one in what if isinstance(one, asyncio.Task)]
    try:
        await asyncio.wait(
            [*events, *tasks], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for event in events:
            event.cancel()
