"""Two tenants at once: each distinct task runs once, in common batches, with the same results."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.conftest import questions
from flowmesh.sdk.runs import Run
from flowmesh.spec.workflow import ModelSource
from flowmesh.wire import LineageNode, RunView
from support.fabric import Fabric, fabric, until

JOB = Path(__file__).parent / "preference" / "job.yaml"
ALICE = questions(0, 10)
BOB = questions(4, 14)

pytestmark = pytest.mark.model


def submit(
    running: Fabric,
    tenant: str,
    rows: list[dict[str, Any]],
    job: Path | dict[str, Any] = JOB,
    **parameters: Any,
) -> Run:
    return running.client(tenant).submit(job, inputs={"prompts": rows}, parameters=parameters)


def add_model(running: Fabric, path: Path) -> None:
    running.client().add_model("tiny", ModelSource(path=str(path)), shared=True)


def ask(running: Fabric, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{running.home}/journal.db?mode=ro", uri=True) as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


def settled(run: Run) -> RunView:
    view = run.wait()
    assert view.status == "succeeded", (view.message, view.failures)
    return view


def leaves(node: LineageNode) -> set[str]:
    below = [leaves(child) for child in node.children]
    return set().union(*below) if below else {node.kind}


def alone(
    home: Path, model: Path, tables: list[list[dict[str, Any]]], **parameters: Any
) -> list[dict[str, str]]:
    """Digests of what tenants get who share nothing and come one after another."""
    job = {**yaml.safe_load(JOB.read_text()), "share": "run"}
    with fabric(home, workers=1) as running:
        add_model(running, model)
        views = []
        for number, rows in enumerate(tables):
            views.append(settled(submit(running, f"alone-{number}", rows, job, **parameters)))
            assert views[-1].tasks.executed == views[-1].tasks.total
        return [{name: made.digest for name, made in view.outputs.items()} for view in views]


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 0.8])
def test_overlapping_tenants_share(tmp_path: Path, tiny_model: Path, temperature: float) -> None:
    with fabric(tmp_path / "both", workers=0) as running:
        add_model(running, tiny_model)
        runs = [
            submit(running, "alice", ALICE, temperature=temperature),
            submit(running, "bob", BOB, temperature=temperature),
        ]
        until(lambda: all(run.view().steps[0].status == "running" for run in runs), "expansion")
        running.join_workers(2)
        views = [settled(run) for run in runs]
        distinct = ask(running, "SELECT count(*) FROM results")[0][0]
        assert sum(view.tasks.executed for view in views) == distinct
        assert sum(view.tasks.total for view in views) > distinct
        assert ask(running, "SELECT lease FROM lease_runs GROUP BY lease HAVING count(*) = 2")
        for run in runs:
            up = running.client(run.view().tenant).lineage(run=run.id, output="judged", row=5)
            assert (up.kind, up.step, bool(up.task)) == ("row", "judged", True)
            assert leaves(up) == {"input", "model"}
    found = [{name: made.digest for name, made in view.outputs.items()} for view in views]
    assert found == alone(tmp_path / "alone", tiny_model, [ALICE, BOB], temperature=temperature)


def test_again_runs_nothing_and_a_change_runs_what_depends_on_it(
    trainers: Fabric, tiny_model: Path
) -> None:
    add_model(trainers, tiny_model)
    first = settled(submit(trainers, "alice", ALICE))
    again = settled(submit(trainers, "alice", ALICE))
    assert (again.tasks.executed, again.batches, again.cost_usd) == (0, 0, 0.0)
    assert again.outputs == first.outputs
    assert again.saved_usd == pytest.approx(first.cost_usd)
    changed = [*ALICE[:-1], {"question": "And what is new?"}]
    steps = {step.step: step.tasks for step in settled(submit(trainers, "alice", changed)).steps}
    assert steps["answers"].executed == 3
    assert steps["answers"].reused == 3 * (len(ALICE) - 1)
    assert 1 <= steps["judged"].executed <= 3
    assert steps["pairs"].executed == 1
