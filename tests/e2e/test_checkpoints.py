"""Long tasks through the whole fabric: kills, preemption and cancelled runs cost few steps."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowmesh.cli.main import cli
from flowmesh.cli.options import App
from flowmesh.operators.catalog import catalog
from flowmesh.sdk.client import Client
from flowmesh.sdk.runs import Run
from flowmesh.wire import StepView
from support.fabric import Fabric, fabric, until
from worker_support.climbing import climbed, install, pids, starts, steps_taken

TESTS = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the test's climbs leave their tracks; the operator is installed for all processes."""
    install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(TESTS)]))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    catalog.cache_clear()
    (tmp_path / "climb").mkdir()
    yield tmp_path / "climb"
    catalog.cache_clear()


def submit(client: Client, folder: Path, **params: Any) -> Run:
    step = {"op": "climb", "folder": str(folder), **params}
    outputs = {"top": "${steps.climb.rows}"}
    return client.submit({"flowmesh": 1, "steps": {"climb": step}, "outputs": outputs})


def told_of(running: Fabric, run: Run) -> str:
    """What the command says of a run that is to be cancelled, or was."""
    app = App(running.home)
    done = CliRunner().invoke(cli, ["cancel", run.id, "--home", str(running.home)], obj=app)
    assert done.exit_code == 0, done.output
    return done.stdout


def step_of(run: Run) -> StepView:
    (step,) = run.view().steps
    return step


def is_at(run: Run, step: int, saved_step: int) -> bool:
    seen = step_of(run).progress
    return seen is not None and (seen.step, seen.saved_step) == (step, saved_step)


def state(run: Run) -> str:
    view = run.wait()
    assert view.status == "succeeded", (view.message, view.failures)
    found: str = run.output("top").rows()[0]["state"]
    return found


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_after_a_kill_another_worker_goes_on_from_the_last_checkpoint(
    tmp_path: Path, folder: Path
) -> None:
    with fabric(tmp_path / "home", workers=2) as running:
        client = running.client()
        run = submit(client, folder, hold=25)
        until(lambda: is_at(run, 20, 20) or is_at(run, 25, 20), "a checkpoint of step 20")
        (busy,) = [one.worker for one in client.workers() if one.running]
        running.kill_worker(int(busy.split("-")[2]))
        until(lambda: is_gone(pids(folder)[0]), "the end of the process")
        (folder / "go").touch()
        assert state(run) == climbed(30)
        assert starts(folder) == [0, 20]
        assert steps_taken(folder) == 25 + 10
        assert step_of(run).progress is None, "it is over"


@pytest.mark.slow
def test_a_restart_of_the_server_loses_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    with fabric(tmp_path / "home", workers=1) as running:
        run = submit(running.client(), folder, hold=25)
        until(lambda: is_at(run, 20, 20) or is_at(run, 25, 20), "a checkpoint of step 20")
        pid = running.worker_pids()[0]
        running.kill_server()
        running.kill_worker(pid)
        until(lambda: is_gone(pids(folder)[0]), "the end of the process")
        (folder / "go").touch()
        running.start()
        assert state(run) == climbed(30)
        assert starts(folder) == [0, 20]


def test_a_worker_that_is_taken_away_leaves_a_checkpoint(tmp_path: Path, folder: Path) -> None:
    """From another machine: blobs travel over HTTP."""
    with fabric(tmp_path / "home", workers=0) as running:
        running.join_workers(1)
        run = submit(running.client(), folder, hold=13)
        until(lambda: is_at(run, 10, 10) or is_at(run, 13, 10), "progress")
        until(lambda: steps_taken(folder) == 13, "step 13")
        (joined,) = running.joined
        joined.send_signal(signal.SIGTERM)
        assert joined.wait(20) == 0
        until(lambda: is_gone(pids(folder)[0]), "the end of the process")
        until(lambda: step_of(run).progress.saved_step == 13, "the last checkpoint")  # type: ignore[union-attr]
        (folder / "go").touch()
        running.join_workers(1)
        assert state(run) == climbed(30)
        assert starts(folder) == [0, 13]
        assert steps_taken(folder) == 30, "nothing was done twice"


def test_a_cancelled_run_leaves_what_the_next_goes_on_from(tmp_path: Path, folder: Path) -> None:
    with fabric(tmp_path / "home", workers=1) as running:
        client = running.client()
        run = submit(client, folder, hold=13)
        until(lambda: steps_taken(folder) == 13, "step 13")
        began_s = time.monotonic()
        assert run.cancel(checkpoint=True).status == "cancelled"
        assert time.monotonic() - began_s < 5
        (left,) = run.last.steps
        assert left.progress is not None
        assert left.progress.saved_step == 13, "the answer tells what is left"
        assert told_of(running, run) == (
            f"run {run.id}: cancelled\n{left.step}: a checkpoint of step 13 of 30 is left: "
            "asked for again, it goes on\n"
        )
        (folder / "go").touch()
        assert state(submit(client, folder, hold=13)) == climbed(30)
        assert starts(folder) == [0, 13]
        assert steps_taken(folder) == 30


def test_cancelled_work_is_gone_within_5_s(tmp_path: Path, folder: Path) -> None:
    """Even if it does not look whether it should stop."""
    with fabric(tmp_path / "home", workers=1) as running:
        client = running.client()
        for number, checkpoint in enumerate((False, True)):
            run = submit(client, folder, hold=13, stops=0, name=str(number))
            until(lambda number=number: steps_taken(folder) == 13 * (number + 1), "step 13")  # type: ignore[misc]
            began_s = time.monotonic()
            run.cancel(checkpoint=checkpoint)
            until(lambda: is_gone(pids(folder)[-1]), "the end of the process")
            assert time.monotonic() - began_s < 5


@pytest.mark.slow
def test_a_run_says_what_no_worker_has(tmp_path: Path, folder: Path) -> None:
    with fabric(tmp_path / "home", workers=1) as running:
        run = submit(running.client(), folder, devices=4)
        reason = (
            "waits for a worker that offers climbing and has 4 devices;"
            " the only worker has 1 of 4 devices"
        )
        until(lambda: step_of(run).waits_for == reason, "the reason", patience_s=30)
        running.join_workers(1, "--devices", "4")
        assert state(run) == climbed(30)
