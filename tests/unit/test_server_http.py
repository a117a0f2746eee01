"""The server over HTTP, in process, with no workers but those that a test plays."""

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.base.errors import StoreError
from flowmesh.server.quotas import TenantSettings
from flowmesh.spec.action import Result
from support.fabric import until
from support.serving import DOCUMENT, ROWS, leased, put, request, serving, status, sync, work

TOKEN = "long-and-random"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as started:
        yield started


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path, TOKEN) as started:
        yield started


def test_a_run_by_hand(client: TestClient) -> None:
    put(client, ROWS)
    created = client.post("/v1/runs", json=request())
    assert created.status_code == 201
    run = created.json()["run"]
    lease, tasks = leased(client)
    reports = [
        {"lease": lease, "task": task, "result": Result(rows=[{"text": task[:4]}]).encode()}
        for task in tasks
    ]
    answer = sync(client, reports).json()
    assert answer["settled"] == [[lease, task] for task in tasks]
    until(lambda: status(client, run) == "succeeded", "the run to end")
    view = client.get(f"/v1/runs/{run}").json()
    told = client.get(f"/v1/blobs/{view['outputs']['told']['digest'][7:71]}").text
    assert [json.loads(line)["q"] for line in told.splitlines()] == ["a", "b"]


def test_who_waits_for_news_is_woken_at_the_end(client: TestClient) -> None:
    """Also where the worker was taken for gone meanwhile, and is heard of again."""
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    info = {"worker": "w", "host": "h", "runtimes": ["tables"]}
    body = {"info": info, "wait_ms": 10_000}
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.post, "/v1/sync", json=body)
        until(lambda: "w" in driver.signals._workers, "the worker to be parked")
        client.portal.call(driver.signals.forget_worker, "w")  # type: ignore[union-attr]
        until(lambda: "w" in driver.signals._workers, "the worker to be parked again")
        client.portal.call(driver.signals.close)  # type: ignore[union-attr]
        assert waiting.result(5).json()["leases"] == []


def test_equal_submissions_at_once_are_one_run(client: TestClient) -> None:
    put(client, ROWS)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/runs", json=request()), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["run"] for answer in answers}) == 1


def test_a_key_belongs_to_one_request(client: TestClient) -> None:
    put(client, ROWS)
    client.post("/v1/runs", json=request())
    other = client.post("/v1/runs", json=request(document=DOCUMENT.replace("told", "said")))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("result", "kind"),
    [("not JSON", ""), ('{"rows":' + "[" * 5000 + "]" * 5000 + "}", ""), (None, "")],
)
def test_a_report_that_cannot_be_read_fails_its_task_only(
    client: TestClient, result: str | None, kind: str
) -> None:
    put(client, ROWS)
    run = client.post("/v1/runs", json=request()).json()["run"]
    lease, tasks = leased(client)
    bad = {"lease": lease, "task": tasks[0], "result": result, "kind": kind}
    answer = sync(client, [bad])
    assert answer.status_code == 200
    assert answer.json()["settled"] == [[lease, tasks[0]]]
    assert status(client, run) == "running"


