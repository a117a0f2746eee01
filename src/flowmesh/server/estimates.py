"""What was learnt of how long work takes, over HTTP."""

from dataclasses import asdict

from fastapi import APIRouter

from flowmesh.core import estimate
from flowmesh.core.estimate import FitView
from flowmesh.core.fleet import Device
from flowmesh.core.records import Demand
from flowmesh.core.state import State
from flowmesh.planning import EstimateView
from flowmesh.server.auth import TheDriver

routes = APIRouter(prefix="/v1", tags=["server"])


@routes.get("/estimates")
async def estimates(driver: TheDriver) -> list[EstimateView]:
    """What batches of each key take on each kind of device, and how well that was foretold."""
    state = driver.plane.state
    return [_view(state, one) for one in estimate.summary(state)]


def _view(state: State, one: FitView) -> EstimateView:
    kinds = (worker.device for worker in state.workers.values())
    device = next((device for device in kinds if device.kind == one.kind), Device(one.kind))
    demand = state.demands.get(one.batch_key) or Demand()
    return EstimateView(**asdict(one), load_s=estimate.load_s(state, demand, device))
