"""Loops, summaries and conditions on values, as the server carries them out."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flowmesh.operators.render import RENDER
from support.fabric import until
from support.serving import ROWS, put, request, serving, status, work


def count(params: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    texts = {row[params.into] for row in rows}
    return [{"rows": len(rows), "texts": len(texts), "first": min(texts, default=None)}]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server whose `render` has a summary; every rendered text is `x`."""
    known = {"render": replace(RENDER, aggregate=count)}
    monkeypatch.setattr("flowmesh.server.app.catalog", lambda: known)
    with serving(tmp_path) as client:
        put(client, ROWS)
        yield client


def ended(client: TestClient, steps: dict[str, Any], outputs: dict[str, str]) -> Any:
    """A run of `steps` over two rows, once it has settled."""
    document = {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table"}},
        "steps": steps,
        "outputs": outputs,
    }
    text = json.dumps(document)
    body = request(key=str(hash(text)), document=text)
    answer = client.post("/v1/runs", json=body)
    assert answer.status_code == 201, answer.json()
    run = answer.json()["run"]
    until(lambda: work(client) or status(client, run) != "running", "the run to end")
    return client.get(f"/v1/runs/{run}").json()


def rows_of(client: TestClient, digest: str) -> list[Any]:
    answer = client.get(f"/v1/blobs/{digest.removeprefix('sha256:').partition('/')[0]}")
    return [json.loads(line) for line in answer.content.splitlines()]


def looped(ends: str) -> dict[str, Any]:
    """A loop that renders the same rows in each of three rounds."""
    told = {"op": "render", "rows": "${inputs.rows}", "template": "{{ q }}"}
    again = {**told, "template": "{{ q }} again", "when": "loop.round > 1"}
    return {
        "l": {
            "loop": {
                "rounds": 3,
                "carry": {"told": {"next": "${steps.told}"}, "again": {"next": "${steps.again}"}},
                "until": ends,
                "steps": {"told": told, "again": again},
            }
        }
    }


OUTPUTS = {"told": "${steps.l.told}", "again": "${steps.l.again}"}


@pytest.mark.parametrize(
    ("ends", "ran"),
    [
        ("steps.told.rows.text == 'y'", 3),
        ("steps.told.rows.text == 'x'", 1),
        ("steps.told.summary.texts == loop.round - 1", 2),
        ("steps.again.count", 1),  # it was skipped in round 1, so nothing can be said
    ],
)
def test_a_loop_ends_after_the_round_that_says_so(client: TestClient, ends: str, ran: int) -> None:
    view = ended(client, looped(ends), OUTPUTS)
    assert view["status"] == "succeeded", view["message"]
    states = {step["step"]: step["status"] for step in view["steps"]}
    for number in (1, 2, 3):
        expected = "succeeded" if number <= ran else "skipped"
        assert states[f"l[{number}].told"] == expected
    assert set(view["outputs"]) == ({"told"} if ran == 1 else {"told", "again"})
    made = {step["step"]: step["outputs"] for step in view["steps"]}
    assert view["outputs"]["told"] == made[f"l[{ran}].told"]["rows"]
    assert view["tasks"]["executed"] == (2 if ran == 1 else 4)  # rounds share equal work
    answer = client.get("/v1/lineage", params={"run": view["run"], "output": "told"})
    assert answer.json()["step"] == f"l[{ran}].told"


def test_a_condition_that_compares_with_nothing_says_so(client: TestClient) -> None:
    view = ended(client, looped("steps.again.summary.first == 'x' and steps.told.count"), OUTPUTS)
    assert view["status"] == "succeeded"  # `none == 'x'` is a question with an answer
    ends = "steps.told.count > 5 or steps.again.summary.first > 'x'"
    view = ended(client, looped(ends), {"told": "${steps.l.told}"})
    assert view["status"] == "failed"
    assert f"condition {ends!r}" in view["message"]
    assert "steps.again.summary.first has no value here: the step was skipped" in view["message"]


def test_a_condition_reads_no_table_beyond_the_limit(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmesh.server.steps.TABLE_LIMIT_BYTES", 30)
    view = ended(client, looped("steps.told.rows.text == 'y'"), OUTPUTS)
    assert view["status"] == "failed"
    assert (
        "a condition reads l[1].told.rows, a table of 42 bytes; the limit is 30"
        in (view["message"])
    )


def test_a_summary_is_an_output_without_rows_of_origin(client: TestClient) -> None:
    steps = {
        "told": {"op": "render", "rows": "${inputs.rows}", "template": "{{ q }}"},
        "more": {
            "op": "render",
            "rows": "${steps.told.summary}",
            "template": "{{ texts }} of {{ rows }}",
        },
    }
    view = ended(client, steps, {"summary": "${steps.told.summary}", "told": "${steps.told}"})
    assert view["status"] == "succeeded", view["message"]
    summary = view["outputs"]["summary"]
    assert rows_of(client, summary["digest"]) == [{"rows": 2, "texts": 1, "first": "x"}]
    asked = {"run": view["run"], "output": "summary", "row": 0}
    made_from = client.get("/v1/lineage", params=asked).json()
    assert made_from["label"] == "told.summary row 0"
    assert [child["label"] for child in made_from["children"]] == ["input rows"]
    asked = {"run": view["run"], "output": "told", "row": 1, "direction": "down"}
    used_by = client.get("/v1/lineage", params=asked).json()
    assert used_by["children"] == []  # what a row became within a summary cannot be told
