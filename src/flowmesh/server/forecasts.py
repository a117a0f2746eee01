"""Forecasts of runs: of those that are asked about, and kept of those that were submitted."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import fmean
from typing import Literal

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.ids import OfferId
from flowmesh.core import datasheet, forecast, money
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.forecast import Forecast
from flowmesh.core.layout import Ahead, Place, StepForecast
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.records import Run
from flowmesh.core.state import State
from flowmesh.core.utility import PRESETS, Weights
from flowmesh.planning import (
    MACHINES_LIMIT,
    FleetPlan,
    Interval,
    OfferBody,
    PlanView,
    StepPlan,
    StepTasks,
)
from flowmesh.server import wording
from flowmesh.server.foresight import Foreseen, Foresight
from flowmesh.server.submission import Submission
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database

#: Items of one step that are expanded: when somebody asks, and at every submission.
ASKED_ITEMS, SUBMITTED_ITEMS = 50_000, 1_000
#: Machines of one offer of a provider that a forecast counts on.
RENTED_LIMIT = 16
#: How often it is looked for a first worker where there is none, and with which pause.
WORKER_LOOKS, WORKER_LOOK_S = 40, 0.25
#: Submitted runs whose forecasts are still to be made; more go without.
WAITING_LIMIT = 32
NO_WORKER = (
    "there is no worker now and no offer to rent one: start workers with `flowmesh up --workers 2`"
    " or `flowmesh worker --server ADDRESS`, or give machines to plan on with --offers FILE"
)

_log = logging.getLogger(__name__)


class Forecasts:
    """Looks ahead; reads tables and blobs, and a snapshot of the state."""

    def __init__(
        self, database: Database, store: BlobStore, plane: Callable[[], ControlPlane]
    ) -> None:
        self._database = database
        self._store = store
        self._plane = plane
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forecasts")
        # Their own: a large plan takes seconds, and every other request needs threads too.
        self._asked = ThreadPoolExecutor(1, thread_name_prefix="plans")
        self._waiting = 0

    def close(self) -> None:
        """Wait for the forecast that is being made; the others are not."""
        for threads in (self._thread, self._asked):
            threads.shutdown(wait=True, cancel_futures=True)

    async def keep(self, submission: Submission, run: Run, state: State) -> None:
        """Make and keep the forecast of a run that was accepted; `state` is a snapshot.

        Nobody waits for it, and where too many wait for theirs already it is left out.
        """
        if self._waiting >= WAITING_LIMIT:
            return
        self._waiting += 1
        try:
            await self._await_worker(state)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._keep, submission, run, state)
        except Exception:  # A forecast that fails may not take the server with it.
            _log.exception("no forecast of run %s", run.id)
        finally:
            self._waiting -= 1

    def _weights(self, objective: str) -> Weights:
        """Those that the policy will use for a run."""
        policy = self._plane().policy
        if isinstance(policy, Utility):
            return policy.board.of(objective)
        return PRESETS.get(objective, PRESETS["balanced"])

    async def _await_worker(self, state: State) -> None:
        """An embedded server that was started for this very run has its workers a moment later."""
        for _ in range(WORKER_LOOKS):
            if state.workers or state.offers:
                return
            await asyncio.sleep(WORKER_LOOK_S)
            for worker in self._plane().state.workers.values():
                state.workers[worker.id] = replace(worker, leases=(), warm=())

    def _keep(self, submission: Submission, run: Run, state: State) -> None:
        view = self.plan(submission, run, state, items_limit=SUBMITTED_ITEMS)
        row = ("INSERT OR IGNORE INTO forecasts VALUES (?, ?)", (run.id, view.model_dump_json()))
        self._database.write([row]).result()

    def kept(self, run: str) -> PlanView | None:
        """The forecast of when a run was submitted; None where there is none (yet)."""
        found = self._database.read("SELECT forecast FROM forecasts WHERE run = ?", (run,))
        return PlanView.model_validate_json(found[0][0]) if found else None

    async def ask(
        self, submission: Submission, run: Run, state: State, offers: Sequence[OfferBody]
    ) -> PlanView:
        """`plan`, one at a time. Raises StoreError, SpecError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._asked, self.plan, submission, run, state, offers)

    def plan(
        self,
        submission: Submission,
        run: Run,
        state: State,
        offers: Sequence[OfferBody] = (),
        *,
        items_limit: int = ASKED_ITEMS,
    ) -> PlanView:
        """What `run` would do and take if it began at `state.now_ms`.

        Results of later are not seen. `state` is a snapshot of the caller's own: it is written to.

        Raises StoreError, SpecError.
        """
        before_ms = state.now_ms
        foresight = Foresight(
            self._database, self._store, before_ms=before_ms, items_limit=items_limit
        )
        seen = list(foresight.steps(submission, run.id))
        steps = [ahead(one, state) for one in seen]
        weights = self._weights(run.objective)
        rentable = forecast.machines_of(state, state.offers.values(), RENTED_LIMIT)
        fleets = [
            _planned(
                "today", state, (run, weights), steps, (*forecast.workers_of(state), *rentable)
            )
        ]
        if offers:
            runtimes = tuple(dict.fromkeys(one.node.op.runtime for one in seen))
            given = [offered(one, runtimes) for one in offers]
            machines = forecast.machines_of(state, given, MACHINES_LIMIT)
            fleets.append(_planned("offers", state, (run, weights), steps, machines))
        return PlanView(
            name=submission.graph.workflow.name or submission.request.file,
            tasks=sum(one.reused + one.executed for one in seen),
            reused=sum(one.reused for one in seen),
            executed=sum(one.executed for one in seen),
            saved_usd=sum(one.saved_usd for one in seen),
            steps=[_tasks(one) for one in seen],
            fleets=fleets,
            unsure=sum(one.unsure for one in seen),
            notes=[*_notes(seen, fleets), *_free(offers)],
            made_ms=before_ms,
        )


