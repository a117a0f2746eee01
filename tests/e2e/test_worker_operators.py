"""The built-in operators as a worker runs them: in children, from documents and blobs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowmesh.operators.catalog import catalog
from flowmesh.operators.generate import CHOOSE, GENERATE
from flowmesh.operators.python import PYTHON
from flowmesh.operators.tables import TRANSFORM
from flowmesh.spec.action import Action, Artifact, Bound
from flowmesh.spec.operator import Operator
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.worker.agent import work
from flowmesh.worker.settings import WorkerSettings
from worker_support.server import PATIENCE_S, FakeServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    """A server with one worker that offers everything."""
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


def action(
    operator: Operator, inputs: dict[str, Bound], sample: int = 0, /, **given: Any
) -> Action:
    params = operator.params.model_validate(given)
    task = operator.task(params, params.model_dump(mode="json"), sample)
    return Action(operator.name, operator.version, task, inputs, operator.engine(params))


async def test_tables_and_functions(server: FakeServer, tmp_path: Path) -> None:
    table = Artifact("table", str(server.put(b'{"n":1}\n{"n":2}\n')))
    query = action(TRANSFORM, {"tables": {"t": table}}, sql="SELECT sum(n) AS s FROM t")
    file = Artifact("file", str(server.put(b"def double(row):\n    return {'d': row['n'] * 2}\n")))
    plain = action(PYTHON, {"file": file}, function="double")
    call = replace(plain, params={**plain.params, "row": '{"n": 4}'})
    [summed] = await server.results(*await server.grant(1, query))
    [called] = await server.results(*await server.grant(2, call))
    assert server.blobs[summed.outputs["rows"].address.hash] == b'{"s":3}\n'
    assert called.rows == [{"d": 8}]


@pytest.mark.model
async def test_one_process_holds_a_model_for_all_its_operators(
    server: FakeServer, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from support.tiny_model import make_tiny

    store = FileStore(tmp_path / "made")
    model = Artifact("tree", str(put_tree(store, make_tiny(tmp_path / "tiny"))))
    for info in store.list():
        server.put(store.read(info.digest))
    write = [
        action(GENERATE, {"model": model}, sample, prompt="Why?", max_tokens=4, samples=2)
        for sample in range(2)
    ]
    written = await server.results(*await server.grant(1, *write))
    pick = action(CHOOSE, {"model": model}, prompt="Is it?", choices=["yes", "no"])
    [picked] = await server.results(*await server.grant(2, pick))
    assert all(result.usage.generated_tokens > 0 for result in written)
    assert picked.rows and picked.rows[0]["choice"] in ("yes", "no")
    # Whatever else runs in that process finds the model loaded too.
    alike = [one for one in catalog().values() if one.runtime == GENERATE.runtime]
    keys = tuple(sorted(f"{one.name}@{one.version}" for one in alike))
    await server.until(lambda: server.syncs[-1].info.warm == keys)
    assert catalog()["generate"].runtime in server.syncs[-1].info.runtimes
