"""What was trained is plain files: other programs load it, and it says and scores the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmesh.sdk.runs import Run
from support.fabric import Fabric
from support.training_runs import settled, submit, table

pytestmark = pytest.mark.model

SCRIPT = Path(__file__).parents[1] / "support" / "plain_loading.py"
TICKETS = table("tickets.jsonl", 16)
HELD_OUT = table("tickets-held-out.jsonl", 4)
LESSONS = [{"prompt": row["message"], "completion": row["good"]} for row in TICKETS]
PAIRS = [
    {"prompt": row["message"], "chosen": row["good"], "rejected": row["curt"]} for row in TICKETS
]
MAX_TOKENS = 24
WRITERS = {"lora": "adapter", "full": "model", "merged": "model"}
SCORERS = {"taste": "adapter", "full_taste": "model"}
CHAT = "${models.chat}"


def trainings() -> dict[str, dict[str, Any]]:
    learn = {"op": "sft", "data": "${inputs.lessons}", "model": CHAT, "max_steps": 8}
    prefer = {"op": "reward_model", "data": "${inputs.pairs}", "model": CHAT, "max_steps": 8}
    return {
        "lora": {**learn, "learning_rate": 0.02},
        "full": {**learn, "learning_rate": 0.002, "lora": None},
        "merged": {"op": "merge_adapter", "model": CHAT, "adapter": "${steps.lora.adapter}"},
        "taste": {**prefer, "learning_rate": 0.02},
        "full_taste": {**prefer, "learning_rate": 0.002, "lora": None},
    }


def uses() -> dict[str, dict[str, Any]]:
    """What each of them writes or scores."""
    write = {"op": "generate", "prompt": "{{ message }}", "max_tokens": MAX_TOKENS}
    score = {"op": "reward", "prompt": "{{ message }}", "completion": "{{ good }}"}
    steps: dict[str, dict[str, Any]] = {}
    for name, kind in {**WRITERS, **SCORERS}.items():
        weights = {"model": CHAT, kind: f"${{steps.{name}.{kind}}}"}
        asked = write if name in WRITERS else score
        steps[f"{name}_rows"] = {**asked, "rows": "${inputs.held_out}", **weights}
    return steps


def column(run: Run, name: str, column: str) -> list[Any]:
    return [row[column] for row in run.output(f"{name}_rows").rows()]


def test_other_programs_load_it_and_it_does_the_same(
    trainers: Fabric, tiny_model: Path, tmp_path: Path
) -> None:
    steps, kinds = {**trainings(), **uses()}, {**WRITERS, **SCORERS}
    outputs = {step: f"{step}.{kinds.get(step, 'rows')}" for step in steps}
    tables = {"lessons": LESSONS, "pairs": PAIRS, "held_out": HELD_OUT}
    run = submit(trainers.client("fresh"), tiny_model, steps, outputs, **tables)
    settled(run)
    made = tmp_path / "made"
    command = [sys.executable, "-m", "flowmesh", "outputs", run.id, "--to", str(made)]
    command += ["--server", trainers.url, "--tenant", "fresh"]
    subprocess.run(command, check=True, capture_output=True)

    script = [sys.executable, str(SCRIPT), str(tiny_model), str(made)]
    asked = json.dumps({"rows": HELD_OUT, "max_tokens": MAX_TOKENS})
    fresh = subprocess.run(script, input=asked, check=True, text=True, stdout=subprocess.PIPE)
    told = json.loads(fresh.stdout)
    assert told["imported"] == []
    texts = {name: column(run, name, "completion") for name in WRITERS}
    assert told["texts"] == texts
    assert texts["merged"] == texts["lora"] != texts["full"]
    for name in SCORERS:
        assert told["scores"][name] == pytest.approx(column(run, name, "reward"), abs=1e-4)
        assert len(set(told["scores"][name])) == len(HELD_OUT)
