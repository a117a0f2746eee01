"""The job of six tenants: 24 stage runs if each works alone, 13 distinct, 0 when asked again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flowmesh.sdk.runs import Run
from support.fabric import Fabric, fabric, until

JOB = Path(__file__).parent / "six_tenants" / "job.yaml"
STAGES = ("prep", "gen", "score", "train")
TENANTS = range(6)


def submit_all(running: Fabric, gates: Path) -> list[Run]:
    return [
        running.client(f"tenant-{tenant}").submit(
            JOB, parameters={"gates": str(gates), "model": tenant % 3, "lr": tenant}
        )
        for tenant in TENANTS
    ]


def executed(runs: list[Run]) -> int:
    views = [run.wait() for run in runs]
    assert [view.status for view in views] == ["succeeded"] * len(runs), views
    assert all(view.tasks.total == 4 for view in views)
    return sum(view.tasks.executed for view in views)


def stage_runs(runs: list[Run], stage: str) -> bool:
    """Whether a worker is at work on a stage of some run."""
    steps = [step for run in runs for step in run.view().steps]
    return any(step.step == stage and step.status == "running" for step in steps)


def finish(
    running: Fabric, runs: list[Run], gates: Path, at_stage: Callable[[str], None]
) -> list[str]:
    """Open the gates one after another; before each, `at_stage` may do harm."""
    for stage in STAGES:
        until(lambda stage=stage: stage_runs(runs, stage), f"stage {stage} to run")  # type: ignore[misc]
        at_stage(stage)
        (gates / stage).touch()
    assert executed(runs) == 13
    return [run.output("model").digest for run in runs]


def none(stage: str) -> None:
    """No harm."""


@pytest.mark.parametrize(
    "harm", [pytest.param("none", marks=pytest.mark.slow), "server", "workers"]
)
def test_thirteen_executions_whatever_is_killed(tmp_path: Path, harm: str) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    with fabric(tmp_path / "home") as running:

        def kill_server(stage: str) -> None:
            if stage == "score":
                running.restart_server()

        def kill_workers(stage: str) -> None:
            for pid in running.worker_pids():
                running.kill_worker(pid)

        runs = submit_all(running, gates)
        at_stage = {"none": none, "server": kill_server, "workers": kill_workers}[harm]
        digests = finish(running, runs, gates, at_stage)
        assert len(set(digests)) == 6
        again = submit_all(running, gates)
        assert executed(again) == 0
        assert [run.output("model").digest for run in again] == digests
        assert running.client().store_verify().bad == []