def offered(body: OfferBody, runtimes: tuple[str, ...]) -> Offer:
    """The machine that a plan is asked about. Raises SpecError for a device nobody knows."""
    figures = {
        name: getattr(body, name)
        for name in Device.__slots__
        if name != "kind" and getattr(body, name)
    }
    known = datasheet.gpu(body.device) if body.device else None
    if known is None and not figures:
        kinds = ", ".join(datasheet.GPUS)
        raise SpecError(
            Problem(
                f"offer {body.name!r}: no data sheet of a device {body.device!r}; expected one of"
                f" {kinds}, or its figures, as flops_per_s and bandwidth_bytes_per_s"
            )
        )
    device = datasheet.several(known, body.devices) if known else Device(body.device or body.name)
    return Offer(
        OfferId(body.name),
        "given",
        body.runtimes or runtimes,
        body.usd_per_hour,
        replace(device, **figures).believable(),
        slots=body.slots,
        devices=body.devices,
        startup_s=body.startup_s,
        count=body.count,
    )


def ahead(seen: Foreseen, state: State) -> Ahead:
    """A step as the forecast takes it: the means of its tasks. Tells `state` of its demand."""
    node, specs = seen.node, seen.specs
    upstream = node.upstream
    if not specs or not seen.executed:
        return Ahead(node.name, upstream)
    first = specs[0]
    key = _known_key(first.batch_key, seen, state)
    state.demands.setdefault(key, seen.demand)
    prefixes = len({spec.prefix for spec in specs if spec.prefix})
    shared = sum(spec.prefix_tokens for spec in specs if spec.prefix)
    return Ahead(
        node.name,
        upstream,
        seen.executed,
        first.runtime,
        key,
        state.demands[key],
        first.devices,
        first.memory_bytes,
        first.max_batch,
        fmean(spec.prompt_tokens for spec in specs),
        shared / len(specs) * (1 - prefixes / len(specs)),
        max(spec.output_tokens for spec in specs),
        fmean(spec.work for spec in specs),
        seen.doubt,
        seen.unsure / seen.executed,
    )


def _known_key(batch_key: str, seen: Foreseen, state: State) -> str:
    """The batch key itself, or where its models are still to be made, one of the same operator.

    Among those, the key that most batches were seen of.
    """
    models = [port for port, one in seen.node.op.inputs.items() if one.kind == "model"]
    named = [port for port in models if port in seen.node.inputs]
    if seen.demand.trees or not named or batch_key in state.demands:
        return batch_key
    batches: dict[str, int] = {}
    for name, fit in state.fits.items():
        other = name.rpartition("|")[0]
        if other.startswith(f"{batch_key}/") and other in state.demands:
            batches[other] = batches.get(other, 0) + fit.seen
    return max(batches, key=lambda key: (batches[key], key), default=batch_key)


def _tasks(seen: Foreseen) -> StepTasks:
    return StepTasks(
        step=seen.node.name,
        op=seen.node.op.name,
        basis=seen.basis,
        items=seen.items,
        tasks=seen.reused + seen.executed,
        reused=seen.reused,
        executed=seen.executed,
        unsure=seen.unsure,
        skipped=seen.skipped,
        message=seen.message,
    )


