"""Plan, run, plan again, show and explain: the commands of a laptop, as processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKFLOW = """\
flowmesh: 1
name: lengths
inputs:
  words: {type: table, file: words.jsonl}
steps:
  upper: {op: render, rows: "${inputs.words}", template: "{{ word | upper }}"}
  count:
    op: transform
    tables: {upper: "${steps.upper}"}
    sql: SELECT count(*) AS n FROM upper
outputs:
  count: ${steps.count}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "lengths.yaml").write_text(WORKFLOW)
    write_words(folder, 20)
    return folder


def write_words(folder: Path, count: int) -> None:
    rows = "".join(json.dumps({"word": f"word {n}"}) + "\n" for n in range(count))
    (folder / "words.jsonl").write_text(rows)


def flowmesh(folder: Path, *words: str, status: int = 0) -> str:
    environment = {**os.environ, "FLOWMESH_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "flowmesh", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


def answer(folder: Path, *words: str, status: int = 0) -> Any:
    return json.loads(flowmesh(folder, *words, "--json", status=status))


def test_the_life_of_a_plan(folder: Path) -> None:
    before = answer(folder, "plan", "lengths.yaml")
    assert (before["executed"], before["reused"]) == (21, 0)
    (today,) = before["fleets"]
    assert today["feasible"] and today["batches"] >= 2
    assert today["seconds"]["low"] < today["seconds"]["mid"] < today["seconds"]["high"]

    run = answer(folder, "run", "lengths.yaml")
    shown = answer(folder, "show", run["run"])
    plan = shown["plan"]
    assert {one["step"]: one["executed"] for one in plan["plan"]["steps"]} == {
        "upper": 20,
        "count": 1,
    }
    took = {one["step"]: one for one in plan["steps"]}
    assert took["upper"]["batches"] >= 1 and took["upper"]["seconds"] > 0
    assert plan["seconds"] > 0
    words = flowmesh(folder, "show", run["run"])
    assert "planned / actual:" in words and "20 / 20" in words

    after = answer(folder, "plan", "lengths.yaml")
    assert (after["executed"], after["reused"]) == (0, 21)
    assert "0 tasks to execute, 21 done before" in flowmesh(folder, "plan", "lengths.yaml")

    task = answer(folder, "explain", f"{run['run']}:upper:3")
    assert task["status"] == "succeeded" and task["relation"] == "executed"
    assert task["measured"]["exec_s"] > 0
    assert answer(folder, "explain", task["task"][:12])["task"] == task["task"]
    assert "worth of the batch" in flowmesh(folder, "explain", f"{run['run']}:upper:3")
    steps = answer(folder, "explain", run["run"])["steps"]
    assert [step["step"] for step in steps] == ["upper", "count"]
    assert "upper" in flowmesh(folder, "explain", run["run"])


def test_new_rows_on_given_machines(folder: Path) -> None:
    """After the run above: only what is new is to be executed, and offers stand beside."""
    write_words(folder, 25)
    (folder / "offers.yaml").write_text(
        "- {name: spot, device: A100-80, usd_per_hour: 1.10, startup_s: 90, count: 4}\n"
    )
    view = answer(folder, "plan", "lengths.yaml", "--offers", "offers.yaml")
    assert (view["reused"], view["executed"]) == (20, 6)
    today, offers = view["fleets"]
    assert offers["places"] == 4 and offers["startup_usd"] > 0
    assert offers["seconds"]["mid"] > 90 > today["seconds"]["mid"]


def test_what_is_wrong_is_told_before_anything_is_sent(folder: Path) -> None:
    (folder / "wrong.yaml").write_text("- {name: spot, usd_per_hour: -1}\n")
    wrong = answer(folder, "plan", "lengths.yaml", "--offers", "wrong.yaml", status=2)
    message = wrong["error"]["message"]
    assert "wrong.yaml:1" in message and "usd_per_hour" in message
    unknown = answer(folder, "explain", "r-000000000000", status=2)
    assert unknown["error"]["code"] == "not_found"
