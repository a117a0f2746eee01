"""What comes in at the server's doors and should not: it is told so, and nothing else suffers."""

import errno
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.base.digest import Digest
from flowmesh.base.errors import StoreError
from flowmesh.server import blobs, cards, limits
from flowmesh.server.driver import Driver
from flowmesh.spec.action import Artifact, Result
from support.fabric import until
from support.serving import ROWS, leased, put, request, serving, sync

HUGE = 2**70
NOWHERE = "0" * 64


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as started:
        yield started
        assert not driver_of(started).fatal.done()


def driver_of(client: TestClient) -> Driver:
    driver: Driver = client.app.state.driver  # type: ignore[attr-defined]
    return driver


def count(client: TestClient) -> int:
    ((records,),) = driver_of(client).database.read("SELECT count(*) FROM journal")
    return int(records)


@pytest.mark.parametrize("rows", [HUGE, -2])
def test_a_table_says_how_many_rows_it_has_in_numbers_that_the_tables_hold(
    client: TestClient, rows: int
) -> None:
    """Else the record could not be journaled, and the server would have to end."""
    put(client, ROWS)
    asked = request()
    asked["inputs"]["rows"]["rows"] = rows
    answer = client.post("/v1/runs", json=asked)
    assert answer.status_code == 422
    assert "inputs.rows.rows" in answer.json()["detail"]


@pytest.mark.parametrize(
    "said",
    [
        {"progress": [{"lease": HUGE, "task": "t", "step": 1}]},
        {"progress": [{"lease": -1, "task": "t", "step": 1}]},
        {"progress": [{"lease": 1, "task": "t" * 101, "step": 1}]},
        {"progress": [{"lease": 1, "task": "t", "step": HUGE}]},
        {"progress": [{"lease": 1, "task": "t", "step": 1, "facts": {"x" * 65: 1.0}}]},
        {"progress": [{"lease": 1, "task": "t", "step": 1, "checkpoint": "sha256:../1"}]},
        {"reports": [{"lease": HUGE, "task": "t", "kind": "input"}]},
    ],
)
def test_a_worker_that_says_what_cannot_be_is_refused(
    client: TestClient, said: dict[str, Any]
) -> None:
    info = {"worker": "w", "host": "h", "runtimes": ["tables"]}
    assert client.post("/v1/sync", json={"info": info, **said}).status_code == 422


@pytest.mark.parametrize("worker", ["", "w" * 201])
def test_a_worker_has_a_name_that_can_be_kept(client: TestClient, worker: str) -> None:
    """It is journaled with everything that the worker says."""
    info = {"worker": worker, "host": "h", "runtimes": []}
    assert client.post("/v1/sync", json={"info": info}).status_code == 422


