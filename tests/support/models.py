"""A server with operators that make weights of almost nothing, and a worker played by hand."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from flowmesh.base.digest import Digest
from flowmesh.operators.catalog import catalog
from flowmesh.sdk.client import Client
from flowmesh.sdk.runs import Run
from flowmesh.server.app import ServerSettings, create_app
from flowmesh.server.driver import Driver
from flowmesh.server.parts import parts_of
from flowmesh.spec.action import Action, Artifact, Result
from flowmesh.spec.operator import Operator, Params, Port
from flowmesh.spec.table import encode_rows
from flowmesh.stores.base import BlobStore
from flowmesh.stores.trees import Manifest, TreeFile
from flowmesh.wire import (
    LeaseBody,
    LeaseTask,
    SyncAnswer,
    SyncRequest,
    TaskReport,
    WorkerInfo,
)
from support.fabric import until

TOKEN = "long-and-random"
PNG = b"\x89PNG\r\n\x1a\n and so on"
DATA = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


class TuneParams(Params):
    rate: float = 0.1
    epochs: int = 1


TUNE = Operator(
    name="tune",
    version=1,
    summary="",
    params=TuneParams,
    inputs={
        "data": Port("table", ""),
        "model": Port("model", "", required=False),
        "adapter": Port("adapter", "", required=False),
    },
    grain="whole",
    runtime="tables",
    entry="nowhere:at_all",
    outputs=lambda params: {
        "adapter": "adapter",
        "metrics": "table",
        "summary": "table",
        "loss_curve": "file",
    },
)
MEASURE = Operator(
    name="measure",
    version=1,
    summary="",
    params=Params,
    inputs={"data": Port("table", ""), "adapter": Port("adapter", "")},
    grain="whole",
    runtime="tables",
    entry="nowhere:at_all",
    outputs=lambda params: {"rows": "table", "summary": "table"},
)


def put_files(store: BlobStore, files: Mapping[str, bytes]) -> str:
    """A tree of these files, by path; the digest of its manifest."""
    parts = tuple(TreeFile(path, store.put(data)) for path, data in sorted(files.items()))
    return str(store.put(Manifest(parts).encode()))


def _table(store: BlobStore, rows: list[dict[str, Any]]) -> Artifact:
    return Artifact("table", str(store.put(encode_rows(rows))), len(rows), tuple(rows[0]))


def tuned(store: BlobStore, action: Action) -> Result:
    """Weights that differ wherever the work does."""
    told = json.dumps(action.document(), sort_keys=True).encode()
    weights = Digest.of(told).hash.encode()
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": weights}
    rate = action.params["rate"]
    curve = [{"step": n, "loss": rate / n} for n in (1, 2)] + [{"step": 3, "loss": None}]
    return Result(
        outputs={
            "adapter": Artifact("tree", put_files(store, files)),
            "metrics": _table(store, curve),
            "summary": _table(store, [{"tokens": 12}]),
            "loss_curve": Artifact("file", str(store.put(PNG))),
        }
    )


def measured(store: BlobStore, action: Action) -> Result:
    bound = action.inputs["adapter"]
    assert isinstance(bound, Artifact)
    accuracy = int(bound.digest[7:9], 16) / 256
    rows = [{"right": True, "of": bound.digest[7:19]}]
    summary = _table(store, [{"accuracy": accuracy}])
    return Result(outputs={"rows": _table(store, rows), "summary": summary})


ENGINES = {"tune": tuned, "measure": measured}


class Bench:
    """A server on a port of this machine; clients of any tenant; and a worker."""

    def __init__(self, url: str, driver: Driver, home: Path) -> None:
        self.url, self.driver, self.home = url, driver, home
        self.done: list[str] = []  #: operators of the tasks that were carried out
        self._clients: list[Client] = []
        self._worker = self.client("worker")

    @property
    def store(self) -> BlobStore:
        return self.driver.store

    def client(self, tenant: str) -> Client:
        client = Client(self.url, token=TOKEN, tenant=tenant, home=self.home / "none")
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def sync(self, reports: list[TaskReport]) -> list[LeaseBody]:
        info = WorkerInfo(worker="w", host="h", runtimes=("tables",))
        body = SyncRequest(info=info, reports=reports)
        answer = self._worker.transport.request("POST", "/v1/sync", body=body)
        return SyncAnswer.model_validate_json(answer).leases

    def work(self) -> bool:
        """Do what there is to do; what cannot be done for want of a blob is reported so.

        False, as there may always be more.
        """
        for lease in self.sync([]):
            self.sync([self._report(lease.lease, task) for task in lease.tasks])
        return False

    def _report(self, lease: int, task: LeaseTask) -> TaskReport:
        lines = self.store.read(Digest.parse(task.pack)).splitlines()
        action = Action.of(json.loads(lines[task.line]))
        for artifact in action.artifacts():
            if lost := self._lost(artifact):
                return TaskReport(lease=lease, task=task.task, kind="transient", missing=str(lost))
        self.done.append(action.op)
        result = ENGINES[action.op](self.store, action)
        return TaskReport(lease=lease, task=task.task, result=result.encode())

    def _lost(self, artifact: Artifact) -> Digest | None:
        needed = parts_of(self.store, [artifact])
        return min(needed - self.store.has(needed), default=None)

    def run(self, client: Client, workflow: dict[str, Any], **settings: Any) -> Run:
        """Submit, and work until it has settled."""
        run = client.submit(workflow, inputs={"data": DATA}, **settings)
        until(lambda: self.work() or run.view().status != "running", "the run to settle")
        return run


@contextlib.contextmanager
def bench(home: Path) -> Iterator[Bench]:
    """A server that wants a token and keeps tenants apart, with the operators of this module."""
    operators = {**catalog(), TUNE.name: TUNE, MEASURE.name: MEASURE}
    with pytest.MonkeyPatch.context() as patch:
        for user in ("flowmesh.server.app.catalog", "flowmesh.sdk.prepare.catalog"):
            patch.setattr(user, lambda: operators)
        app = create_app(ServerSettings(home=home, token=TOKEN, workers=0))
        running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            until(lambda: running.started, "the server to start")
            port = running.servers[0].sockets[0].getsockname()[1]
            made = Bench(f"http://127.0.0.1:{port}", app.state.driver, home)
            yield made
            made.close()
        finally:
            running.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def training(**settings: Any) -> dict[str, Any]:
    """A workflow that tunes an adapter on the table input `data`, and measures it."""
    model = settings.pop("model", None)
    tune = {"op": "tune", "data": "${inputs.data}", **settings}
    return {
        "flowmesh": 1,
        "name": "training",
        "inputs": {"data": {"type": "table"}},
        "models": {"base": model} if model else {},
        "steps": {
            "tune": {**tune, "model": "${models.base}"} if model else tune,
            "measure": {
                "op": "measure", "data": "${inputs.data}", "adapter": "${steps.tune.adapter}"
            },
        },
        "outputs": {"adapter": "${steps.tune.adapter}", "curve": "${steps.tune.loss_curve}"},
    }  # fmt: skip
