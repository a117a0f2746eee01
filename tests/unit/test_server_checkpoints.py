"""Progress and checkpoints on the server: kept, shown, gone on from, and taken away."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.base.digest import Digest
from flowmesh.operators.catalog import catalog
from flowmesh.server import checkpoints
from flowmesh.server.checkpoints import GRACE_MS, KEPT_MS
from flowmesh.spec.action import Artifact, Result
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import blobs_of_tree, put_tree
from support.fabric import until
from support.serving import serving
from worker_support.climbing import install


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    install(tmp_path / "site")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setattr(checkpoints, "GAP_MS", 0)
    catalog.cache_clear()
    with serving(tmp_path / "home") as started:
        yield started
    catalog.cache_clear()


def submit(client: TestClient, key: str, **params: Any) -> str:
    step = {"op": "climb", "folder": "/nowhere", **params}
    document = {"flowmesh": 1, "steps": {"climb": step}, "outputs": {"top": "${steps.climb.rows}"}}
    body = {"document": json.dumps(document), "key": key}
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["run"])


def sync(client: TestClient, worker: str = "w", **said: Any) -> Any:
    info = {"worker": worker, "host": "h", "runtimes": ["climbing"]}
    answer = client.post("/v1/sync", json={"info": info, **said})
    assert answer.status_code == 200, answer.text
    return answer.json()


def leased(client: TestClient, worker: str = "w") -> dict[str, Any]:
    """The one task that a worker is given: its lease, name and checkpoint."""
    held: list[Any] = []

    def asked() -> bool:
        held[:] = sync(client, worker)["leases"]
        return bool(held)

    until(asked, "a lease")
    (task,) = held[0]["tasks"]
    return {"lease": held[0]["lease"], "task": task["task"], "checkpoint": task["checkpoint"]}


def store_of(client: TestClient) -> FileStore:
    store: FileStore = client.app.state.driver.store  # type: ignore[attr-defined]
    return store


def tree(client: TestClient, folder: Path, step: int) -> Digest:
    """A checkpoint in the store: a file of its own, and one that all of them have."""
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text(f"step {step}")
    (folder / "config").write_text("{}")
    return put_tree(store_of(client), folder)


def save(client: TestClient, at: dict[str, Any], made: Digest, step: int, worker: str = "w") -> Any:
    told = {"lease": at["lease"], "task": at["task"], "step": step, "checkpoint": str(made)}
    answer = sync(client, worker, progress=[told])
    assert answer["saved"] == [[at["lease"], at["task"], str(made)]]
    return answer


def tidy(client: TestClient, after_ms: int = 0) -> None:
    """Let the server take away what is of no use, as if all blobs had that age."""
    store = store_of(client)
    for info in store.list():
        place = store.path(info.digest)
        at_s = (info.modified_ms - after_ms) / 1000
        os.utime(place, (at_s, at_s))
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    client.portal.call(driver.checkpoints.tidy)  # type: ignore[union-attr]


def held(client: TestClient, made: Digest) -> bool:
    return made in {info.digest for info in store_of(client).list()}


def progress_of(client: TestClient, run: str) -> Any:
    (step,) = client.get(f"/v1/runs/{run}").json()["steps"]
    return step["progress"]


def test_progress_is_seen(client: TestClient, tmp_path: Path) -> None:
    run = submit(client, "a")
    at = leased(client)
    assert progress_of(client, run) is None
    told = {"lease": at["lease"], "task": at["task"], "step": 12, "steps": 40}
    sync(client, progress=[{**told, "facts": {"loss": 0.6}, "message": "slow"}])
    save(client, at, tree(client, tmp_path / "t", 10), 10)
    seen = progress_of(client, run)
    assert seen.pop("at_ms") > 0
    wanted = {"step": 12, "steps": 40, "facts": {"loss": 0.6}, "saved_step": 10, "message": "slow"}
    assert seen == wanted


def test_progress_comes_into_the_journal_now_and_then(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = submit(client, "a")
    at = leased(client)
    monkeypatch.setattr(checkpoints, "GAP_MS", 60_000)
    for step in (1, 2, 3):
        sync(client, progress=[{"lease": at["lease"], "task": at["task"], "step": step}])
    assert progress_of(client, run)["step"] == 1
    save(client, at, tree(client, tmp_path / "t", 3), 3)
    assert progress_of(client, run)["saved_step"] == 3, "a checkpoint is never left out"


def test_a_run_submitted_again_goes_on_from_the_checkpoint(
    client: TestClient, tmp_path: Path
) -> None:
    made = tree(client, tmp_path / "t", 10)
    run = submit(client, "a")
    save(client, leased(client), made, 10)
    client.post(f"/v1/runs/{run}/cancel")
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    driver.plane.state.left.clear()  # as after two minutes
    submit(client, "b")
    assert leased(client)["checkpoint"] == str(made)


def test_a_cancelled_run_says_what_its_long_tasks_left(client: TestClient, tmp_path: Path) -> None:
    made = tree(client, tmp_path / "t", 10)
    run = submit(client, "a")
    leased(client)
    cancelled = client.post(f"/v1/runs/{run}/cancel").json()
    assert [step["status"] for step in cancelled["steps"]] == ["cancelled"]
    assert progress_of(client, run)["saved_step"] == 0, "stopped, with nothing left"
    again = submit(client, "b")
    save(client, leased(client), made, 10)
    client.post(f"/v1/runs/{again}/cancel")
    assert progress_of(client, again)["saved_step"] == 10


def test_numbers_that_are_none_are_no_facts(client: TestClient) -> None:
    info = '{"worker":"w","host":"h","runtimes":[]}'
    told = '{"lease":1,"task":"t","step":1,"facts":{"loss":NaN}}'
    body = f'{{"info":{info},"progress":[{told}]}}'
    answer = client.post("/v1/sync", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_superseded_checkpoints_go_but_for_what_something_else_needs(
    client: TestClient, tmp_path: Path
) -> None:
    submit(client, "a")
    at = leased(client)
    trees = [tree(client, tmp_path / "t", step) for step in (10, 20)]
    first, second = (blobs_of_tree(store_of(client), made) for made in trees)
    save(client, at, trees[0], 10)
    save(client, at, trees[1], 20)
    tidy(client)
    assert held(client, trees[0]), "it is too young: somebody may be about to name it"
    tidy(client, after_ms=GRACE_MS + 120_000)
    left = {info.digest for info in store_of(client).list()}
    assert second <= left
    assert not left & (first - second)
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    assert driver.database.read("SELECT * FROM superseded") == []


def test_the_checkpoint_that_a_lease_goes_on_from_stays_until_it_has_one_of_its_own(
    client: TestClient, tmp_path: Path
) -> None:
    submit(client, "a")
    at = leased(client)
    first, late, own = (tree(client, tmp_path / "t", step) for step in (10, 15, 20))
    save(client, at, first, 10)
    sync(client, leaving=True)
    again = leased(client, "v")
    assert again["checkpoint"] == str(first)
    save(client, at, late, 15)
    tidy(client, after_ms=GRACE_MS + 120_000)
    assert held(client, first), "the second worker may be fetching it"
    save(client, again, own, 20, "v")
    tidy(client)
    assert (held(client, first), held(client, late), held(client, own)) == (False, False, True)


def test_after_a_success_nothing_is_left_but_the_result(client: TestClient, tmp_path: Path) -> None:
    """Its tree shares a file with the checkpoint."""
    run = submit(client, "a")
    at = leased(client)
    saved = tree(client, tmp_path / "t", 10)
    save(client, at, saved, 10)
    model, table = tree(client, tmp_path / "t", 30), store_of(client).put(b'{"state":"x"}\n')
    outputs = {
        "rows": Artifact("table", str(table), 1, ("state",)),
        "model": Artifact("tree", str(model)),
    }
    done = {"lease": at["lease"], "task": at["task"], "result": Result(outputs=outputs).encode()}
    sync(client, reports=[done])
    until(lambda: client.get(f"/v1/runs/{run}").json()["status"] == "succeeded", "the end")
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    assert driver.database.read("SELECT * FROM progress") == []
    kept = blobs_of_tree(store_of(client), model)
    gone = blobs_of_tree(store_of(client), saved) - kept
    tidy(client, after_ms=GRACE_MS + 120_000)
    left = {info.digest for info in store_of(client).list()}
    assert kept <= left
    assert not gone & left


def test_an_attempt_that_is_given_back_costs_what_was_heard_of(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = submit(client, "a")
    at = leased(client)
    info = {"worker": "w", "host": "h", "runtimes": ["climbing"], "usd_per_hour": 10_000.0}
    told = {"lease": at["lease"], "task": at["task"], "step": 5}
    client.post("/v1/sync", json={"info": info, "progress": [told]})
    client.post("/v1/sync", json={"info": info, "leaving": True})
    cost_usd = client.get(f"/v1/runs/{run}").json()["cost_usd"]
    assert cost_usd > 0
    save(client, leased(client, "v"), tree(client, tmp_path / "t", 10), 10, "v")
    client.post(f"/v1/runs/{run}/cancel")
    assert client.get(f"/v1/runs/{run}").json()["cost_usd"] == cost_usd, "that one is free"


def test_checkpoints_survive_a_collection_by_hand(client: TestClient, tmp_path: Path) -> None:
    run = submit(client, "a")
    made = tree(client, tmp_path / "t", 10)
    save(client, leased(client), made, 10)
    client.post(f"/v1/runs/{run}/cancel")
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    driver.plane.state.left.clear()
    needed = blobs_of_tree(store_of(client), made)
    tidy(client, after_ms=GRACE_MS + 120_000)
    client.post("/v1/store/gc?grace_s=300")
    assert needed <= {info.digest for info in store_of(client).list()}


def test_what_nobody_has_wanted_for_days_goes(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(client, "a")
    made = tree(client, tmp_path / "t", 10)
    save(client, leased(client), made, 10)
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    days_later = driver.now_ms() + KEPT_MS + 1
    monkeypatch.setattr(driver._ledger, "now_ms", lambda: days_later)
    tidy(client, after_ms=GRACE_MS + 120_000)
    assert held(client, made), "it is at work"
    client.post(f"/v1/runs/{run}/cancel")
    tidy(client)
    assert not held(client, made)
    assert driver.database.read("SELECT * FROM progress") == []