def test_a_fact_that_is_no_number_is_refused(client: TestClient) -> None:
    fact = '{"lease": 1, "task": "t", "step": 1, "facts": {"loss": NaN}}'
    body = f'{{"info": {{"worker": "w", "host": "h", "runtimes": []}}, "progress": [{fact}]}}'
    answer = client.post("/v1/sync", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "finite" in answer.json()["detail"]


def test_what_nobody_was_given_is_not_journaled(client: TestClient) -> None:
    sync(client, [])
    before = count(client)
    told = {"lease": 7, "task": "t", "step": 1}
    saved = {**told, "checkpoint": f"sha256:{NOWHERE}/7"}
    answer = sync(client, [], [told, saved]).json()
    assert answer["saved"] == [[7, "t", saved["checkpoint"]]], "the worker need not repeat it"
    assert count(client) == before + 1, "the sync itself"
    assert driver_of(client).database.read("SELECT * FROM superseded") == []


@pytest.mark.parametrize(
    "result",
    [
        Result(outputs={"rows": Artifact("table", f"sha256:{NOWHERE}/7", HUGE)}),
        Result(outputs={"rows": Artifact("table", "sha256:../../etc/passwd", 1)}),
        Result(rows_blob="nowhere"),
    ],
)
def test_a_result_that_names_nothing_fails_its_task(client: TestClient, result: Result) -> None:
    put(client, ROWS)
    client.post("/v1/runs", json=request())
    lease, tasks = leased(client)
    sync(client, [{"lease": lease, "task": tasks[0], "result": result.encode()}])
    ((kind, message),) = driver_of(client).database.read("SELECT kind, message FROM attempts")
    assert kind == "internal"
    assert message.startswith("the worker's result cannot be read: ")
    assert driver_of(client).database.read("SELECT * FROM results") == []


@pytest.mark.parametrize("path", [f"/v1/blobs/{NOWHERE}", f"/v1/trees/{NOWHERE}"])
def test_a_size_that_no_digest_has(client: TestClient, path: str) -> None:
    answer = client.get(path, params={"size": 10**18})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("after", [f"{HUGE}:r-1", "٣:r-1", "-1:r-1", ":r-1", "1"])
def test_a_page_that_there_is_not(client: TestClient, after: str) -> None:
    answer = client.get("/v1/runs", params={"after": after})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")


def test_a_full_disk_is_told_as_such(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that heard of an internal error would try again for ever."""
    store = driver_of(client).store

    def full(content: object, expect: object = None) -> Digest:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise StoreError("cannot write to the store") from error

    monkeypatch.setattr(store, "put", full)
    answer = client.put(f"/v1/blobs/{Digest.of(b'x').hash}", content=b"x")
    told = answer.json()
    assert (answer.status_code, told["code"], told["retryable"]) == (507, "store_full", False)
    assert "store gc" in told["detail"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "store_full"), (errno.EACCES, "store")]
)
def test_a_body_that_cannot_be_received_is_told_too(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    async def full(*_: object) -> Digest:
        raise OSError(number, "so it is")

    monkeypatch.setattr(blobs, "_receive", full)
    answer = client.put(f"/v1/blobs/{Digest.of(b'x').hash}", content=b"x")
    assert answer.json()["code"] == code, answer.text


def test_whether_others_have_a_tree_is_not_told(tmp_path: Path) -> None:
    with serving(tmp_path, "long-and-random") as client:
        there = put(client, json.dumps({"files": []}).encode(), "alice")
        lacking = str(Digest.of(b"not there"))
        for digest in (there, lacking):
            answer = client.get("/v1/model-card", params={"what": digest})
            told = answer.json()["detail"].replace(digest, "IT")
            assert (answer.status_code, told) == (
                404,
                "the store of tenant default holds no blob IT; "
                "put it again, or re-run what made it",
            )


def pieces(size_bytes: int) -> Iterator[bytes]:
    """Sent without a length."""
    for _ in range(size_bytes // 1000):
        yield b" " * 1000


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(limits, "BODY_LIMIT_BYTES", 10_000)
    for path in ("/v1/sync", "/v1/runs"):
        content = pieces(20_000) if chunked else b" " * 20_000
        answer = client.post(path, content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "limit_exceeded")
    data = b"x" * 20_000
    answer = client.put(f"/v1/blobs/{Digest.of(data).hash}", content=data)
    assert answer.status_code == 200, "blobs have a limit of their own"


def test_a_body_without_a_length_is_read(client: TestClient) -> None:
    body = json.dumps({"digests": [f"sha256:{NOWHERE}/7"]}).encode()
    answer = client.post(
        "/v1/blobs/missing",
        content=iter([body[:9], body[9:]]),
        headers={"content-type": "application/json"},
    )
    assert answer.json()["digests"] == [f"sha256:{NOWHERE}/7"]


def test_who_waits_for_news_is_woken_when_it_is_forgotten(client: TestClient) -> None:
    """A worker that says goodbye while its last question is still open."""
    info = {"worker": "w", "host": "h", "runtimes": ["tables"]}
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(
            client.post, "/v1/sync", json={"info": info, "running": [], "wait_ms": 10_000}
        )
        until(lambda: "w" in driver_of(client).infos, "the worker to be known")
        began_s = time.monotonic()
        while not asked.done():
            client.post("/v1/sync", json={"info": info, "leaving": True})
            assert time.monotonic() - began_s < 5, "it waits on, though it is gone"
    assert asked.result().json()["leases"] == []


def test_a_parent_that_is_no_tree_does_not_hide_a_card(client: TestClient) -> None:
    """Where tenants are not kept apart, a run may have been given anything as a model."""
    assert cards._kind(driver_of(client), put(client, b"no manifest")) == "model"
