"""The composition root: settings -> stores, driver, routes; and the process that serves them."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from flowmesh.base.errors import FlowMeshError, Problem, SpecError, StoreError, StoreInUse
from flowmesh.base.version import __version__
from flowmesh.core.plan import Utility
from flowmesh.core.utility import PRESETS, Weights
from flowmesh.operators.catalog import catalog
from flowmesh.server import (
    auth,
    blobs,
    estimates,
    explain,
    limits,
    models,
    plans,
    problems,
    runs,
    schema,
    sync,
    tenants,
    trees,
)
from flowmesh.server.access import Access
from flowmesh.server.driver import Driver
from flowmesh.server.local_workers import LocalWorkers, WorkerOptions
from flowmesh.server.quotas import TenantSettings
from flowmesh.stores.files import FileStore
from flowmesh.stores.sqlite import Database

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: How long an attended server outlives its last client.
ATTENDED_S = 3.0
#: How long a server that leaves may hold its home: its workers may have checkpoints to leave.
LEAVING_S = 35.0
#: Of a machine's memory, what local workers may take together.
WORKERS_MEMORY_SHARE = 0.75
#: How often a server looks after its local workers.
WATCH_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `flowmesh up` was told.

    Attributes:
        home: directory of the journal, the store and the logs.
        port: 0 for the one of last time if it is free, else any; `<home>/server.json` tells.
        token: what workers and clients must present; required beyond loopback.
        workers: local worker processes to keep running.
        tenants: their weights and quotas; those not named have weight 1 and no quota.
        weights: of the utility, where a run names no objective of its own.
        memory_bytes: limit of each local worker; its share of most of this machine's if None.
        attended: leave by itself soon after the last client has gone.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 8420
    token: str | None = None
    workers: int = 2
    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    weights: Weights = PRESETS["balanced"]
    usd_per_hour: float = 0.0
    memory_bytes: int | None = None
    attended: bool = False

    def check(self) -> None:
        """Raises SpecError for settings that would be unsafe."""
        if self.host not in LOOPBACK and not self.token:
            raise SpecError(
                Problem(
                    f"listening on {self.host} needs an access token: set --token or "
                    "FLOWMESH_TOKEN (any long random string), or listen on 127.0.0.1"
                )
            )


@dataclass(frozen=True, slots=True)
class Stores:
    """What a server owns on disk, opened before it listens: another one may own it already."""

    blobs: FileStore
    database: Database

    @classmethod
    def open(cls, home: Path) -> "Stores":
        """Raises StoreError if another server uses `home`, or a newer version wrote it."""
        database = Database(home / "journal.db")
        try:
            database.migrate(schema.MIGRATIONS)
            return cls(FileStore(home / "store"), database)
        except FlowMeshError:
            database.close()
            raise


def create_app(settings: ServerSettings) -> FastAPI:
    app = FastAPI(
        title="FlowMesh", version=__version__, lifespan=lambda app: _lifespan(app, settings)
    )
    app.state.last_request_s = time.monotonic()
    app.state.requests = 0
    app.state.stores = None
    for part in (runs, plans, explain, blobs, trees, models, sync, tenants, estimates):
        app.include_router(part.routes)
    problems.install(app)
    app.add_middleware(limits.BodyLimit)
    app.add_middleware(_NoteRequests, state=app.state)
    app.add_middleware(auth.TokenGate, token=settings.token)

    @app.get("/healthz", tags=["server"])
    async def healthz() -> JSONResponse:
        """200 when the server takes work."""
        return JSONResponse({"status": "ok", "version": __version__})

    return app


class _NoteRequests:
    """An attended server counts what clients ask, not what workers do."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/v1/sync", "/healthz"):
            await self._app(scope, receive, send)
            return
        self._state.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.requests -= 1
            self._state.last_request_s = time.monotonic()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI, settings: ServerSettings) -> AsyncIterator[None]:
    stores: Stores = app.state.stores or Stores.open(settings.home)
    driver = app.state.driver = Driver(
        stores.database,
        stores.blobs,
        Access(stores.database, guarded=settings.token is not None),
        catalog(),
        settings.tenants,
        policy=Utility(settings.weights),
    )
    await driver.start()
    try:
        yield
    finally:
        await driver.close()


def serve(settings: ServerSettings) -> int:
    """Serve until told to stop; 0 for a clean end. Raises SpecError, StoreError at the start."""
    settings.check()
    settings.home.mkdir(parents=True, exist_ok=True)
    stores = _opened(settings)
    try:
        listener = _listen(settings)
    except FlowMeshError:
        stores.database.close()
        raise
    host, port = listener.getsockname()[:2]
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    process = _Process(settings, listener, url)
    process.app.state.stores = stores
    return asyncio.run(process.run())


