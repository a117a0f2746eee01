"""Figures that nobody can mean, of workers and providers: none spreads or ends the server."""

import asyncio
from dataclasses import replace
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.base.errors import ProviderError
from flowmesh.base.ids import LeaseId
from flowmesh.core.events import BatchTiming, TaskResult, WorkerGone, WorkerSynced
from flowmesh.core.fleet import Device, Offer
from flowmesh.server.fleet import Fleet
from flowmesh.server.reports import CLOCKS_S, synced, within_time
from flowmesh.spec.action import Result, Usage
from flowmesh.stores.codec import encode_state
from flowmesh.wire import SyncRequest
from support.fabric import until
from support.learning import A100, MODEL, Told
from support.renting import RentingBench, offer
from support.serving import ROWS as TABLE
from support.serving import leased, put, request, serving, status, sync

TINY = 5e-324
WILD: dict[str, Any] = {
    "usd_per_hour": TINY,
    "interruptions_per_hour": 1e9,
    "device": {
        "kind": "a b",
        "flops_per_s": TINY,
        "bandwidth_bytes_per_s": 1e-300,
        "memory_bytes": 1 << 53,
        "load_bytes_per_s": TINY,
        "fetch_bytes_per_s": TINY,
        "idle_w": TINY,
        "busy_w": 1e9,
    },
}


def told(**changes: Any) -> SyncRequest:
    info = {"worker": "w", "host": "h", "runtimes": ["models"], **WILD}
    return SyncRequest.model_validate({"info": info, **changes})


def test_rates_that_no_machine_has_are_not_known() -> None:
    heard = synced(told(), 0)
    assert heard.device == Device("a b", memory_bytes=1 << 53, idle_w=TINY, busy_w=1e9)
    assert heard.usd_per_hour == 0
    assert Device("k", 1.0, 2e12, 0, inf, nan).believable() == Device("k", 1.0, 2e12)


@pytest.mark.parametrize("tokens", ["-1", "1" + "0" * 400, str(1 << 60)])
def test_a_number_of_tokens_that_no_task_writes_fails_its_task(tokens: str) -> None:
    result = Result(rows=[], usage=Usage(seconds=1.0)).encode()
    wrong = result.replace('"generated_tokens":0', f'"generated_tokens":{tokens}')
    report = {"lease": 1, "task": "x", "result": wrong}
    (heard,) = synced(told(reports=[report]), 0).results
    assert heard.failure == "internal" and heard.output_tokens == 0


def test_a_server_outlives_absurd_reports(tmp_path: Path) -> None:
    batch = {
        **{"tasks": 1 << 53, "exec_s": TINY, "load_s": 1e9, "fetch_s": 1e9, "joules": 1e18},
        **{"fetch_bytes": 1 << 53, "prompt_tokens": 1 << 53, "output_tokens": 1, "work": 1e15},
    }
    with serving(tmp_path) as client:
        put(client, TABLE)
        for number in range(3):
            body = request(f"k{number}", budget_usd=1.0)
            document = body["document"].replace("{{ q }}", f"{{{{ q }}}}{number}")
            client.post("/v1/runs", json={**body, "document": document})
            sync(client, [], **{**WILD, "runtimes": ["tables"]})
            lease, tasks = leased(client)
            done = Result(rows=[{"text": "x"}], usage=Usage(seconds=TINY)).encode()
            ends = [{"lease": lease, "task": task, "result": done} for task in tasks]
            ends[-1]["batch"] = batch
            assert sync(client, ends, **{**WILD, "runtimes": ["tables"]}).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/estimates").status_code == 200
        state = client.app.state.driver.plane.state  # type: ignore[attr-defined]
        assert encode_state(state)
        assert not client.app.state.driver.fatal.done()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "more",
    [
        {"warm": ["k"] * 1001},
        {"warm": ["k" * 10_001]},
        {"runtimes": ["r"] * 101},
        {"usd_per_hour": 10_001.0},
        {"device": {"kind": "a|b"}},
    ],
)
def test_a_worker_says_only_so_much_of_itself(more: dict[str, Any]) -> None:
    info = {"worker": "w", "host": "h", "runtimes": ["models"], **more}
    with pytest.raises(ValidationError):
        SyncRequest.model_validate({"info": info})


