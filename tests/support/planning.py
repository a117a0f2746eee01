"""A workflow of three steps, plans of it, and a worker that a test plays."""

import json
from typing import Any

from fastapi.testclient import TestClient

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Result
from support.fabric import until
from support.serving import ROWS, request, status, sync

CHAIN = json.dumps(
    {
        "flowmesh": 1,
        "name": "chain",
        "inputs": {"rows": {"type": "table"}},
        "steps": {
            "told": {"op": "render", "rows": "${inputs.rows}", "template": "{{ q }}"},
            "again": {
                "op": "render",
                "rows": "${steps.told}",
                "template": "{{ q }}!",
                "into": "more",
            },
            "all": {
                "op": "transform",
                "tables": {"again": "${steps.again}"},
                "sql": "SELECT count(*) AS n FROM again",
            },
        },
        "outputs": {"all": "${steps.all}"},
    }
)


def chain(key: str = "k", rows: bytes = ROWS, **more: Any) -> dict[str, Any]:
    body = request(key, document=CHAIN, **more)
    count = rows.count(b"\n")
    table = {"kind": "table", "digest": str(Digest.of(rows)), "rows": count, "columns": ["q"]}
    return {**body, "inputs": {"rows": table}}


def plan(client: TestClient, body: dict[str, Any]) -> Any:
    answer = client.post("/v1/plan", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finish(client: TestClient, run: str) -> None:
    """Play the worker until a run has ended."""

    def ended() -> bool:
        work(client)
        return status(client, run) != "running"

    until(ended, "the run to end")


def work(client: TestClient) -> None:
    """Do what there is to do, as a worker; a result has the columns of both steps."""
    made = Result(rows=[{"text": "x", "more": "y"}]).encode()
    for lease in sync(client, []).json()["leases"]:
        ends = {"lease": lease["lease"], "result": made}
        sync(client, [{**ends, "task": task["task"]} for task in lease["tasks"]])


def steps(view: Any) -> dict[str, tuple[str, int, int]]:
    return {one["step"]: (one["basis"], one["reused"], one["executed"]) for one in view["steps"]}
