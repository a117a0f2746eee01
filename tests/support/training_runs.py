"""Trainings through the whole fabric: workflows of one step, and what is known of their runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmesh.sdk.client import Client
from flowmesh.sdk.runs import Run
from flowmesh.wire import RunView, StepView

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Trainings may have to wait for a busy machine.
PATIENCE_S = 600.0


def table(name: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a table of the examples."""
    lines = (EXAMPLES / name).read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


def settled(run: Run) -> RunView:
    """The view of a run that is expected to work."""
    view = run.wait()
    assert view.status == "succeeded", (view.message, view.failures)
    return view


def executed(view: RunView) -> dict[str, int]:
    """By step, the tasks that were executed for a run; steps without any are left out."""
    return {step.step: step.tasks.executed for step in view.steps if step.tasks.executed}


def digests(view: RunView) -> dict[str, str]:
    return {name: made.digest for name, made in view.outputs.items()}


def step_of(run: Run, name: str) -> StepView:
    (step,) = (one for one in run.view().steps if one.step == name)
    return step


def submit(
    client: Client,
    model: Path,
    steps: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, str],
    **tables: list[dict[str, Any]],
) -> Run:
    """Start a run of steps that use `${models.chat}` and `${inputs.NAME}` of the tables."""
    document = {
        "flowmesh": 1,
        "inputs": {name: {"type": "table"} for name in tables},
        "models": {"chat": {"path": str(model)}},
        "steps": dict(steps),
        "outputs": {name: f"${{steps.{port}}}" for name, port in outputs.items()},
    }
    return client.submit(document, inputs=tables)
