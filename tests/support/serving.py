"""The server in process, and a worker and clients that a test plays by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from flowmesh.base.digest import Digest
from flowmesh.server.app import ServerSettings, create_app
from flowmesh.spec.action import Result
from flowmesh.spec.table import encode_rows
from support.fabric import until

ROWS = encode_rows([{"q": "a"}, {"q": "b"}])
DOCUMENT = json.dumps(
    {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table"}},
        "steps": {"told": {"op": "render", "rows": "${inputs.rows}", "template": "{{ q }}"}},
        "outputs": {"told": "${steps.told}"},
    }
)


def serving(home: Path, token: str | None = None, **settings: Any) -> TestClient:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return TestClient(create_app(ServerSettings(home, token=token, **settings)), headers=headers)


def put(client: TestClient, data: bytes, tenant: str = "default") -> str:
    digest = Digest.of(data)
    headers = {"x-flowmesh-tenant": tenant}
    answer = client.put(f"/v1/blobs/{digest.hash}", content=data, headers=headers)
    assert answer.json() == {"digest": str(digest)}
    return str(digest)


def request(
    key: str = "k", tenant: str = "default", share: str = "domain", **changes: Any
) -> dict[str, Any]:
    rows = {"kind": "table", "digest": str(Digest.of(ROWS)), "rows": 2, "columns": ["q"]}
    document = DOCUMENT.replace('"inputs"', f'"share": "{share}", "inputs"', 1)
    body = {"document": document, "key": key, "tenant": tenant, "inputs": {"rows": rows}}
    return {**body, **changes}


def sync(
    client: TestClient,
    reports: list[dict[str, Any]],
    progress: Sequence[dict[str, Any]] = (),
    **info: Any,
) -> Any:
    told = {"worker": "w", "host": "h", "runtimes": ["tables"], **info}
    body = {"info": told, "reports": reports, "progress": list(progress)}
    return client.post("/v1/sync", json=body)


def leased(client: TestClient) -> tuple[int, list[str]]:
    """Be a worker until there is a lease: its number and its tasks."""
    held: list[Any] = []

    def asked() -> bool:
        held[:] = sync(client, []).json()["leases"]
        return bool(held)

    until(asked, "a lease")
    return held[0]["lease"], [task["task"] for task in held[0]["tasks"]]


def work(client: TestClient) -> None:
    """Do what there is to do, as a worker."""
    done = Result(rows=[{"text": "x"}]).encode()
    for lease in sync(client, []).json()["leases"]:
        ends = {"lease": lease["lease"], "result": done}
        sync(client, [{**ends, "task": task["task"]} for task in lease["tasks"]])


def status(client: TestClient, run: str) -> str:
    return str(client.get(f"/v1/runs/{run}").json()["status"])
