"""What was learnt of how long work takes, over HTTP."""

from fastapi import APIRouter

from flowmesh.core import estimate
from flowmesh.core.estimate import FEATURES, Amounts
from flowmesh.core.fleet import Device
from flowmesh.core.knowledge import Fit
from flowmesh.core.records import Demand
from flowmesh.core.state import State
from flowmesh.planning import EstimateView
from flowmesh.server.auth import TheDriver

routes = APIRouter(prefix="/v1", tags=["server"])

#: Tokens of the row by which the rates of a model are told.
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 128


@routes.get("/estimates")
async def estimates(driver: TheDriver) -> list[EstimateView]:
    """What batches of each key take on each kind of device, and how well that was foretold."""
    return summary(driver.plane.state)


def summary(state: State) -> list[EstimateView]:
    """All that was learnt of batches, by batch key and kind of device."""
    devices = _devices(state)
    views = []
    for key in sorted(state.fits):
        batch_key, _, kind = key.rpartition("|")
        views.append(_view(state, batch_key, devices.get(kind, Device(kind)), state.fits[key]))
    return views


def _devices(state: State) -> dict[str, Device]:
    offered = {offer.device.kind: offer.device for offer in state.offers.values()}
    return offered | {worker.device.kind: worker.device for worker in state.workers.values()}


def _view(state: State, batch_key: str, device: Device, fit: Fit) -> EstimateView:
    demand = state.demands.get(batch_key) or Demand()
    known = estimate.counted(state, batch_key, device)
    tokens = demand.flops_per_token > 0
    output = OUTPUT_TOKENS if tokens and fit.coefficients[2] else 0
    rows = estimate.concurrency(demand, device, PROMPT_TOKENS + output)

    def per_s(count: int) -> float:
        if not tokens:
            return count / max(float(known.exec_s(Amounts(work=float(count)))), 1e-9)
        amounts = Amounts(PROMPT_TOKENS * count, float(output), output * count)
        return (output or PROMPT_TOKENS) * count / max(float(known.exec_s(amounts)), 1e-9)

    return EstimateView(
        batch_key=batch_key,
        operator=demand.operator,
        kind=device.kind,
        seconds={name: s for name, s in zip(FEATURES, fit.coefficients, strict=True) if s},
        seen=fit.seen,
        error=fit.error,
        sigma=known.sigma,
        rate_unit="tokens" if tokens else "rows",
        rate_1=per_s(1),
        rate_full=per_s(rows),
        rows_full=rows,
        watts=known.watts,
        load_s=estimate.load_s(state, demand, device),
        tokens_ratio=estimate.tokens_ratio(state, batch_key),
    )