def _opened(settings: ServerSettings) -> Stores:
    """An embedded server may be started while the one before it is still leaving."""
    deadline = time.monotonic() + (LEAVING_S if settings.attended else 0)
    while True:
        try:
            return Stores.open(settings.home)
        except StoreInUse as error:
            if time.monotonic() >= deadline:
                raise _by_whom(settings.home, error) from error
        time.sleep(0.05)


def _by_whom(home: Path, error: StoreInUse) -> StoreInUse:
    """The error, or a clearer one: an embedded server came with a client and leaves by itself."""
    try:
        noted = json.loads((home / "server.json").read_bytes())
        pid, is_attended = int(noted["pid"]), noted["attended"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return error  # nobody says who it is
    if not is_attended or f"process {pid};" not in str(error):
        return error
    return StoreInUse(
        f"{home} is in use by process {pid}, the embedded server that a client has started; it "
        f"leaves {ATTENDED_S:g} s after its last client: wait for that, or stop it: kill {pid}"
    )


def _listen(settings: ServerSettings) -> socket.socket:
    """Take the port; with 0, the last one again, so that local workers find the new server."""
    last = settings.home / "last-port"
    if settings.port == 0 and last.exists():
        with contextlib.suppress(OSError, ValueError):
            return _bound(settings.host, int(last.read_text()))
    try:
        listener = _bound(settings.host, settings.port)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise StoreError(
            f"cannot listen on {place}: {error.strerror}; choose another --port"
        ) from error
    if settings.port == 0:
        last.write_text(str(listener.getsockname()[1]))
    return listener


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _memory_bytes(settings: ServerSettings) -> int:
    if settings.memory_bytes is not None:
        return settings.memory_bytes
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(machine_bytes * WORKERS_MEMORY_SHARE / max(1, settings.workers))


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process: workers say goodbye before the server goes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _says_more_than_cut_off(record: logging.LogRecord) -> bool:
    """Requests that outlast the end are counted in one line; they need no traceback each."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _Process:
    """One server process: uvicorn, local workers, and the reasons to end."""

    def __init__(self, settings: ServerSettings, listener: socket.socket, url: str) -> None:
        self.settings = settings
        self.listener = listener
        self.url = url
        self.app = create_app(settings)
        config = uvicorn.Config(
            self.app, log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        self.uvicorn = _Uvicorn(config)
        self.workers = LocalWorkers(
            settings.home,
            settings.workers,
            WorkerOptions(url, settings.token, settings.usd_per_hour, _memory_bytes(settings)),
        )

    async def run(self) -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        serving = asyncio.create_task(self.uvicorn.serve(sockets=[self.listener]))
        while not self.uvicorn.started and not serving.done():
            await asyncio.sleep(0.01)
        if not self.uvicorn.started:
            await serving
            return 1
        self._announce()
        try:
            return await self._watch(stop)
        finally:
            self._withdraw()
            await self.workers.stop()
            self.app.state.driver.signals.close()
            logging.getLogger("uvicorn.error").addFilter(_says_more_than_cut_off)
            self.uvicorn.should_exit = True
            await serving

    async def _watch(self, stop: asyncio.Event) -> int:
        """Keep the workers running, until told to stop, the driver failed, or nobody attends."""
        driver: Driver = self.app.state.driver
        while not stop.is_set():
            if driver.fatal.done():
                _log.error("stopping: %s", driver.fatal.result())
                return 1
            for prefix in self.workers.ended():
                with contextlib.suppress(StoreError):  # the driver says why it has stopped
                    await driver.worker_gone(prefix)
            self.workers.keep()
            if self.settings.attended and self._deserted():
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), WATCH_S)
        return 0

    def _deserted(self) -> bool:
        """Whether no client's request (a stream of events is one) has run for a while."""
        idle_s = time.monotonic() - self.app.state.last_request_s
        return bool(self.app.state.requests == 0 and idle_s > ATTENDED_S)

    def _announce(self) -> None:
        """Tell local clients where the server is."""
        path = self.settings.home / "server.json"
        fresh = path.with_suffix(".new")
        facts = {"url": self.url, "pid": os.getpid(), "token": self.settings.token}
        facts["attended"] = self.settings.attended
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump(facts, file)
        fresh.replace(path)
        _log.info("taking work at %s", self.url)

    def _withdraw(self) -> None:
        path = self.settings.home / "server.json"
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if json.loads(path.read_text())["pid"] == os.getpid():
                path.unlink()
