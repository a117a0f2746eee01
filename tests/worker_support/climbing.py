"""An operator that takes steps one by one, leaves checkpoints, and can be held at a step."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmesh.runtimes.base import Blobs, Done, Outcome, Progress, Stopped, Work
from flowmesh.spec.action import Artifact, Result
from flowmesh.spec.operator import Operator, Params


class ClimbParams(Params):
    """Take steps.

    `folder` is where the test looks: `log` tells what was done, and at step `hold` the climb
    waits for `go`. With `stops` 0 it does not look whether it should stop; with `bolts` it
    stops unasked at its end.
    """

    folder: str
    steps: int = 30
    every: int = 10
    hold: int = 0
    stops: int = 1
    bolts: int = 0
    devices: int = 1
    name: str = ""


def climbed(steps: int, name: str = "") -> str:
    """The state after so many steps."""
    state = name
    for step in range(1, steps + 1):
        state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()
    return state


class Climber:
    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield Done(work.task, self._climb(work))

    def _climb(self, work: Work) -> Result:
        asked = ClimbParams(**work.action.params)
        step, state = self._begin(work, asked)
        note(asked, f"start {step} {os.getpid()} {work.monitor.interruptions_per_hour}")
        while step < asked.steps:
            self._look(work, asked, step, state)
            step += 1
            state = hashlib.sha256(f"{state}/{step}".encode()).hexdigest()
            note(asked, f"step {step}")
            facts = {"loss": 1 / step, "tokens_per_s": 410.0, "grad_norm": float("nan")}
            work.monitor.progress(Progress(step, asked.steps, facts))
            if step % asked.every == 0:
                self._save(work, step, state)
            while step == asked.hold and not Path(asked.folder, "go").exists():
                self._look(work, asked, step, state)
                time.sleep(0.01)
        if asked.bolts:
            raise Stopped
        table = self._blobs.put(json.dumps({"state": state}).encode() + b"\n")
        outputs = {
            "rows": Artifact("table", str(table), 1, ("state",)),
            "model": Artifact("tree", str(self._tree(step, state))),
        }
        return Result(outputs=outputs)

    def _begin(self, work: Work, asked: ClimbParams) -> tuple[int, str]:
        if work.checkpoint is None:
            return 0, asked.name
        left = json.loads((self._blobs.tree(work.checkpoint) / "state.json").read_text())
        return left["step"], left["state"]

    def _look(self, work: Work, asked: ClimbParams, step: int, state: str) -> None:
        if asked.stops and work.monitor.stopping:
            self._save(work, step, state)
            raise Stopped

    def _save(self, work: Work, step: int, state: str) -> None:
        work.monitor.saved(self._tree(step, state), step)

    def _tree(self, step: int, state: str) -> Any:
        folder = self._blobs.scratch()
        (folder / "state.json").write_text(json.dumps({"step": step, "state": state}))
        (folder / "config.json").write_text("{}")
        return self._blobs.put_tree(folder)


def note(asked: ClimbParams, line: str) -> None:
    with Path(asked.folder, "log").open("a") as file:
        file.write(f"{line}\n")


def open_climber(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Climber:
    return Climber(blobs)


CLIMB = Operator(
    name="climb",
    version=1,
    summary="Take steps.",
    params=ClimbParams,
    inputs={},
    grain="whole",
    runtime="climbing",
    entry="worker_support.climbing:open_climber",
    outputs=lambda params: {"rows": "table", "model": "model"},
    columns=lambda params, inputs: {"rows": ("state",)},
    devices=lambda params: params.devices,
    resumable=True,
)


def starts(folder: Path) -> list[int]:
    """From which step each attempt went on."""
    return [int(line.split()[1]) for line in _log(folder) if line.startswith("start")]


def steps_taken(folder: Path) -> int:
    return sum(line.startswith("step") for line in _log(folder))


def pids(folder: Path) -> list[int]:
    return [int(line.split()[2]) for line in _log(folder) if line.startswith("start")]


def _log(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def install(site: Path) -> None:
    """Make the operator known to whoever has `site` on its path, as an installed package is."""
    info = site / "climbing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: climbing\nVersion: 1.0\n")
    point = "[flowmesh.operators]\nclimbing = worker_support.climbing:CLIMB\n"
    (info / "entry_points.txt").write_text(point)
