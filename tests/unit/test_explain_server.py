"""Plans and explanations over HTTP, with a worker that the test plays."""

from collections.abc import Iterator
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.spec.table import encode_rows
from support.fabric import until
from support.planning import chain, finish, plan, steps, work
from support.serving import ROWS, leased, put, request, serving, sync


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as started:
        yield started


def test_a_plan_starts_nothing(client: TestClient) -> None:
    put(client, ROWS)
    before = client.app.state.driver.plane.state  # type: ignore[attr-defined]
    plan(client, chain())
    assert not before.runs and not before.tasks
    assert client.get("/v1/runs").json()["runs"] == []


def test_before_anything_was_run_counts_follow_the_shape(client: TestClient) -> None:
    put(client, ROWS)
    sync(client, [])
    view = plan(client, chain())
    assert steps(view) == {
        "told": ("exact", 0, 2),
        "again": ("shape", 0, 2),
        "all": ("shape", 0, 1),
    }
    (today,) = view["fleets"]
    assert today["places"] == 1 and today["feasible"]
    told, again, whole = today["steps"]
    assert told["where"] == {"w": 1} or sum(told["where"].values()) >= 1
    assert again["start_s"] >= told["end_s"] and whole["start_s"] >= again["end_s"]
    assert today["seconds"]["low"] < today["seconds"]["mid"] < today["seconds"]["high"]


def test_what_was_done_is_reused_in_the_plan(client: TestClient) -> None:
    put(client, ROWS)
    body = request("done")
    run = client.post("/v1/runs", json=body).json()["run"]
    finish(client, run)
    view = plan(client, request("new"))
    assert steps(view) == {"told": ("exact", 2, 0)}
    assert (view["executed"], view["reused"]) == (0, 2)
    assert view["fleets"][0]["batches"] == 0


def test_rows_that_are_new_are_told_from_those_that_are_done(client: TestClient) -> None:
    """Also in a later step: rows whose results exist go on for real."""
    put(client, ROWS)
    more = encode_rows([{"q": "a"}, {"q": "b"}, {"q": "c"}])
    put(client, more)
    run = client.post("/v1/runs", json=chain("first")).json()["run"]
    until(lambda: _two_steps(client, run), "two steps to end")
    view = plan(client, chain("second", more))
    known = steps(view)
    assert known["told"] == ("exact", 2, 1)
    assert known["again"][1:] == (2, 1)
    assert known["all"][1:] == (0, 1)


def test_what_may_be_done_before_is_told_and_in_the_interval(client: TestClient) -> None:
    """Rows behind a table that is still to be made may be those of an earlier run."""
    put(client, ROWS)
    more = encode_rows([{"q": "a"}, {"q": "c"}])
    put(client, more)
    fresh = plan(client, chain("first"))
    assert fresh["unsure"] == 0 and not [one for one in fresh["notes"] if "done before" in one]
    finish(client, client.post("/v1/runs", json=chain("first")).json()["run"])
    view = plan(client, chain("second", more))
    unsure = {one["step"]: one["unsure"] for one in view["steps"]}
    assert unsure == {"told": 0, "again": 1, "all": 1}
    assert view["unsure"] == 2 and view["executed"] == 3
    (note,) = [one for one in view["notes"] if "is done before is not known yet" in one]
    assert "again, all" in note
    steps_of = {one["step"]: one["seconds"] for one in view["fleets"][0]["steps"]}
    assert steps_of["told"]["low"] > 0 and steps_of["again"]["low"] == 0
    assert view["fleets"][0]["seconds"]["low"] > 0


def _two_steps(client: TestClient, run: str) -> bool:
    work(client)
    view = client.get(f"/v1/runs/{run}").json()
    return bool(view["steps"][1]["status"] == "succeeded")


def test_without_a_worker_it_says_how_to_get_one(client: TestClient) -> None:
    put(client, ROWS)
    view = plan(client, chain())
    assert not view["fleets"][0]["feasible"]
    assert any("there is no worker" in note for note in view["notes"])


def test_a_worker_without_the_runtime_is_told(client: TestClient) -> None:
    put(client, ROWS)
    sync(client, [], runtimes=["transformers"])
    (today,) = plan(client, chain())["fleets"]
    assert not today["feasible"]
    assert today["steps"][0]["why_not"] == {"does not offer tables": 1}
    assert today["verdicts"] == ["step told cannot run: of its places, 1 does not offer tables"]


