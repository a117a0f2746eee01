"""Money on a real server with priced workers: stopped in time, shared fairly, never forgotten."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.errors import QuotaExceeded
from flowmesh.sdk.client import Client
from flowmesh.sdk.limits import Limits
from flowmesh.sdk.runs import Run
from support.fabric import Fabric, fabric, until

#: Two cents for a second: a row below costs a tenth of a cent.
USD_PER_HOUR = 72.0
ROW_S = 0.05
SCRIPT = f"""
import time

def slow(row):
    time.sleep({ROW_S})
    return {{"n": row["n"]}}
"""
TENANTS = """
alice: {weight: 2}
carol: {stored_bytes: 2000}
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fabric]:
    file = tmp_path / "tenants.yaml"
    file.write_text(TENANTS)
    options = ["--usd-per-hour", str(USD_PER_HOUR), "--tenants", str(file)]
    with fabric(tmp_path / "home", workers=1, options=options) as started:
        yield started


def workflow(folder: Path, **more: Any) -> Path:
    (folder / "slow.py").write_text(SCRIPT)
    step = {"op": "python", "rows": "${inputs.rows}", "file": "slow.py", "function": "slow"}
    document = {
        "flowmesh": 1,
        "name": "slow",
        **more,
        "inputs": {"rows": {"type": "table"}},
        "steps": {"told": {**step, "effect": "pure"}},
        "outputs": {"told": "${steps.told}"},
    }
    path = folder / "slow.yaml"
    path.write_text(json.dumps(document))
    return path


def rows(first: int, last: int) -> dict[str, list[dict[str, int]]]:
    return {"rows": [{"n": n} for n in range(first, last)]}


def spent_today(client: Client) -> dict[str, float]:
    return {one.tenant: one.day_usd for one in client.tenants()}


def start(client: Client, folder: Path, span: tuple[int, int], budget_usd: float) -> Run:
    limits = Limits(budget_usd=budget_usd or None)
    return client.submit(workflow(folder), inputs=rows(*span), limits=limits)


def test_a_small_budget_stops_in_time_and_the_server_remembers(
    running: Fabric, tmp_path: Path
) -> None:
    """Alice's rows are Bob's too; her budget covers about half of her 120 rows."""
    alice, bob = running.client("alice"), running.client("bob")
    # What a row takes is learnt first, and the engine is warm.
    assert start(bob, tmp_path, (1_000, 1_010), 0).wait().status == "succeeded"

    small = start(alice, tmp_path, (0, 120), 0.05)
    large = start(bob, tmp_path, (40, 120), 0)
    until(lambda: small.view().cost_usd > 0.01, "something to be spent")
    before, told = spent_today(alice), small.view()
    assert told.budget_usd == 0.05 and told.status == "running"

    running.kill_server()
    running.start()
    after = spent_today(alice)
    for tenant, usd in before.items():
        assert after[tenant] >= usd
    assert small.view().cost_usd >= told.cost_usd

    stopped, done = small.wait(), large.wait()
    assert stopped.status == "failed"
    assert "budget of $0.05" in stopped.message and "larger budget" in stopped.message
    assert 0.01 < stopped.cost_usd <= 0.05
    assert stopped.held_usd == 0.0
    assert done.status == "succeeded"
    assert done.tasks.executed + done.tasks.joined + done.tasks.reused == 80

    # The core's own account, over the kill, is that of the tables.
    until(lambda: all(one.held_usd == 0 and not one.leases for one in bob.tenants()), "quiet")
    for client in (alice, bob):
        cost = sum(view.cost_usd for view in client.runs().runs)
        assert spent_today(client)[client.tenant] == pytest.approx(cost)

    # What is done is not paid for again.
    again = start(alice, tmp_path, (0, 120), 0.2)
    assert again.wait().status == "succeeded"
    assert again.view().tasks.reused >= 80
    shown = command(running, "show", again.id, "--tenant", "alice")
    assert "of $0.2" in shown and "spent $" in shown


def test_a_budget_below_the_first_task_spends_nothing(running: Fabric, tmp_path: Path) -> None:
    alice = running.client("alice")
    run = start(alice, tmp_path, (0, 5), 1e-6)
    view = run.wait()
    assert (view.status, view.cost_usd, view.tasks.executed) == ("failed", 0.0, 0)
    assert "does not allow its next task" in view.message


def test_tenants_are_told_and_kept_within_their_bytes(running: Fabric, tmp_path: Path) -> None:
    carol = running.client("carol")
    with pytest.raises(QuotaExceeded, match=r"tenant carol stores \d+ of its 2,000 bytes"):
        start(carol, tmp_path, (0, 500), 0)
    told = command(running, "tenants")
    assert "alice" in told and "of 2.0 kB" in told
    listed = json.loads(command(running, "tenants", "--json"))
    assert {one["tenant"]: one["weight"] for one in listed}["alice"] == 2.0


def command(running: Fabric, *arguments: str) -> str:
    made = [sys.executable, "-m", "flowmesh", *arguments, "--server", running.url]
    return subprocess.run(made, capture_output=True, text=True, check=True).stdout
