"""Adapters as a worker runs them: one lease, one process, one base, many adapters."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flowmesh.operators.generate import CHOOSE, GENERATE
from flowmesh.runtimes.base import FailureKind
from flowmesh.spec.action import Action, Artifact
from flowmesh.spec.operator import Operator
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.worker.agent import work
from flowmesh.worker.settings import WorkerSettings
from worker_support.server import PATIENCE_S, FakeServer

pytestmark = pytest.mark.model


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    """A server with one worker."""
    server = FakeServer()
    await server.start()
    stop = asyncio.Event()
    settings = WorkerSettings(server=server.address, home=tmp_path / "home")
    worker = asyncio.create_task(work(settings, stop))
    yield server
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await worker
    await server.stop()


def action(operator: Operator, model: str, adapter: str = "", /, **given: object) -> Action:
    params = operator.params.model_validate(given)
    task = operator.task(params, params.model_dump(mode="json"), 0)
    ports = {"model": model} | ({"adapter": adapter} if adapter else {})
    inputs = {port: Artifact("tree", digest) for port, digest in ports.items()}
    return Action(operator.name, operator.version, task, inputs, operator.engine(params))


async def test_a_lease_may_mix_adapters_and_later_ones_meet_a_warm_engine(
    server: FakeServer, tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip("peft")
    from support.tiny_adapter import make_adapter

    store = FileStore(tmp_path / "made")
    model = str(put_tree(store, tiny_model))
    adapters = [
        str(put_tree(store, make_adapter(tiny_model, tmp_path / str(n), seed=n, origin=model)))
        for n in range(3)
    ]
    foreign = make_adapter(tiny_model, tmp_path / "foreign", origin=adapters[0])
    strange = str(put_tree(store, foreign))
    for info in store.list():
        server.put(store.read(info.digest))

    def write(adapter: str) -> Action:
        return action(GENERATE, model, adapter, prompt="Why?", max_tokens=8)

    first = await server.grant(1, *(write(one) for one in (*adapters[:2], "", strange)))
    written = await server.results(*(first[n] for n in range(3)))
    [refused] = await server.reported(first[3])
    assert refused.kind == FailureKind.INPUT
    assert "trained for another base model" in refused.message
    [late] = await server.results(*await server.grant(2, write(adapters[2])))
    texts = [result.rows[0]["text"] for result in (*written, late) if result.rows]
    assert len(set(texts)) == 4
    pick = [action(CHOOSE, model, one, prompt="Is it?", choices=["yes", "no"]) for one in adapters]
    picked = await server.results(*await server.grant(3, *pick))
    assert len({str(result.rows) for result in picked}) == 3
    await server.until(lambda: server.syncs[-1].running == [])
    assert len({key.partition("/")[2] for key in server.syncs[-1].info.warm}) == 1, "one engine"