def _planned(
    fleet: Literal["today", "offers"],
    state: State,
    asked: tuple[Run, Weights],
    steps: Sequence[Ahead],
    places: Sequence[Place],
) -> FleetPlan:
    run, weights = asked
    found = forecast.forecast(state, steps, places, weights)
    return FleetPlan(
        fleet=fleet,
        places=len(places),
        feasible=found.feasible,
        batches=found.batches,
        seconds=_interval(found.seconds),
        usd=_interval(found.usd),
        joules=_interval(found.joules),
        startup_usd=found.startup_usd,
        steps=[_step(one, ahead_) for one, ahead_ in zip(found.steps, steps, strict=True)],
        verdicts=list(_verdicts(state, run, steps, found)),
    )


def _interval(found: forecast.Interval) -> Interval:
    return Interval(low=found.low, mid=found.mid, high=found.high)


def _step(one: StepForecast, step: Ahead) -> StepPlan:
    def around(mid: float, sigma: float) -> forecast.Interval:
        return forecast.Interval.around(mid, sigma).lowered(1 - step.unsure)

    return StepPlan(
        step=one.name,
        batches=one.batches,
        seconds=_interval(around(one.seconds, one.sigma)),
        usd=_interval(around(one.usd, one.sigma)),
        joules=_interval(around(one.joules, one.sigma)),
        start_s=one.start_s,
        end_s=one.end_s,
        where=dict(one.where),
        why_not=dict(one.why_not),
        impossible=one.impossible,
    )


def _verdicts(state: State, run: Run, steps: Sequence[Ahead], found: Forecast) -> Iterator[str]:
    """What would go wrong, in words."""
    known = {step.name: step for step in steps}
    impossible = [one.name for one in found.steps if one.impossible]
    for one in found.steps:
        step = known[one.name]
        if not one.impossible or any(name in impossible for name in step.upstream):
            continue
        reasons = ", ".join(f"{count} {words}" for words, count in one.why_not.items())
        why = f"of its places, {reasons}" if reasons else f"nobody offers {step.runtime}"
        yield f"step {one.name} cannot run: {why}"
    usd, seconds = found.usd, found.seconds
    if run.budget_usd:
        yield from _exceeds("its budget", usd, run.budget_usd, wording.usd)
    if run.deadline_ms:
        left_s = (run.deadline_ms - state.now_ms) / 1000
        yield from _exceeds("its deadline", seconds, left_s, "{:.1f} s".format)
    tenant = state.tenants.get(run.tenant)
    if tenant is not None and tenant.quota.usd_per_day:
        spent = money.day_usd(tenant, state.now_ms) + tenant.held_usd
        left_usd = tenant.quota.usd_per_day - spent
        yield from _exceeds("what its tenant may spend today", usd, left_usd, wording.usd)


def _exceeds(
    what: str, expected: forecast.Interval, limit: float, told: Callable[[float], str]
) -> Iterator[str]:
    words = f"{told(expected.mid)} expected, {told(max(0.0, limit))} left"
    if expected.mid > limit:
        yield f"would exceed {what}: {words}"
    elif expected.high > limit:
        yield f"may exceed {what}: {words}, and up to {told(expected.high)} is possible"


def _free(offers: Sequence[OfferBody]) -> Iterator[str]:
    if free := [one.name for one in offers if not one.usd_per_hour]:
        yield f"offers without usd_per_hour are taken as free: {', '.join(free)}"


def _notes(seen: Sequence[Foreseen], fleets: Sequence[FleetPlan]) -> Iterator[str]:
    if not any(fleet.places for fleet in fleets):
        yield NO_WORKER
    for one in seen:
        if one.message:
            yield f"step {one.node.name} would fail: {one.message}"
    open_gates = [one.node.name for one in seen if one.node.gates and one.basis == "shape"]
    if open_gates:
        yield f"taken to run, though a condition may yet say no: {', '.join(open_gates)}"
    guessed = [one.node.name for one in seen if one.basis in ("learnt", "shape")]
    if guessed:
        yield f"counted by what earlier runs made, or by shape alone: {', '.join(guessed)}"
    unsure = [one.node.name for one in seen if one.unsure]
    if unsure:
        yield (
            "how much of this is done before is not known yet, as its input does not exist:"
            f" {', '.join(unsure)}; the intervals reach down to all of it"
        )
