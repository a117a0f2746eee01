"""From what a worker tells of batches to what `flowmesh estimates` says of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from flowmesh.base.ids import LeaseId, TaskId
from flowmesh.cli.estimates import estimates
from flowmesh.cli.main import cli
from flowmesh.cli.options import App
from flowmesh.core.events import BatchTiming
from flowmesh.core.fleet import Device
from flowmesh.core.records import Expected, Failure
from flowmesh.core.utility import Score
from flowmesh.planning import EstimateView
from flowmesh.server.driver import Driver
from flowmesh.server.reports import synced
from flowmesh.spec.action import Result, Usage
from flowmesh.wire import BatchReport, DeviceBody, SyncRequest, TaskReport, WorkerInfo
from support.fabric import until
from support.models import TOKEN, Bench, bench
from support.serving import ROWS, leased, put, request, serving, status, sync

DEVICE = {"kind": "test-2t", "flops_per_s": 1e11, "idle_w": 1.0, "busy_w": 5.0}
BATCH = {"tasks": 2, "load_s": 0.3, "exec_s": 0.25, "work": 2.0, "joules": 1.25, "cpu_s": 0.2}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as opened:
        put(opened, ROWS)
        yield opened


def driver_of(client: TestClient) -> Driver:
    driver: Driver = client.app.state.driver  # type: ignore[attr-defined]
    return driver


def run_of_two(client: TestClient) -> int:
    """A run whose two tasks were one batch; its lease."""
    run = client.post("/v1/runs", json=request("k")).json()["run"]
    sync(client, [], device=DEVICE, place="here")
    lease, tasks = leased_on(client)
    done = Result(rows=[{"text": "x"}], usage=Usage(seconds=0.1)).encode()
    reports: list[dict[str, Any]] = [
        {"lease": lease, "task": task, "result": done} for task in tasks
    ]
    reports[-1]["batch"] = BATCH
    sync(client, reports, device=DEVICE, place="here")
    until(lambda: status(client, run) == "succeeded", "the run")
    return lease


def leased_on(client: TestClient) -> tuple[int, list[str]]:
    held: list[Any] = []

    def asked() -> bool:
        held[:] = sync(client, [], device=DEVICE, place="here").json()["leases"]
        return bool(held)

    until(asked, "a lease")
    assert all(task["work"] > 0 for task in held[0]["tasks"])
    return held[0]["lease"], [task["task"] for task in held[0]["tasks"]]


def test_the_tables_hold_what_was_expected_beside_what_was_measured(client: TestClient) -> None:
    lease = run_of_two(client)
    ((kind, score, expected, timing),) = driver_of(client).database.read(
        "SELECT kind, score, expected, timing FROM leases WHERE lease = ?", (lease,)
    )
    assert kind == "test-2t"
    assert msgspec.json.decode(timing, type=BatchTiming) == BatchTiming(**BATCH)  # type: ignore[arg-type]
    assert msgspec.json.decode(expected, type=Expected).exec_s > 0
    assert msgspec.json.decode(score, type=Score).cost >= 0


def test_a_batch_that_tells_nothing_has_no_timing(client: TestClient) -> None:
    run = client.post("/v1/runs", json=request("k")).json()["run"]
    lease, tasks = leased(client)
    done = Result(rows=[{"text": "x"}]).encode()
    sync(client, [{"lease": lease, "task": task, "result": done} for task in tasks])
    until(lambda: status(client, run) == "succeeded", "the run")
    rows = driver_of(client).database.read("SELECT timing FROM leases", ())
    assert rows == [("",)]


def test_estimates_are_served(client: TestClient) -> None:
    assert client.get("/v1/estimates").json() == []
    run_of_two(client)
    (told,) = client.get("/v1/estimates").json()
    view = EstimateView.model_validate(told)
    assert (view.batch_key, view.operator, view.kind) == ("render@1", "render@1", "test-2t")
    assert view.seen == 1 and view.load_s > 0 and view.rate_1 > 0
    assert view.seconds.keys() <= {"batch", "unit of work"}


# What the core hears


def heard(report: TaskReport | None = None, **info: Any) -> Any:
    told = WorkerInfo(worker="w", host="h", runtimes=("r",), **info)
    return synced(SyncRequest(info=told, reports=[report] if report else []), 7)


def test_a_worker_is_heard_with_all_that_it_is() -> None:
    tree = f"sha256:{1:064x}/5"
    event = heard(
        device=DeviceBody(**DEVICE),  # type: ignore[arg-type]
        place="here",
        holds=(tree,),
        instance="i-1",
        interruptions_per_hour=0.5,
        memory_bytes=9,
        devices=2,
    )
    assert event.device == Device(**DEVICE)  # type: ignore[arg-type]
    assert (event.place, event.holds, event.instance) == ("here", (tree,), "i-1")
    assert (event.interruptions_per_hour, event.memory_bytes, event.devices) == (0.5, 9, 2)


def report(usage: Usage, **more: Any) -> TaskReport:
    return TaskReport(lease=1, task="t", result=Result(rows=[], usage=usage).encode(), **more)


def test_a_result_is_heard_with_what_it_took() -> None:
    batch = BatchReport(**BATCH)  # type: ignore[arg-type]
    usage = Usage(seconds=2.0, prompt_tokens=4, generated_tokens=6, joules=3.0)
    (result,) = heard(report(usage, batch=batch)).results
    assert (result.lease, result.task) == (LeaseId(1), TaskId("t"))
    assert (result.seconds, result.output_tokens, result.joules) == (2.0, 6, 3.0)
    assert result.batch == BatchTiming(**BATCH)  # type: ignore[arg-type]


def test_a_failure_is_heard_with_what_its_batch_took() -> None:
    batch = BatchReport(**BATCH)  # type: ignore[arg-type]
    failed = TaskReport(lease=1, task="t", kind="input", message="no", seconds=2.0, batch=batch)
    (result,) = heard(failed).results
    assert (result.failure, result.message, result.seconds) == (Failure.INPUT, "no", 2.0)
    assert result.batch == BatchTiming(**BATCH)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "usage",
    [
        Usage(seconds=-1.0),
        Usage(joules=-3.0),
        Usage(generated_tokens=-1),
        Usage(generated_tokens=1 << 60),
    ],
)
def test_nonsense_of_a_task_is_its_failure(usage: Usage) -> None:
    (result,) = heard(report(usage)).results
    assert result.failure is Failure.INTERNAL
    assert "a task took" in result.message


@pytest.mark.parametrize("field", ["exec_s", "joules", "output_tokens"])
def test_nonsense_of_a_batch_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        BatchReport(**{**BATCH, field: -1})


# The command


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("home")) as started:
        yield started


def command(served: Bench, *arguments: str) -> str:
    app = App(served.home / "none", as_json="--json" in arguments)
    options = ["--server", served.url, "--token", TOKEN]
    done = CliRunner().invoke(cli, ["estimates", *arguments, *options], obj=app)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_without_a_batch_it_says_what_to_do(served: Bench) -> None:
    assert "nothing has been learnt yet: run a workflow" in command(served)
    assert json.loads(command(served, "--json")) == []


MODEL = f"sha256:{'ab' * 32}/100"
VIEW = EstimateView(
    batch_key=f"generate@1/transformers/float32/{MODEL}",
    operator="generate@1",
    kind="test-2t",
    seconds={"batch": 0.02, "prompt token": 0.0015, "decode step": 0.0925, "output token": 0.007},
    seen=12,
    error=0.084,
    sigma=0.2,
    rate_unit="tokens",
    rate_1=8.97,
    rate_full=74.34,
    rows_full=32,
    watts=3.2,
    load_s=5.46,
)
TABLE = VIEW.model_copy(
    update={
        "batch_key": "concat@1",
        "operator": "",
        "seconds": {"batch": 0.02, "unit of work": 2.0},
        "rate_unit": "rows",
    }
)


class Answers:
    """A client of a server that has learnt something."""

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def estimates(self) -> list[EstimateView]:
        return [VIEW, TABLE]


def test_what_was_learnt_is_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(App, "client", lambda app: Answers())
    done = CliRunner().invoke(estimates, [], obj=App(tmp_path))
    header, model, table = (line.split("  ") for line in done.stdout.splitlines())
    told = [[cell.strip() for cell in line if cell.strip()] for line in (header, model, table)]
    titles = ["operator", "model", "device", "batches", "error", "batch", "1000 prompt tokens"]
    titles += ["step", "1000 output tokens", "unit of work", "load", "at 1 row", "full batch"]
    assert told[0] == titles
    numbers = ["12", "8%", "20 ms", "1.5 s", "92.5 ms", "7 s", "-", "5.46 s"]
    rates = ["8.97 tokens/s", "74.3 tokens/s (32 rows)"]
    assert told[1] == ["generate@1", "abababab", "test-2t", *numbers, *rates]
    numbers = ["12", "8%", "20 ms", "-", "-", "-", "2 s", "5.46 s"]
    rates = ["8.97 rows/s", "74.3 rows/s (32 rows)"]
    assert told[2] == ["concat@1", "test-2t", *numbers, *rates]
