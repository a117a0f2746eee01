"""How the tasks of a run are foreseen, and which decisions are kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.base.ids import RunId
from flowmesh.core.forecast import snapshot
from flowmesh.planning import PlanView
from flowmesh.server import foresight, reasons
from flowmesh.server.foresight import Foresight
from flowmesh.spec.table import encode_rows
from flowmesh.wire import CreateRun
from support.planning import chain, finish, plan, steps
from support.serving import ROWS, leased, put, request, serving, sync

MANY = encode_rows([{"q": str(n)} for n in range(40)])


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as started:
        yield started


def planned(client: TestClient, body: dict[str, Any], items_limit: int) -> PlanView:
    """A plan that may expand so many items of a step, as at a submission."""
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    submission = driver.checked(CreateRun.model_validate(body))
    run, _ = submission.core_run(RunId("r-x"), driver.now_ms(), 1.0)
    state = snapshot(driver.plane.state, driver.now_ms() + 1)
    view: PlanView = driver.forecasts.plan(submission, run, state, items_limit=items_limit)
    return view


def test_of_many_rows_a_sample_is_looked_up(client: TestClient) -> None:
    put(client, MANY)
    view = planned(client, chain("k", MANY), 10)
    told = view.steps[0]
    assert (told.basis, told.items, told.executed) == ("sampled", 40, 40)
    assert planned(client, chain("k", MANY), 40).steps[0].basis == "exact"


def test_of_a_large_table_only_the_beginning_is_read(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "READ_WHOLE_BYTES", 100)
    put(client, MANY)
    told = planned(client, chain("k", MANY), 10).steps[0]
    assert (told.basis, told.items, told.executed) == ("sampled", 40, 40)


def test_counts_are_learnt_from_steps_of_the_same_name(client: TestClient) -> None:
    """A step that gives two rows for each is taken to do so again."""
    put(client, ROWS)
    put(client, MANY)
    run = client.post("/v1/runs", json=chain("first")).json()["run"]
    finish(client, run)
    database: Any = client.app.state.driver.database  # type: ignore[attr-defined]
    known = "UPDATE steps SET status = 'succeeded', items = 2, executed = 2, outputs = ? "
    doubled = '{"rows": {"kind": "table", "digest": "sha256:0/1", "rows": 4}}'
    database.write([(known + "WHERE name = 'told'", (doubled,))]).result()
    view = plan(client, chain("second", MANY))
    assert steps(view)["again"] == ("learnt", 0, 80)


def test_what_is_done_already_stands_for_rows_that_are_not_known(client: TestClient) -> None:
    """Not the templates: a row's text may be far longer than the name of its column."""
    put(client, ROWS)
    finish(client, client.post("/v1/runs", json=chain("first")).json()["run"])
    more = ROWS + encode_rows([{"q": "c"}])
    put(client, more)
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    submission = driver.checked(CreateRun.model_validate(chain("second", more)))
    ahead = Foresight(driver.database, driver.store, before_ms=driver.now_ms() + 1, items_limit=100)
    again = list(ahead.steps(submission, RunId("r-x")))[1]
    assert (again.reused, again.executed) == (2, 1)
    assert len(again.specs) == 2 and all(spec.id for spec in again.specs)


def test_the_run_itself_is_not_taken_for_done_before(client: TestClient) -> None:
    """The forecast of a submission is made while its first results come in."""
    put(client, ROWS)
    sync(client, [])
    driver: Any = client.app.state.driver  # type: ignore[attr-defined]
    before_ms = driver.now_ms()
    run = client.post("/v1/runs", json=chain("k")).json()["run"]
    finish(client, run)
    submission = driver.checked(CreateRun.model_validate(chain("k")))
    core_run, _ = submission.core_run(RunId("r-y"), before_ms, 1.0)
    state = snapshot(driver.plane.state, before_ms)
    assert driver.forecasts.plan(submission, core_run, state).reused == 0


def test_the_first_decisions_of_a_run_and_every_so_many_are_kept(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasons, "FIRST", 2)
    monkeypatch.setattr(reasons, "EACH", 4)
    leases = _leases(client, 9)
    assert leases == list(range(1, 10))
    assert _kept(client) == [1, 2, 4, 8]


def test_the_oldest_decisions_are_let_go(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("FIRST", 100), ("LIMIT", 3), ("TRIM_EACH", 1)):
        monkeypatch.setattr(reasons, name, number)
    leases = _leases(client, 6)
    assert _kept(client) == leases[-3:]


def _kept(client: TestClient) -> list[int]:
    database: Any = client.app.state.driver.database  # type: ignore[attr-defined]
    rows = database.read("SELECT lease FROM decisions ORDER BY lease")
    return [lease for (lease,) in rows]


def _leases(client: TestClient, count: int) -> list[int]:
    """Of one run, whose only batch is given back and granted again, so many times."""
    put(client, ROWS)
    client.post("/v1/runs", json=request())
    info = {"worker": "w", "host": "h", "runtimes": ["tables"]}
    leases: list[int] = []
    for _ in range(count):
        number, _ = leased(client)
        leases.append(number)
        client.post("/v1/sync", json={"info": info, "leaving": True})
    return leases
