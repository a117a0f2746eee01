"""A server of leases and blobs on loopback: real HTTP, state that survives `restart`."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flowmesh.base.digest import Digest, canonical, fingerprint
from flowmesh.base.errors import StoreError
from flowmesh.spec.action import Action, Result
from flowmesh.wire import (
    ErrorBody,
    LeaseBody,
    LeaseStop,
    LeaseTask,
    SyncAnswer,
    SyncRequest,
    TaskProgress,
    TaskReport,
)

#: No wait of a test is longer; one that is has failed.
PATIENCE_S = 30.0


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Signals are the test's.


class FakeServer:
    """Grants what a test puts into `leases`, and keeps what is reported.

    Attributes:
        settle: while false, reports are taken but not settled.
        open: while clear, uploads are not answered; `waiting` counts them.
        tell: `sync` answers so instead, if set.
        unreadable: hashes of blobs that it cannot read just now.
        full: while true, uploads are refused for want of room.
        progress: what was said of tasks, in the order of its coming.
        stopping: what the answers say of leases that are over.
        uploads, downloads: hashes, in the order of their coming.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.blobs: dict[str, bytes] = {}
        self.leases: dict[int, LeaseBody] = {}
        self.reports: dict[str, TaskReport] = {}
        self.syncs: list[SyncRequest] = []
        self.uploads: list[str] = []
        self.downloads: list[str] = []
        self.settle = True
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.tell: Response | None = None
        self.full = False
        self.unreadable: set[str] = set()
        self.progress: list[TaskProgress] = []
        self.stopping: list[LeaseStop] = []
        self._changed = asyncio.Condition()
        self._port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        # With the protocol named, or asyncio leaves Nagle's delay on: 40 ms an answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        routes = [
            Route("/v1/sync", self._sync, methods=["POST"]),
            Route("/v1/blobs/{hash}", self._get, methods=["GET"]),
            Route("/v1/blobs/{hash}", self._put, methods=["PUT"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), log_level="error", lifespan="off", ws="none"
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        async with self._changed:
            self._changed.notify_all()
        await self._serving

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for something to become true, looking after each change."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(true)

    async def change(self) -> None:
        """Wake whoever waits, after a test has changed something."""
        async with self._changed:
            self._changed.notify_all()

    def put(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        self.blobs[digest.hash] = content
        return digest

    async def grant(self, lease: int, *actions: Action, checkpoint: str = "") -> list[str]:
        """Lease actions out; the tasks' ids."""
        documents = [action.document() for action in actions]
        pack = str(self.put(b"".join(canonical(one) + b"\n" for one in documents)))
        tasks = [fingerprint(one) for one in documents]
        named = [
            LeaseTask(task=task, pack=pack, line=n, checkpoint=checkpoint)
            for n, task in enumerate(tasks)
        ]
        key = f"{actions[0].op}@{actions[0].version}"
        self.leases[lease] = LeaseBody(lease=lease, batch_key=key, op=actions[0].op, tasks=named)
        await self.change()
        return tasks

    async def reported(self, *tasks: str) -> list[TaskReport]:
        await self.until(lambda: all(task in self.reports for task in tasks))
        return [self.reports[task] for task in tasks]

    async def results(self, *tasks: str) -> list[Result]:
        reports = await self.reported(*tasks)
        assert all(report.result for report in reports), reports
        return [Result.decode(report.result or "") for report in reports]

    async def _sync(self, request: Request) -> Response:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({}, 401)
        if self.tell is not None:
            return self.tell
        asked = SyncRequest.model_validate_json(await request.body())
        self.syncs.append(asked)
        settled = []
        for report in asked.reports:
            self.reports[report.task] = report
            if self.settle:
                settled.append((report.lease, report.task))
                self._forget(report)
        self.progress += asked.progress
        saved = [(one.lease, one.task, one.checkpoint) for one in asked.progress if one.checkpoint]
        await self.change()
        if not settled and not saved:
            await self._park(asked)
        answer = SyncAnswer(
            leases=list(self.leases.values()), settled=settled, saved=saved, stopping=self.stopping
        )
        return JSONResponse(answer.model_dump(mode="json"))

    def saved(self) -> list[TaskProgress]:
        """Checkpoints that were told, each once."""
        told = {one.checkpoint: one for one in self.progress if one.checkpoint}
        return list(told.values())

    async def _park(self, asked: SyncRequest) -> None:
        """Hold the answer until the worker should do something else than it does."""
        before = {n: lease.model_dump() for n, lease in self.leases.items()}
        if set(before) != set(asked.running):
            return

        def news() -> bool:
            now = {n: lease.model_dump() for n, lease in self.leases.items()}
            return now != before or self._server.should_exit or self.tell is not None

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(asked.wait_ms / 1000), self._changed:
                await self._changed.wait_for(news)

    def _forget(self, report: TaskReport) -> None:
        lease = self.leases.get(report.lease)
        if lease is None:
            return
        left = [task for task in lease.tasks if task.task != report.task]
        if left:
            self.leases[report.lease] = lease.model_copy(update={"tasks": left})
        else:
            del self.leases[report.lease]

    async def _get(self, request: Request) -> Response:
        assert request.headers["x-flowmesh-worker"], "only a worker may read everything"
        content = self.blobs.get(request.path_params["hash"])
        self.downloads.append(request.path_params["hash"])
        await self.change()
        if content is None:
            return JSONResponse({}, 404)
        if request.path_params["hash"] in self.unreadable:
            return _store_error("the disk is slow")
        return Response(content)

    async def _put(self, request: Request) -> Response:
        content = await request.body()
        self.waiting += 1
        await self.change()
        await self.open.wait()
        self.waiting -= 1
        if self.full:
            return _store_error("the disk is full")
        assert Digest.of(content).hash == request.path_params["hash"]
        self.put(content)
        self.uploads.append(request.path_params["hash"])
        await self.change()
        return Response(status_code=201)


def _store_error(detail: str) -> Response:
    body = ErrorBody(title="", status=502, code=StoreError.code, detail=detail)
    return JSONResponse(body.model_dump(mode="json"), 502)