def test_offers_are_cleaned_and_those_without_a_price_are_none() -> None:
    bench = RentingBench()
    wild = offer("wild", usd_per_hour=TINY, startup_s=nan, interruptions_per_hour=inf, billing_s=-1)
    bench.offers(wild, offer("free", usd_per_hour=-1.0), offer("rich", usd_per_hour=1e300))
    (kept,) = bench.state.offers.values()
    assert kept.id == "wild" and kept.usd_per_hour == 0
    assert (kept.startup_s, kept.billing_s, kept.interruptions_per_hour) == (0, 0, 1e9)


@pytest.mark.parametrize("lease", ["running", "ended"])
def test_nothing_took_longer_than_there_was_time(lease: str) -> None:
    world = Told(A100, MODEL)
    world.sync()
    number = world.grant(world.ask(2))
    granted = world.state.leases[number]
    if lease == "ended":
        world.apply(WorkerGone(0, granted.worker))
        assert number not in world.state.leases
    task, other = granted.tasks
    at_ms = granted.granted_ms + 50_000
    honest = TaskResult(number, task, seconds=49.0)
    timing = BatchTiming(2, fetch_s=1.0, load_s=1e9, exec_s=49.0)
    wild = TaskResult(number, other, seconds=1e9, batch=timing)
    nobodys = TaskResult(LeaseId(99), task, seconds=1e9)
    told = WorkerSynced(at_ms, granted.worker, (), 1, 1.0, results=(honest, wild, nobodys))
    kept, cut, void = within_time(told, world.state).results
    assert kept == honest and void == nobodys
    assert cut.seconds == 50.0 + CLOCKS_S
    assert cut.batch == replace(timing, load_s=50.0 + CLOCKS_S)


def test_an_hour_that_was_not_there_is_not_paid_for(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        put(client, TABLE)
        run = client.post("/v1/runs", json=request()).json()["run"]
        sync(client, [], usd_per_hour=36.0)
        lease, tasks = leased(client)
        done = Result(rows=[{"text": "x"}], usage=Usage(seconds=3600.0)).encode()
        ends = [{"lease": lease, "task": task, "result": done} for task in tasks]
        sync(client, ends, usd_per_hour=36.0)
        until(lambda: status(client, run) == "succeeded", "the run to end")
        spent_usd = client.get(f"/v1/runs/{run}").json()["cost_usd"]
    assert 0.2 <= spent_usd < 2.0, "two tasks of about ten seconds, at a cent a second"


def test_the_last_fit_of_an_absurd_worker_is_finite() -> None:
    wild = synced(told(), 0).device
    world = Told(wild, MODEL)
    for seconds in (TINY, 1e9, TINY, 1e9):
        world.batch(BatchTiming(2, exec_s=seconds, prompt_tokens=1 << 49, joules=1e15))
    (fit,) = world.state.fits.values()
    assert all(map(isfinite, (*fit.coefficients, *fit.covariance, fit.watts)))


@pytest.mark.parametrize("trouble", [KeyError("price"), TimeoutError(), ProviderError("down")])
def test_a_mistake_in_a_provider_does_not_end_its_tending(trouble: Exception) -> None:
    asked = asyncio.Event()

    class Broken:
        name = "p"

        async def offers(self) -> list[Offer]:
            asked.set()
            raise trouble

    async def nothing(*_: object) -> None:
        pass

    async def story() -> None:
        bench = RentingBench()
        fleet = Fleet(
            [Broken()],  # type: ignore[list-item]
            step=nothing,
            durable=nothing,
            state=lambda: bench.state,
            now_ms=lambda: 1,
        )
        tending = asyncio.create_task(fleet.run())
        async with asyncio.timeout(10):
            await asked.wait()
        for _ in range(100):
            await asyncio.sleep(0)  # lets the trouble arrive
        assert not tending.done()
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)

    asyncio.run(story())
