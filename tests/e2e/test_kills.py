"""Kill the server or any worker at random moments: every run ends as if nothing had been."""

import os
from pathlib import Path
from random import Random

import pytest
import yaml

from e2e.conftest import questions
from flowmesh.sdk.runs import Run
from flowmesh.spec.workflow import ModelSource
from support.fabric import Fabric, fabric, until

JOB = Path(__file__).parent / "preference" / "job.yaml"
DEMO = Path(__file__).parent.parent.parent / "examples" / "quickstart.yaml"

pytestmark = pytest.mark.model


def unshared(document: Path) -> dict[str, object]:
    """The same workflow, but every run computes everything itself."""
    workflow: dict[str, object] = yaml.safe_load(document.read_text())
    return {"flowmesh": 1, "share": "run", **workflow}


def done(run: Run) -> int:
    counts = run.view().tasks
    return counts.executed + counts.joined + counts.failed


def reached(run: Run, target: int) -> bool:
    return done(run) >= target or run.view().status != "running"


def harm(running: Fabric, rng: Random) -> str:
    pids = running.worker_pids()
    if rng.random() < 0.5 or not pids:
        running.restart_server()
        return "server"
    running.kill_worker(rng.choice(pids))
    return "worker"


def disturb(running: Fabric, run: Run, rng: Random, kills: int) -> int:
    """Kill something each time that a random number of further tasks is done."""
    for count in range(kills):
        target = done(run) + rng.randrange(1, 40)
        until(lambda target=target: reached(run, target), "progress", 180)  # type: ignore[misc]
        if run.view().status != "running":
            return count
        harm(running, rng)
    return kills


def digests(run: Run) -> dict[str, str]:
    view = run.wait()
    assert view.status == "succeeded", (view.message, view.failures)
    return {name: made.digest for name, made in view.outputs.items()}


def ordeal(running: Fabric, submit: object, kills: int, seed: int) -> None:
    rng = Random(seed)
    expected = digests(submit())  # type: ignore[operator]
    killed = 0
    while killed < kills:
        run = submit()  # type: ignore[operator]
        killed += disturb(running, run, rng, min(5, kills - killed))
        assert digests(run) == expected, f"after {killed} kills"
    report = running.client().store_verify()
    assert report.bad == []


def test_a_few_kills_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    with fabric(tmp_path / "home") as running:
        client = running.client()
        client.add_model("tiny", ModelSource(path=str(tiny_model)))
        workflow, rows = unshared(JOB), questions(0, 40)
        # The draws of this seed are a worker, then the server twice.
        ordeal(running, lambda: client.submit(workflow, inputs={"prompts": rows}), 3, seed=1)


@pytest.mark.slow
def test_a_hundred_kills_of_the_demo_change_nothing(tmp_path: Path) -> None:
    kills, seed = int(os.environ.get("KILLS", "100")), int(os.environ.get("KILL_SEED", "1"))
    with fabric(tmp_path / "home") as running:
        client = running.client()
        workflow = unshared(DEMO)
        inputs = {"prompts": DEMO.parent / "prompts.jsonl"}
        small = {"samples": 2, "max_tokens": 16}
        ordeal(
            running, lambda: client.submit(workflow, inputs=inputs, parameters=small), kills, seed
        )
