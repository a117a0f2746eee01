"""Quotas and money over HTTP: refused at the door, told in views, kept over restarts."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.base.digest import Digest
from flowmesh.core.records import Quota
from flowmesh.server.quotas import TenantSettings
from flowmesh.spec.action import Result, Usage
from support.fabric import until
from support.serving import ROWS, leased, put, request, serving, status, sync

TENANTS = {"alice": TenantSettings(2.0, Quota(leases=1, usd_per_day=5.0, stored_bytes=1_000))}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path, tenants=TENANTS) as started:
        yield started


def tenants(client: TestClient) -> dict[str, Any]:
    return {one["tenant"]: one for one in client.get("/v1/tenants").json()}


def send(client: TestClient, data: bytes, tenant: str = "alice", **headers: str) -> Any:
    path, said = f"/v1/blobs/{Digest.of(data).hash}", {"x-flowmesh-tenant": tenant, **headers}
    return client.put(path, content=data, headers=said)


# Stored bytes


def test_a_blob_beyond_the_quota_is_refused_and_told_why(client: TestClient) -> None:
    assert send(client, b"x" * 700).status_code == 200
    answer = send(client, b"y" * 301)
    assert answer.status_code == 429
    told = answer.json()
    assert (told["code"], told["retryable"]) == ("quota_exceeded", False)
    assert "tenant alice stores 700 of its 1,000 bytes, so 301 more are refused" in told["detail"]
    assert "flowmesh store gc" in told["detail"] and "stored_bytes" in told["detail"]
    digests = {"digests": [str(Digest.of(b"y" * 301))]}
    assert client.post("/v1/blobs/missing", json=digests).json() == digests
    assert send(client, b"z" * 300).status_code == 200
    assert tenants(client)["alice"]["stored_bytes"] == 1_000


def test_what_is_stored_already_needs_no_room(client: TestClient) -> None:
    assert send(client, b"x" * 1_000).status_code == 200
    assert send(client, b"x" * 1_000).status_code == 200
    assert tenants(client)["alice"]["stored_bytes"] == 1_000


def test_others_are_not_refused_and_each_pays_for_what_it_put(client: TestClient) -> None:
    assert send(client, b"x" * 900).status_code == 200
    assert send(client, b"x" * 900, "bob").status_code == 200
    assert send(client, b"y" * 5_000, "bob").status_code == 200
    assert tenants(client)["bob"]["stored_bytes"] == 5_900
    assert tenants(client)["bob"]["stored_bytes_limit"] == 0


def test_a_body_without_a_length_is_refused_where_it_outgrows_the_quota(
    client: TestClient,
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    path = f"/v1/blobs/{Digest.of(b'x' * 2_000).hash}"
    answer = client.put(path, content=chunks(), headers={"x-flowmesh-tenant": "alice"})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert tenants(client).get("alice", {}).get("stored_bytes") == 0


def test_what_a_worker_puts_is_nobodys(client: TestClient) -> None:
    sync(client, [])
    answer = send(client, b"x" * 5_000, **{"x-flowmesh-worker": "w"})
    assert answer.status_code == 200
    assert tenants(client)["alice"]["stored_bytes"] == 0


def test_a_refused_upload_leaves_room_for_others(client: TestClient) -> None:
    wrong = client.put(f"/v1/blobs/{'0' * 64}", content=b"x" * 900,
                       headers={"x-flowmesh-tenant": "alice"})  # fmt: skip
    assert wrong.json()["code"] == "digest_mismatch"
    assert send(client, b"y" * 1_000).status_code == 200


def test_sizes_that_an_earlier_version_did_not_keep_are_found(tmp_path: Path) -> None:
    with serving(tmp_path, tenants=TENANTS) as client:
        send(client, b"x" * 700)
    with sqlite3.connect(tmp_path / "journal.db") as tables:
        tables.execute("UPDATE uploads SET size_bytes = NULL")
        tables.execute("INSERT INTO uploads VALUES ('alice', ?, NULL)", ("1" * 64,))
    tables.close()
    with serving(tmp_path, tenants=TENANTS) as client:
        assert tenants(client)["alice"]["stored_bytes"] == 700
        assert send(client, b"y" * 301).status_code == 429


def test_what_is_collected_is_stored_no_more(client: TestClient) -> None:
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    digest = Digest.of(b"x" * 900)
    send(client, b"x" * 900)
    client.portal.call(driver.access.collected, [digest])  # type: ignore[union-attr]
    assert tenants(client).get("alice", {}).get("stored_bytes") == 0


# Settings of tenants


def test_settings_reach_the_core_and_go_with_the_file(tmp_path: Path) -> None:
    with serving(tmp_path, tenants=TENANTS) as client:
        alice = tenants(client)["alice"]
        assert (alice["weight"], alice["leases_limit"], alice["usd_per_day_limit"]) == (2.0, 1, 5.0)
    with serving(tmp_path) as client:
        alice = tenants(client)["alice"]
        assert (alice["weight"], alice["leases_limit"], alice["usd_per_day_limit"]) == (1.0, 0, 0)


def test_equal_settings_journal_nothing(tmp_path: Path) -> None:
    def records() -> int:
        with serving(tmp_path, tenants=TENANTS) as client:
            driver: Any = client.app.state.driver  # type: ignore[attr-defined]
            said = "SELECT count(*) FROM journal WHERE records LIKE '%TenantChanged%'"
            ((found,),) = driver.database.read(said)
            return int(found)

    first = records()
    assert records() <= first


# Budgets and deadlines in views


def submitted(client: TestClient, **changes: Any) -> str:
    put(client, ROWS)
    answer = client.post("/v1/runs", json=request(**changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["run"])


def test_a_view_tells_of_budget_and_deadline(client: TestClient) -> None:
    run = submitted(client, budget_usd=3, deadline_s=3_600, objective="cost")
    view = client.get(f"/v1/runs/{run}").json()
    assert (view["budget_usd"], view["objective"], view["deadline_met"]) == (3.0, "cost", None)
    assert view["deadline_ms"] == view["submitted_ms"] + 3_600_000
    lease, tasks = [], []

    def asked() -> bool:
        held = sync(client, [], usd_per_hour=36.0).json()["leases"]
        lease[:] = [one["lease"] for one in held]
        tasks[:] = [task["task"] for one in held for task in one["tasks"]]
        return bool(held)

    until(asked, "a lease")
    assert client.get(f"/v1/runs/{run}").json()["held_usd"] > 0
    done = Result(rows=[{"text": "x"}], usage=Usage(seconds=2.0)).encode()
    reports = [{"lease": lease[0], "task": task, "result": done} for task in tasks]
    sync(client, reports, usd_per_hour=36.0)
    until(lambda: status(client, run) == "succeeded", "the run to end")
    view = client.get(f"/v1/runs/{run}").json()
    assert view["cost_usd"] == pytest.approx(0.04)
    assert (view["held_usd"], view["deadline_met"]) == (0.0, True)
    assert client.get("/v1/runs").json()["runs"][0]["deadline_met"] is True
    assert tenants(client)["default"]["day_usd"] == pytest.approx(0.04)


def test_a_deadline_that_passed_is_missed(client: TestClient) -> None:
    run = submitted(client, deadline_s=0.001)
    until(lambda: client.get(f"/v1/runs/{run}").json()["deadline_met"] is False, "it to be late")
    assert status(client, run) == "running"
    lease, tasks = leased(client)
    done = Result(rows=[{"text": "x"}]).encode()
    sync(client, [{"lease": lease, "task": task, "result": done} for task in tasks])
    until(lambda: status(client, run) == "succeeded", "the run to end")
    assert client.get(f"/v1/runs/{run}").json()["deadline_met"] is False


@pytest.mark.parametrize(
    "wrong", [{"budget_usd": 0}, {"budget_usd": -1}, {"deadline_s": 0}, {"objective": "cheap"}]
)
def test_wrong_limits_are_refused(client: TestClient, wrong: dict[str, Any]) -> None:
    put(client, ROWS)
    answer = client.post("/v1/runs", json=request(**wrong))
    assert answer.status_code == 422
    assert next(iter(wrong)) in answer.json()["detail"]


def test_the_days_quota_is_told_as_what_a_step_waits_for(tmp_path: Path) -> None:
    quota = {"alice": TenantSettings(quota=Quota(usd_per_day=1e-6))}
    with serving(tmp_path, tenants=quota) as client:
        put(client, ROWS, "alice")
        client.post("/v1/runs", json=request(tenant="alice"))
        (run,) = client.get("/v1/runs").json()["runs"]

        def waits_for() -> str:
            assert sync(client, [], usd_per_hour=36.0).json()["leases"] == []
            path, headers = f"/v1/runs/{run['run']}", {"x-flowmesh-tenant": "alice"}
            (step,) = client.get(path, headers=headers).json()["steps"]
            return str(step["waits_for"])

        until(lambda: "waits for the next day (UTC): tenant alice" in waits_for(), "to be told")
