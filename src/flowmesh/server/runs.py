"""Runs over HTTP. A handler parses, calls the driver once, and answers."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from flowmesh.base.ids import RunId
from flowmesh.core.needs import PATIENCE_MS
from flowmesh.server.auth import NamedTenant, Tenant, TheDriver, same_tenant
from flowmesh.server.driver import Driver
from flowmesh.server.lineage import Lineage
from flowmesh.server.views import Views, as_event
from flowmesh.wire import CreateRun, LineageNode, RunPage, RunView

routes = APIRouter(prefix="/v1", tags=["runs"])

#: Least time between two events of one stream.
EVENT_GAP_S = 0.1
#: A comment is sent this often, so that proxies and clients know the stream lives.
KEEP_ALIVE_S = 5.0


def run_id(tenant: str, key: str) -> RunId:
    """The same tenant and key give the same run."""
    return RunId("r-" + hashlib.sha256(f"{tenant}/{key}".encode()).hexdigest()[:12])


@routes.post("/runs", status_code=201)
async def create_run(
    body: CreateRun, named: NamedTenant, driver: TheDriver, response: Response
) -> RunView:
    """Start a run; it is durable once this answers. The same key gives the same run, with 200."""
    same_tenant(body, named)
    run = run_id(body.tenant, body.key)
    if not await driver.submit(body, run):
        response.status_code = 200
    return await _view(driver, run, body.tenant)


@routes.get("/runs")
async def list_runs(
    driver: TheDriver,
    tenant: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: str | None = None,
) -> RunPage:
    """Runs from the newest on, of one tenant or of all, without their steps."""
    return await asyncio.to_thread(Views(driver).runs, tenant, limit, after)


@routes.get("/runs/{run}")
async def show_run(run: str, tenant: Tenant, driver: TheDriver) -> RunView:
    """A run of the tenant, with its steps and first failures."""
    return await _view(driver, RunId(run), tenant)


@routes.post("/runs/{run}/cancel")
async def cancel_run(
    run: str, tenant: Tenant, driver: TheDriver, checkpoint: bool = False
) -> RunView:
    """End a run that has not settled; what nobody else waits for is stopped.

    With `checkpoint`, long tasks first leave what they can be gone on with, for up to 5 s:
    the same work, asked for again, goes on from there.
    """
    await _view(driver, RunId(run), tenant)
    await driver.cancel(RunId(run), checkpoint=checkpoint)
    return await _view(driver, RunId(run), tenant)


@routes.get("/runs/{run}/events", response_class=StreamingResponse)
async def watch_run(run: str, tenant: Tenant, driver: TheDriver) -> StreamingResponse:
    """Server-sent events: the run's view at each change, until it has settled."""
    await asyncio.to_thread(Views(driver).run, RunId(run), tenant)
    return StreamingResponse(_events(driver, RunId(run), tenant), media_type="text/event-stream")


async def _events(driver: Driver, run: RunId, tenant: str) -> AsyncIterator[bytes]:
    with driver.signals.watching(run) as watcher:
        while True:
            watcher.changed.clear()
            view = await _view(driver, run, tenant, PATIENCE_MS)
            unmet = driver.unmet(run)
            yield as_event(view)
            if view.status != "running" or driver.signals.closing:
                return
            await _within(EVENT_GAP_S, watcher.settled)
            while not await _within(KEEP_ALIVE_S, watcher.changed):
                if driver.unmet(run) != unmet:
                    break
                yield b": still here\n\n"


async def _view(driver: Driver, run: RunId, tenant: str, patience_ms: int = 0) -> RunView:
    """From the tables; and from memory, what its steps wait for in vain. Raises NotFound.

    Whoever follows a run hears of it with patience; whoever asks is told how it is now.
    """
    view = await asyncio.to_thread(Views(driver).run, run, tenant)
    if (known := driver.plane.state.runs.get(run)) is not None:
        view.held_usd = known.held_usd
    unmet = driver.unmet(run, patience_ms)
    for step in view.steps:
        step.waits_for = unmet.get(step.step, "")
    return view


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether an event is set before so many seconds are over."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@routes.get("/lineage")
async def lineage(
    tenant: Tenant,
    driver: TheDriver,
    digest: str = "",
    run: str = "",
    output: str = "",
    row: Annotated[int | None, Query(ge=0)] = None,
    direction: Annotated[str, Query(pattern="^(up|down)$")] = "up",
) -> LineageNode:
    """What an artifact, or a row of it, was made from (`up`) or used for (`down`)."""
    question = Lineage(driver, tenant)
    down = direction == "down"
    if digest:
        return await asyncio.to_thread(question.of_digest, digest, row, down=down)
    return await asyncio.to_thread(question.of_output, run, output, row, down=down)
