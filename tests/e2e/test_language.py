"""What a document can say, as it runs: fan-out, conditions, failed rows, parts, cancellation."""

from pathlib import Path
from typing import Any

import pytest

from flowmesh.sdk.runs import Run
from flowmesh.wire import RunView
from support.fabric import Fabric, until

CODE = """
import os, time

def half(row):
    if row["n"] == 3:
        raise ValueError("three cannot be halved")
    return {"half": row["n"] / 2}

def hold(row, gate):
    while not os.path.exists(gate):
        time.sleep(0.01)
    return None
"""
ROWS = [{"n": n} for n in range(6)]


@pytest.fixture(scope="module")
def running(trainers: Fabric) -> Fabric:
    (trainers.home.parent / "code.py").write_text(CODE)
    return trainers


def submit(running: Fabric, steps: dict[str, Any], outputs: dict[str, str], **more: Any) -> Run:
    document = {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table"}, "wanted": {"type": "bool", "default": True}},
        "steps": steps,
        "outputs": outputs,
    }
    return running.client("language").submit(document, inputs={"rows": ROWS}, **more)


def python(running: Fabric, function: str, **more: Any) -> dict[str, Any]:
    code = str(running.home.parent / "code.py")
    return {"op": "python", "rows": "${inputs.rows}", "file": code, "function": function, **more}


def statuses(view: RunView) -> dict[str, str]:
    return {step.step: step.status for step in view.steps}


def test_a_matrix_fans_out_and_concat_joins(running: Fabric) -> None:
    steps = {
        "told": {
            "op": "render",
            "rows": "${inputs.rows}",
            "matrix": {"tone": ["loud", "calm"]},
            "template": "${matrix.tone} {{ n }}",
            "into": "text",
        },
        "all": {"op": "concat", "tables": ["${steps.told}"]},
    }
    run = submit(running, steps, {"all": "${steps.all}"})
    assert run.wait().status == "succeeded"
    texts = [row["text"] for row in run.output("all").rows()]
    assert texts == [f"{tone} {n}" for tone in ("loud", "calm") for n in range(6)]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_condition_skips_a_step_and_what_needs_it(running: Fabric, wanted: bool) -> None:
    few = "SELECT n FROM t WHERE n < 2 ORDER BY n"
    steps = {
        "few": {"op": "transform", "tables": {"t": "${inputs.rows}"}, "sql": few},
        "more": {
            "op": "render",
            "rows": "${steps.few}",
            "when": "inputs.wanted and steps.few.count == 2",
            "template": "x",
        },
        "after": {"op": "dedupe", "rows": "${steps.more}"},
        "both": {"op": "concat", "tables": ["${steps.few}", "${steps.more}"]},
    }
    run = submit(running, steps, {"both": "${steps.both}"}, parameters={"wanted": wanted})
    view = run.wait()
    assert view.status == "succeeded"
    end = "succeeded" if wanted else "skipped"
    expected = {"few": "succeeded", "more": end, "after": end, "both": "succeeded"}
    assert statuses(view) == expected
    assert len(run.output("both").rows()) == (4 if wanted else 2)


def test_a_failed_row_fails_the_run_and_is_named(running: Fabric) -> None:
    run = submit(running, {"half": python(running, "half")}, {"all": "${steps.half}"})
    view = run.wait()
    assert view.status == "failed"
    failure = view.failures[0]
    assert (failure.step, failure.row, failure.kind) == ("half", 3, "input")
    assert "three cannot be halved" in failure.message
    assert "Traceback" not in view.message + failure.message


def test_failed_rows_are_skipped_or_set_aside(running: Fabric) -> None:
    steps = {
        "skip": python(running, "half", on_error="skip"),
        "aside": python(running, "half", on_error="quarantine"),
    }
    outputs = {"good": "${steps.skip}", "same": "${steps.aside}", "bad": "${steps.aside.errors}"}
    run = submit(running, steps, outputs)
    assert run.wait().status == "succeeded"
    good = [{"n": n, "half": n / 2} for n in range(6) if n != 3]
    assert run.output("good").rows() == run.output("same").rows() == good
    (bad,) = run.output("bad").rows()
    assert bad["n"] == 3 and "three cannot be halved" in bad["error"]


def test_parts_of_a_split_are_outputs_and_rows_know_their_origin(running: Fabric) -> None:
    steps = {
        "parts": {"op": "split", "rows": "${inputs.rows}", "parts": {"a": 4, "b": "rest"}},
        "told": {"op": "render", "rows": "${steps.parts.b}", "template": "{{ n }}", "into": "t"},
    }
    run = submit(running, steps, {"a": "${steps.parts.a}", "told": "${steps.told}"})
    assert run.wait().status == "succeeded"
    rows = run.output("told").rows()
    assert len(run.output("a").rows()) == 4 and len(rows) == 2
    client = running.client("language")
    node = client.lineage(run=run.id, output="told", row=1)
    while node.children:
        node = node.children[0]
    assert (node.kind, ROWS[node.row or 0]["n"]) == ("input", rows[1]["n"])
    down = client.lineage(digest=node.digest, row=node.row, direction="down")
    assert "told" in str(down)


def test_a_cancelled_run_stops_its_work(running: Fabric, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    steps = {"hold": python(running, "hold", args={"gate": str(gate)})}
    run = submit(running, steps, {"all": "${steps.hold}"})
    client = running.client("language")
    until(lambda: any(worker.running for worker in client.workers()), "the task to run")
    assert run.cancel().status == "cancelled"
    assert run.wait().status == "cancelled"
    until(lambda: not any(worker.leases for worker in client.workers()), "the lease to end")
    assert statuses(run.view()) == {"hold": "cancelled"}