def test_given_offers_are_planned_on_apart(client: TestClient) -> None:
    put(client, ROWS)
    offers = [{"name": "spot", "device": "L4", "usd_per_hour": 0.8, "startup_s": 45, "count": 2}]
    today, given = plan(client, {**chain(), "offers": offers})["fleets"]
    assert (today["places"], given["places"]) == (0, 2)
    assert given["feasible"] and given["steps"][0]["start_s"] == 45.0
    assert given["startup_usd"] == pytest.approx(0.8 * 45 / 3600)
    assert given["usd"]["mid"] > given["startup_usd"]


def test_an_offer_without_a_price_is_said_to_be_free(client: TestClient) -> None:
    put(client, ROWS)
    priced = {"name": "p", "device": "T4", "usd_per_hour": 1.0}
    view = plan(client, {**chain(), "offers": [{"name": "mine", "device": "T4"}, priced]})
    assert "offers without usd_per_hour are taken as free: mine" in view["notes"]


def test_an_offer_of_an_unknown_device_needs_figures(client: TestClient) -> None:
    put(client, ROWS)
    wrong = client.post("/v1/plan", json={**chain(), "offers": [{"name": "x", "device": "?"}]})
    assert wrong.status_code == 422 or wrong.status_code == 400
    assert "no data sheet" in wrong.json()["detail"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"budget_usd": 1e-9}, "would exceed its budget"), ({"deadline_s": 0.01}, "its deadline")],
)
def test_budgets_and_deadlines_that_would_not_hold_are_told(
    client: TestClient, limits: dict[str, Any], words: str
) -> None:
    put(client, ROWS)
    sync(client, [], usd_per_hour=100.0)
    (today,) = plan(client, {**chain(), **limits})["fleets"]
    assert any(words in verdict for verdict in today["verdicts"])


def test_plan_and_outcome_stand_side_by_side(client: TestClient) -> None:
    put(client, ROWS)
    sync(client, [], usd_per_hour=3.6)
    run = client.post("/v1/runs", json=request()).json()["run"]
    until(lambda: client.get(f"/v1/runs/{run}/plan").json()["plan"], "the forecast")
    finish(client, run)
    both = client.get(f"/v1/runs/{run}/plan").json()
    (planned,) = both["plan"]["steps"]
    assert (planned["reused"], planned["executed"]) == (0, 2)
    (outcome,) = both["steps"]
    assert outcome["tasks"]["executed"] == 2 and outcome["batches"] >= 1


# Explanations


def explained(client: TestClient, path: str, **params: Any) -> Any:
    answer = client.get(f"/v1/{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_task_without_a_worker_says_what_it_waits_for(client: TestClient) -> None:
    put(client, ROWS)
    run = client.post("/v1/runs", json=request()).json()["run"]
    until(lambda: client.get(f"/v1/runs/{run}").json()["steps"][0]["items"] == 2, "tasks")
    task = explained(client, f"runs/{run}/explain/task", step="told", row=1)
    assert (task["status"], task["relation"]) == ("ready", "open")
    assert task["waits_for"] == "a worker: there is none"
    steps = explained(client, f"runs/{run}/explain")["steps"]
    assert steps[0]["waits_for"] == "a worker: there is none"
    needed = "waits for a worker that offers tables"
    shown = client.get(f"/v1/runs/{run}").json()["steps"][0]["waits_for"]
    assert shown == f"{needed}; there is no worker", "told at once to whoever asks"
    sync(client, [], runtimes=["other"])
    shown = client.get(f"/v1/runs/{run}").json()["steps"][0]["waits_for"]
    assert shown == f"{needed}; the only worker does not offer tables"
    task = explained(client, f"runs/{run}/explain/task", step="told", row=1)
    assert task["waits_for"] == "a worker that fits: none of 1 does"
    assert task["why_not"] == {"does not offer tables": 1}
    assert task["words"][1:] == ["of the workers, 1 does not offer tables"]
    client.post(f"/v1/runs/{run}/cancel")
    task = explained(client, f"runs/{run}/explain/task", step="told", row=1)
    assert (task["status"], task["relation"]) == ("cancelled", "cancelled")
    assert task["words"] == ["no run wants it any more, and nothing came of it"]


def test_a_task_behind_others_tells_its_options(client: TestClient) -> None:
    put(client, ROWS)
    sync(client, [])
    client.post("/v1/runs", json=request("first", share="run"))
    leased(client)
    run = client.post("/v1/runs", json=request("second", share="run")).json()["run"]
    until(lambda: client.get(f"/v1/runs/{run}").json()["steps"][0]["items"] == 2, "tasks")
    task = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    assert task["waits_for"].startswith("a free slot: the one worker that fits is busy")
    (option,) = task["others"]
    assert (option["place"], option["batch"]) == ("w", 2)
    assert option["score"]["exec_s"] > 0
    assert task["words"] == [f"it waits for {task['waits_for']}"]


def done(client: TestClient, key: str = "k") -> str:
    put(client, ROWS)
    sync(client, [], usd_per_hour=3.6)
    run = str(client.post("/v1/runs", json=request(key)).json()["run"])
    finish(client, run)
    return run


def test_a_task_that_was_done_tells_its_life(client: TestClient) -> None:
    run = done(client)
    task = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    assert (task["status"], task["relation"], task["worker"]) == ("succeeded", "executed", "w")
    assert task["ready_ms"] <= task["granted_ms"] <= task["ended_ms"]
    assert task["waited_s"] >= 0 and task["batch"] >= 1
    assert task["score"]["usd"] == pytest.approx(
        sum(task["score"][one] for one in ("value", "path", "urgency", "fairness"))
        - sum(task["score"][one] for one in ("cost", "egress", "energy", "risk"))
    )
    assert task["expected"]["exec_s"] > 0
    assert task["words"]


def test_a_prefix_of_the_fingerprint_names_a_task(client: TestClient) -> None:
    run = done(client)
    by_place = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    by_prefix = explained(client, f"tasks/{by_place['task'][:10]}/explain")
    assert by_prefix["task"] == by_place["task"]
    assert by_prefix["runs"] == [run]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("tasks/zz/explain", "invalid_spec"),
        ("tasks/abcdef/explain", "not_found"),
        ("runs/r-000000000000/explain", "not_found"),
    ],
)
def test_what_is_not_there_is_refused(client: TestClient, path: str, code: str) -> None:
    assert client.get(f"/v1/{path}").json()["code"] == code


