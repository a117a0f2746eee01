"""Workers over HTTP: one call says what a worker does and hears what it should do."""

from fastapi import APIRouter

from flowmesh.server.auth import TheDriver
from flowmesh.wire import SyncAnswer, SyncRequest, WorkerView

routes = APIRouter(prefix="/v1", tags=["workers"])


@routes.post("/sync")
async def sync(body: SyncRequest, driver: TheDriver) -> SyncAnswer:
    """A worker's state for its desired state; waits up to `wait_ms` for news."""
    return await driver.sync(body)


@routes.get("/workers")
async def list_workers(driver: TheDriver) -> list[WorkerView]:
    """Workers that were heard of within a lease's time."""
    views = []
    for worker in driver.plane.state.workers.values():
        info = driver.infos.get(worker.id)
        if info is not None:
            leases = driver.plane.desired(worker.id)
            views.append(
                WorkerView(
                    **info.model_dump(),
                    heard_ms=worker.heard_ms,
                    leases=[lease.id for lease, _ in leases],
                    running=sum(len(left) for _, left in leases),
                )
            )
    return views
