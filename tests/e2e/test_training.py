"""Training through the whole fabric: shared, killed, resumed, and downloaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flowmesh.sdk.client import Client
from flowmesh.sdk.runs import Run
from flowmesh.wire import StepView
from support.fabric import fabric, until
from support.training import Bench, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.model]

ROWS = [{"prompt": f"What is {n}?", "completion": f" The mountain {n}."} for n in range(12)]
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3, "per_device_train_batch_size": 4, "logging_steps": 2,
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """What the fabric has to come to, made in this process."""
    made = Bench(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rewards.py").write_text(
        "def brief(completions, **more):\n    return [-float(len(text)) for text in completions]\n"
    )
    return made


def submit(client: Client, folder: Path, op: str, **params: Any) -> Run:
    step = {"op": op, "data": "${inputs.rows}", "model": "${models.tiny}", **COMMON, **params}
    document = {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table", "file": "rows.jsonl"}},
        "models": {"tiny": {"path": "tiny"}},
        "steps": {"tune": step},
        "outputs": {
            name: f"${{steps.tune.{name}}}" for name in ("adapter", "summary", "loss_curve")
        },
    }
    (folder / "workflow.yaml").write_text(json.dumps(document))
    return client.submit(folder / "workflow.yaml")


def step_of(run: Run) -> StepView:
    (step,) = run.view().steps
    return step


def saved_step(run: Run) -> int:
    seen = step_of(run).progress
    return seen.saved_step if seen is not None else 0


def finished(run: Run) -> dict[str, Any]:
    view = run.wait()
    assert view.status == "succeeded", (view.message, view.failures)
    row: dict[str, Any] = run.output("summary").rows()[0]
    return row


@pytest.mark.parametrize(
    ("op", "params"),
    [
        ("sft", {"max_steps": 400}),
        (
            "grpo",
            {"max_steps": 60, "num_generations": 2, "max_completion_length": 8,
             "function": "brief"},
        ),
    ],
)  # fmt: skip
def test_a_worker_that_is_killed_costs_only_steps(
    bench: Bench, tmp_path: Path, op: str, params: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"checkpoint_steps": 5, **params}
    ports = {}
    if op == "grpo":
        ports["file"] = bench.blobs.put_file((tmp_path / "rewards.py").read_text())
    expected = bench.done(bench.action(op, ROWS, ports=ports, **COMMON, **more))
    if op == "grpo":
        more["file"] = "rewards.py"
    with fabric(tmp_path / "home", workers=2) as running:
        client = running.client()
        run = submit(client, tmp_path, op, **more)
        until(lambda: saved_step(run) >= 5, "a checkpoint")
        (busy,) = [one.worker for one in client.workers() if one.running]
        running.kill_worker(int(busy.split("-")[2]))
        summary = finished(run)
        assert len(summary["resumed_from"]) == 1
        assert summary["resumed_from"][0] >= 5
        assert run.output("adapter").digest == weights_of(expected)
        assert run.output("loss_curve").digest == expected["loss_curve"].digest


def test_several_devices_of_one_worker(bench: Bench, tmp_path: Path) -> None:
    """Placed where there are so many, killed with all of its processes, and gone on with."""
    more: dict[str, Any] = {"checkpoint_steps": 5, "max_steps": 150, "devices": 2}
    expected = bench.done(bench.action("sft", ROWS, **COMMON, **more))
    with fabric(tmp_path / "home", workers=1) as running:
        running.join_workers(2, "--devices", "2")
        client = running.client()
        run = submit(client, tmp_path, "sft", **more)
        until(lambda: saved_step(run) >= 5, "a checkpoint")
        (busy,) = [one for one in client.workers() if one.running]
        assert busy.devices == 2
        (pid,) = [one.pid for one in running.joined if str(one.pid) in busy.worker.split("-")]
        running.kill_worker(pid)
        summary = finished(run)
        assert (summary["devices"], summary["effective_batch"]) == (2, 8)
        assert len(summary["resumed_from"]) == 1
        assert run.output("adapter").digest == weights_of(expected)


def test_two_tenants_train_once_and_a_seed_retrains(bench: Bench, tmp_path: Path) -> None:
    with fabric(tmp_path / "home", workers=1) as running:
        runs = [
            submit(running.client(tenant), tmp_path, "sft", max_steps=4)
            for tenant in ("alice", "bob")
        ]
        for run in runs:
            finished(run)
        first, second = (run.view().tasks for run in runs)
        assert first.executed + second.executed == 1
        assert runs[0].output("adapter").digest == runs[1].output("adapter").digest
        other = submit(running.client("alice"), tmp_path, "sft", max_steps=4, seed=1)
        finished(other)
        assert other.output("adapter").digest != runs[0].output("adapter").digest
        folder = runs[0].output("adapter").path(tmp_path / "got")
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(folder))


def test_wrong_columns_are_refused_before_anything_is_sent(bench: Bench, tmp_path: Path) -> None:
    from flowmesh.base.errors import SpecError

    with (
        fabric(tmp_path / "home", workers=0) as running,
        pytest.raises(SpecError, match="dpo takes `chosen` and `rejected`"),
    ):
        submit(running.client(), tmp_path, "dpo", max_steps=4)