def test_rows_and_steps_that_are_not_there_are_refused(client: TestClient) -> None:
    run = done(client)
    for params in ("step=none", "step=told&row=9"):
        assert client.get(f"/v1/runs/{run}/explain/task?{params}").status_code == 404


def test_another_tenant_learns_nothing_of_a_task(client: TestClient) -> None:
    run = done(client)
    task = explained(client, f"runs/{run}/explain/task", step="told", row=0)["task"]
    other = {"x-flowmesh-tenant": "other"}
    answer = client.get(f"/v1/tasks/{task[:6]}/explain", headers=other)
    assert answer.status_code == 404
    assert task[:7] not in answer.text, "not even more of its fingerprint than was asked with"
    assert client.get(f"/v1/runs/{run}/explain", headers=other).status_code == 404


def test_what_an_earlier_run_made_is_reused_and_says_so(client: TestClient) -> None:
    done(client, "one")
    run = done(client, "two")
    task = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    assert task["relation"] == "reused"
    assert task["share_usd"] == 0.0
    assert "found in the action cache" in task["words"][0]


def test_after_a_restart_the_tables_tell(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run = done(client)
        before = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    with serving(tmp_path) as client:
        after = explained(client, f"runs/{run}/explain/task", step="told", row=0)
        names = ("lease", "worker", "score", "expected", "ready_ms", "others", "sampled", "words")
        assert {one: after[one] for one in names} == {one: before[one] for one in names}
        client.app.state.driver.database.write([("DELETE FROM decisions", ())]).result()  # type: ignore[attr-defined]
        bare = explained(client, f"runs/{run}/explain/task", step="told", row=0)
    assert not bare["sampled"] and bare["score"] == before["score"]
    assert any("was not kept" in words for words in bare["words"])


def test_a_run_is_explained_by_steps(client: TestClient) -> None:
    run = done(client)
    answer = explained(client, f"runs/{run}/explain")
    (step,) = answer["steps"]
    assert step["batches"] == answer["decisions"] == sum(step["where"].values())
    assert list(step["where"]) == ["w"]
    assert answer["sampled"] == answer["decisions"]


def test_plans_take_no_threads_from_other_requests(client: TestClient) -> None:
    """One is made at a time, and not where `asyncio.to_thread` runs what all others need."""
    put(client, ROWS)
    forecasts = client.app.state.driver.forecasts  # type: ignore[attr-defined]
    made: list[str] = []
    real = forecasts.plan

    def noted(*given: Any) -> Any:
        made.append(current_thread().name)
        return real(*given)

    forecasts.plan = noted
    plan(client, chain())
    plan(client, chain())
    assert made == ["plans_0", "plans_0"]
