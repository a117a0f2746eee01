"""The journal is the only truth: replaying it gives every read model again, row for row."""

from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.digest import Digest
from flowmesh.core.apply import apply
from flowmesh.core.decisions import DECISIONS
from flowmesh.core.events import EVENTS
from flowmesh.core.machine import ControlPlane
from flowmesh.server import schema
from flowmesh.server.project import statements
from flowmesh.stores.codec import Codec
from flowmesh.stores.sqlite import Database, SqliteJournal
from support.fabric import until
from support.serving import ROWS, leased, put, request, serving, status, sync, work

TABLES = (
    "runs",
    "steps",
    "results",
    "failures",
    "attempts",
    "leases",
    "lease_runs",
    "lease_steps",
    "artifacts",
    "uses",
    "progress",
    "superseded",
)


def rebuilt(source: Database, target: Database) -> None:
    """Replay the journal of `source` into the tables of `target`."""
    codec: Codec[Any] = Codec([*EVENTS, *DECISIONS])
    plane = ControlPlane()
    target.migrate(schema.MIGRATIONS)
    for _, records in SqliteJournal(source).replay():
        event, *decisions = codec.decode_many(records) or [None]
        if event is None:
            continue
        for record in (event, *decisions):
            apply(plane.state, record)
        target.write(statements(event, decisions, plane.state.drain())).result()


def history(home: Path) -> None:
    """A run that succeeds, one that fails on a row, one that is cancelled, over a restart."""
    with serving(home) as client:
        put(client, ROWS)
        good = client.post("/v1/runs", json=request("good")).json()["run"]
        until(lambda: work(client) or status(client, good) == "succeeded", "a success")
        bad = client.post("/v1/runs", json=request("bad", share="run")).json()["run"]
        lease, tasks = leased(client)
        failure = {"lease": lease, "task": tasks[0], "kind": "input", "message": "no good"}
        sync(client, [failure])
        until(lambda: status(client, bad) == "failed", "a failure")
    with serving(home) as client:
        run = client.post("/v1/runs", json=request("cancelled", share="run")).json()["run"]
        lease, tasks = leased(client)
        for step in (1, 2):
            told = {"lease": lease, "task": tasks[0], "step": step, "steps": 9}
            tree = str(Digest.of(str(step).encode()))
            progress = [{**told, "facts": {"loss": 0.5}}, {**told, "checkpoint": tree}]
            sync(client, [], progress)
        client.post(f"/v1/runs/{run}/cancel")
        assert status(client, run) == "cancelled"


@pytest.mark.parametrize("table", TABLES)
def test_a_read_model_is_what_the_journal_says(table: str, replayed: Any) -> None:
    rows, again = (sorted(map(repr, one.read(f"SELECT * FROM {table}"))) for one in replayed)
    assert rows, f"the history leaves nothing in {table}"
    assert again == rows


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("rebuild")
    history(home)
    source, target = Database(home / "journal.db"), Database(home / "again.db")
    rebuilt(source, target)
    yield source, target
    source.close()
    target.close()