@pytest.mark.parametrize("number", ["Infinity", "NaN", "-1"])
def test_numbers_that_are_none_are_refused_at_the_door(client: TestClient, number: str) -> None:
    body = {"info": {"worker": "w", "host": "h", "runtimes": [], "usd_per_hour": 7.5}}
    content = json.dumps(body).replace("7.5", number)
    answer = client.post("/v1/sync", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert client.get("/healthz").status_code == 200


def test_bytes_that_are_not_what_they_claim_are_refused(client: TestClient) -> None:
    digest = put(client, ROWS, tenant="alice")
    forged = client.put(
        f"/v1/blobs/{digest[7:71]}",
        content=b"x" * len(ROWS),
        headers={"x-flowmesh-tenant": "mallory"},
    )
    assert forged.json()["code"] == "digest_mismatch"
    headers = {"x-flowmesh-tenant": "mallory"}
    assert client.get(f"/v1/blobs/{digest[7:71]}", headers=headers).status_code == 404


def test_knowing_a_digest_is_no_permission(guarded: TestClient) -> None:
    digest = put(guarded, ROWS, tenant="alice")
    mallory = {"x-flowmesh-tenant": "mallory"}
    lacks = guarded.post("/v1/blobs/missing", json={"digests": [digest]}, headers=mallory)
    assert lacks.json() == {"digests": [digest]}, "she must show that she has the bytes"
    stolen = guarded.post("/v1/runs", json=request(tenant="mallory"))
    assert stolen.json()["code"] == "blob_missing"
    asked = guarded.get(f"/v1/blobs/{digest[7:71]}", headers={**mallory, "x-flowmesh-worker": "me"})
    assert asked.status_code == 404, "to say that one is a worker is not to be one"
    put(guarded, ROWS, tenant="mallory")
    assert guarded.post("/v1/runs", json=request(tenant="mallory")).status_code == 201


def test_a_tenant_sees_its_own_runs(client: TestClient) -> None:
    put(client, ROWS)
    run = client.post("/v1/runs", json=request(tenant="alice")).json()["run"]
    mallory = {"x-flowmesh-tenant": "mallory"}
    assert client.get(f"/v1/runs/{run}", headers=mallory).status_code == 404
    assert client.get(f"/v1/runs/{run}/events", headers=mallory).status_code == 404
    assert client.post(f"/v1/runs/{run}/cancel", headers=mallory).status_code == 404
    alice = {"x-flowmesh-tenant": "alice"}
    assert client.get(f"/v1/runs/{run}", headers=alice).json()["status"] == "running"


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/workers", "/openapi.json", "/docs"])
def test_every_path_wants_the_token(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200
    refused = guarded.get(path, headers={"authorization": "Bearer wrong"})
    assert (refused.status_code, refused.json()["code"]) == (401, "access_denied")
    assert guarded.get("/healthz", headers={"authorization": ""}).status_code == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [("/v1/runs?after=garbage", 422), ("/v1/blobs/xyz", 422), ("/v1/runs/r-none", 404)],
)
def test_wrong_requests_are_told_so(client: TestClient, path: str, code: int) -> None:
    answer = client.get(path)
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_tenant_has_so_many_open_runs_and_no_more(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmesh.server.driver.OPEN_RUNS_LIMIT", 2)
    put(client, ROWS)
    codes = [client.post("/v1/runs", json=request(f"k{n}")).status_code for n in range(3)]
    assert codes == [201, 201, 413]
    assert client.post("/v1/runs", json=request("k0", tenant="other")).status_code == 201


def test_only_so_many_tenants_are_let_in_beside_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmesh.server.driver.TENANTS_LIMIT", 2)
    with serving(tmp_path, tenants={"named": TenantSettings()}) as client:
        put(client, ROWS)
        asked = ["one", "two", "three", "named", "one"]
        answers = [
            client.post("/v1/runs", json=request(f"k{number}", tenant=tenant))
            for number, tenant in enumerate(asked)
        ]
        assert [answer.status_code for answer in answers] == [201, 201, 413, 201, 201]
        assert "knows 2 tenants, the limit" in answers[2].json()["detail"]


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/plan"])
def test_a_body_speaks_for_no_other_tenant_than_the_header(client: TestClient, path: str) -> None:
    put(client, ROWS)
    body = request(tenant="alice")
    refused = client.post(path, json=body, headers={"x-flowmesh-tenant": "mallory"})
    assert refused.status_code == 422
    assert "for tenant 'alice', the request is of tenant 'mallory'" in refused.json()["detail"]
    assert client.get("/v1/runs").json()["runs"] == []
    own = client.post(path, json=body, headers={"x-flowmesh-tenant": "alice"})
    assert own.is_success


def test_an_error_of_our_own_fails_the_step_and_not_the_server(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, ROWS)

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("flowmesh.server.steps.expand", broken)
    run = client.post("/v1/runs", json=request()).json()["run"]
    until(lambda: status(client, run) == "failed", "the run to fail")
    assert "an error of its own (RuntimeError)" in client.get(f"/v1/runs/{run}").json()["message"]
    assert client.get("/healthz").status_code == 200


def test_a_run_whose_document_is_refused_by_now_fails_alone(tmp_path: Path) -> None:
    """As after an upgrade: the journal holds a run that this version does not take."""
    with serving(tmp_path) as client:
        put(client, ROWS)
        run = client.post("/v1/runs", json=request()).json()["run"]
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("UPDATE runs SET request = replace(request, 'render', 'rendre')")
    database.close()
    with serving(tmp_path) as client:
        until(lambda: work(client) or status(client, run) == "failed", "the run to fail")
        assert "rendre" in client.get(f"/v1/runs/{run}").json()["message"]


def test_what_cannot_be_journaled_stops_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is ahead of the disk then: nothing more may be told."""
    with serving(tmp_path) as client:
        put(client, ROWS)

        def full(*arguments: Any) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr("flowmesh.stores.sqlite.SqliteJournal.append", full)
        assert client.post("/v1/runs", json=request()).status_code == 502
        monkeypatch.undo()
        refused = sync(client, [])
        assert (refused.status_code, "has stopped" in refused.json()["detail"]) == (502, True)
        driver: Any = client.app.state.driver  # type: ignore[attr-defined]
        assert "the disk is full" in driver.fatal.result()
    with serving(tmp_path) as client:
        assert client.get("/v1/runs").json()["runs"] == []
