"""Plans over HTTP: what a run would take, and for a run that was started, what it did take."""

import asyncio

from fastapi import APIRouter

from flowmesh.base.ids import RunId
from flowmesh.core.forecast import snapshot
from flowmesh.planning import PlanRequest, PlanView, RunPlan, StepOutcome
from flowmesh.server.auth import NamedTenant, Tenant, TheDriver, same_tenant
from flowmesh.server.driver import Driver
from flowmesh.server.runs import run_id
from flowmesh.server.views import Views

#: By step: its batches, and its shares of their seconds, USD and joules. Of a batch's energy a
#: step has the part that it has of its time.
_TOOK = """SELECT s.name, count(*), sum(x.seconds), sum(x.usd), sum(
        coalesce(json_extract(nullif(l.timing, ''), '$.joules'), 0) * x.seconds
        / max(1e-9, (SELECT sum(y.seconds) FROM lease_steps y WHERE y.lease = x.lease)))
    FROM steps s JOIN lease_steps x USING (step) JOIN leases l USING (lease)
    WHERE s.run = ? GROUP BY s.name"""

routes = APIRouter(prefix="/v1", tags=["plans"])


@routes.post("/plan")
async def plan_run(body: PlanRequest, named: NamedTenant, driver: TheDriver) -> PlanView:
    """What a run would reuse, do and take, on today's fleet and on the offers that are given.

    Nothing is started or journaled. What it names must be in the store, as for a run.
    """
    same_tenant(body, named)
    submission = await asyncio.to_thread(driver.checked, body)
    run, now_ms = run_id(body.tenant, body.key), driver.now_ms()
    core_run, _ = submission.core_run(run, now_ms, driver.weight_of(body.tenant))
    state = snapshot(driver.plane.state, now_ms)
    return await driver.forecasts.ask(submission, core_run, state, body.offers)


@routes.get("/runs/{run}/plan")
async def compare_run(run: str, tenant: Tenant, driver: TheDriver) -> RunPlan:
    """The forecast of a run, made when it was submitted, and what came of it so far."""
    return await asyncio.to_thread(compared, driver, RunId(run), tenant)


def compared(driver: Driver, run: RunId, tenant: str) -> RunPlan:
    """Raises NotFound."""
    view = Views(driver).run(run, tenant)
    took = {step: sums for step, *sums in driver.database.read(_TOOK, (run,))}
    steps = []
    for step in view.steps:
        batches, seconds, usd, joules = took.get(step.step, (0, 0.0, 0.0, 0.0))
        outcome = StepOutcome(step=step.step, status=step.status, tasks=step.tasks)
        outcome.batches, outcome.seconds = batches, seconds
        outcome.usd, outcome.joules = usd, joules
        steps.append(outcome)
    return RunPlan(
        run=run,
        status=view.status,
        plan=driver.forecasts.kept(run),
        steps=steps,
        batches=view.batches,
        seconds=view.seconds,
        usd=view.cost_usd,
        joules=sum(step.joules for step in steps),
    )
