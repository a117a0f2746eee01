"""Bytes that go bad on the disk are set aside, and what they were is made again."""

import os
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.sdk.runs import Run
from flowmesh.spec.table import encode_rows
from flowmesh.stores.files import FileStore
from support.fabric import Fabric, fabric, until

CODE = """
import os, time

def make(rows):
    return [{"value": row["value"] * 2} for row in rows]

def hold(rows, gate):
    while not os.path.exists(gate):
        time.sleep(0.01)
    return rows
"""
ROWS = [{"value": n} for n in range(10)]


def workflow(gate: Path) -> dict[str, Any]:
    step = {"op": "python_table", "rows": "${inputs.rows}", "file": str(gate.parent / "code.py")}
    return {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table"}},
        "steps": {
            "made": {**step, "function": "make"},
            "held": {**step, "function": "hold", "args": {"gate": str(gate)}},
            "both": {"op": "concat", "tables": ["${steps.made}", "${steps.held}"]},
        },
        "outputs": {"both": "${steps.both}"},
    }


def damage(running: Fabric, digest: str) -> None:
    """Flip a byte of a blob, as a bad disk would."""
    path = FileStore(running.home / "store").path(Digest.parse(digest))
    assert path is not None
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(content)


def step_status(run: Run, name: str) -> str:
    return next(step.status for step in run.view().steps if step.step == name)


def test_a_damaged_intermediate_table_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    gate = tmp_path / "gate"
    with fabric(tmp_path / "home") as running:
        client = running.client()
        run = client.submit(workflow(gate), inputs={"rows": ROWS})
        until(lambda: step_status(run, "made") == "succeeded", "the first step")
        made = next(step for step in run.view().steps if step.step == "made")
        damage(running, made.outputs["rows"].digest)
        gate.touch()
        view = run.wait()
        assert view.status == "succeeded", (view.message, view.failures)
        assert run.output("both").rows() == [{"value": 2 * n} for n in range(10)] + ROWS
        assert client.store_verify().bad == []


def test_a_damaged_input_is_named_and_nothing_else_is_blamed(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    gate = tmp_path / "gate"
    with fabric(tmp_path / "home", workers=0) as running:
        client = running.client()
        run = client.submit(workflow(gate), inputs={"rows": ROWS})
        until(lambda: step_status(run, "made") == "running", "expansion")
        digest = Digest.of(encode_rows(ROWS))
        damage(running, str(digest))
        running.join_workers(1)
        view = run.wait()
        assert view.status == "failed"
        assert str(digest) in view.message
        gate.touch()
        again = client.submit(workflow(gate), inputs={"rows": ROWS})
        assert again.wait().status == "succeeded", "putting the input again heals the store"
