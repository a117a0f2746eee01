"""A worker against a server on loopback: real HTTP, real child processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.digest import Digest, fingerprint
from flowmesh.base.errors import AccessDenied, Unreachable
from flowmesh.core.datasheet import THREAD_BYTES_PER_S
from flowmesh.spec.action import INLINE_LIMIT_BYTES, Action, Artifact
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import put_tree
from flowmesh.wire import LeaseTask
from flowmesh.worker.agent import work
from flowmesh.worker.settings import WorkerSettings
from worker_support.operators import OPERATORS
from worker_support.server import PATIENCE_S, FakeServer

TESTS = Path(__file__).parents[1]

Start = Callable[..., Awaitable["asyncio.Task[None]"]]
#: What a worker of half the speed says of its memory before it was measured.
GUESS = THREAD_BYTES_PER_S / 2


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def start(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts a worker, whose children can import the operators of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    stop, workers = asyncio.Event(), []

    async def begin(**more: Any) -> "asyncio.Task[None]":
        settings = WorkerSettings(
            server=server.address,
            home=tmp_path / "home",
            operators=OPERATORS,
            poll_ms=60_000,  # Longer than the test's patience: nothing may wait for its end.
            **more,
        )
        workers.append(asyncio.create_task(work(settings, stop)))
        return workers[-1]

    yield begin
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*workers, return_exceptions=True)


#: What runs in the process of `act` without loading anything: operators of the same runtime.
SHARED = ("act@1", "also@1", "lacking@1")


def act(do: str, op: str = "act", inputs: dict[str, Any] | None = None, **params: Any) -> Action:
    return Action(op, 1, {"do": do, **params}, inputs or {})


def hanging(tmp_path: Path, name: str = "fifo") -> Action:
    """A task that does not end before someone writes to its pipe."""
    fifo = tmp_path / name
    os.mkfifo(fifo)
    return act("hang", fifo=str(fifo))


async def is_gone(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
    return True


def pid_of(report_result: str | None) -> int:
    assert report_result is not None
    return int(json.loads(report_result)["rows"][0]["pid"])


async def test_a_lease_is_run_and_every_task_reported(server: FakeServer, start: Start) -> None:
    await start()
    tasks = await server.grant(1, act("echo", text="one"), act("echo", text="zwei ü"))
    results = await server.results(*tasks)
    assert [result.rows[0]["text"] for result in results if result.rows] == ["one", "zwei ü"]
    assert all(result.usage.seconds > 0 for result in results)
    await server.until(lambda: server.syncs[-1].running == [] and server.syncs[-1].info.warm)
    assert server.syncs[-1].reports == [], "what is settled is not reported again"
    info = server.syncs[-1].info
    assert info.warm == SHARED
    assert info.runtimes == ("broken", "light"), "a runtime without its libraries is not offered"


async def test_operators_without_a_model_share_one_warm_process(
    server: FakeServer, start: Start
) -> None:
    await start()
    [first] = await server.reported(*await server.grant(1, act("echo", text="a")))
    [second] = await server.reported(*await server.grant(2, act("echo", op="also", text="b")))
    assert pid_of(first.result) == pid_of(second.result)


async def test_time_is_shared_out_by_tokens(server: FakeServer, start: Start) -> None:
    await start()
    tasks = await server.grant(1, act("count", tokens=10), act("count", tokens=30))
    few, many = [result.usage.seconds for result in await server.results(*tasks)]
    assert many == pytest.approx(3 * few)


async def test_the_last_report_tells_what_the_batch_took(server: FakeServer, start: Start) -> None:
    await start()
    tasks = await server.grant(1, act("count", tokens=10), act("count", tokens=30))
    cold = [report.batch for report in await server.reported(*tasks) if report.batch]
    [batch] = cold
    assert (batch.tasks, batch.output_tokens, batch.decode_steps) == (2, 40, 30)
    assert batch.load_s > batch.exec_s > 0, "to start a process takes longer than this batch"
    assert batch.fetch_bytes > 0 and batch.fetch_s > 0, "the pack of its documents"
    assert batch.cpu_s > 0 and batch.joules > 0
    tasks = await server.grant(2, act("echo", text="a"))
    [warm] = await server.reported(*tasks)
    assert warm.batch is not None and warm.batch.load_s == 0


async def test_a_worker_describes_its_machine(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    model = _model(server, tmp_path)
    slow = {"slowdown": 2.0, "place": "here", "instance": "i-1", "interruptions_per_hour": 3.0}
    await start(**slow)
    await server.results(*await server.grant(1, act("look", inputs={"model": model})))
    await server.until(lambda: server.syncs[-1].info.device.bandwidth_bytes_per_s != GUESS)
    info = server.syncs[-1].info
    assert info.holds == (model.digest,)
    assert (info.place, info.instance, info.interruptions_per_hour) == ("here", "i-1", 3.0)
    assert info.device.kind == server.syncs[0].info.device.kind, "known at once"
    assert info.device.kind.endswith("-1t-slow2")
    assert info.device.busy_w > 0


async def test_what_is_done_is_reported_while_the_rest_runs(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start()
    done, waiting = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    await server.reported(done)
    assert waiting not in server.reports
    (tmp_path / "fifo").write_text("go on")
    await server.results(waiting)


async def test_a_withdrawn_lease_is_killed_and_the_worker_goes_on(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start()
    done, waiting = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    [report] = await server.reported(done)
    del server.leases[1]
    await server.change()
    assert await is_gone(pid_of(report.result))
    await server.results(*await server.grant(2, act("echo", text="b")))
    assert waiting not in server.reports


async def test_a_lease_without_open_tasks_is_stopped(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    """A task that another worker has done meanwhile is dropped from the lease."""
    await start()
    server.settle = False
    done, waiting = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    [report] = await server.reported(done)
    left = [task for task in server.leases[1].tasks if task.task != waiting]
    server.leases[1] = server.leases[1].model_copy(update={"tasks": left})
    await server.change()
    assert await is_gone(pid_of(report.result))
    server.settle = True
    await server.until(lambda: 1 not in server.leases)
    assert waiting not in server.reports


async def test_reports_survive_a_restart_of_the_server(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start()
    server.settle = False
    done, waiting = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    await server.reported(done)
    await server.stop()
    server.reports.clear()
    server.settle = True
    (tmp_path / "fifo").write_text("go on")
    await server.start()
    await server.results(done, waiting)
    assert server.syncs[-1].running in ([1], [])
    assert len({sync.info.worker for sync in server.syncs}) == 1


async def test_a_process_killed_in_mid_batch_is_a_crash_of_what_it_had_not_done(
    server: FakeServer, start: Start
) -> None:
    await start()
    tasks = await server.grant(1, act("echo", text="a"), act("die"), act("echo", text="b"))
    done, guilty, unlucky = await server.reported(*tasks)
    assert done.result is not None
    assert (guilty.kind, unlucky.kind) == ("crash", "crash")
    assert "signal 9 (SIGKILL)" in guilty.message
    await server.results(*await server.grant(2, act("echo", text="c")))


@pytest.mark.parametrize(
    ("do", "op", "kind", "message"),
    [
        ("gobble", "act", "memory", "MemoryError"),
        ("stumble", "act", "internal", "ValueError: two"),
        ("refuse", "act", "input", "this row is wrong"),
        ("lose", "act", "transient", "holds no blob"),
        ("leave", "act", "internal", "SystemExit"),
        ("stray", "act", "internal", "not asked of"),
        ("unspeakable", "act", "internal", "object"),
        ("echo", "lacking", "transient", "install"),
        ("echo", "broken", "transient", "worker_support.no_such"),
        ("echo", "unheard", "internal", "has no such operator"),
    ],
)
async def test_failures_keep_their_kind(
    server: FakeServer, start: Start, do: str, op: str, kind: str, message: str
) -> None:
    await start()
    [report] = await server.reported(*await server.grant(1, act(do, op=op, text="")))
    assert (report.result, report.kind) == (None, kind)
    assert message in report.message
    assert "\n" not in report.message


async def test_after_a_failure_the_process_goes_on(server: FakeServer, start: Start) -> None:
    await start()
    [before] = await server.reported(*await server.grant(1, act("echo", text="a")))
    await server.reported(*await server.grant(2, act("stumble")))
    [after] = await server.reported(*await server.grant(3, act("echo", text="b")))
    assert pid_of(before.result) == pid_of(after.result)


async def test_a_process_that_ran_out_of_memory_is_not_used_again(
    server: FakeServer, start: Start
) -> None:
    await start()
    [done, _] = await server.reported(*await server.grant(1, act("echo", text="a"), act("gobble")))
    [later] = await server.reported(*await server.grant(2, act("echo", text="b")))
    assert pid_of(done.result) != pid_of(later.result)


async def test_outputs_are_on_the_server_before_the_report(
    server: FakeServer, start: Start
) -> None:
    await start()
    text = "x" * (INLINE_LIMIT_BYTES + 1)
    server.open.clear()
    tasks = await server.grant(
        1, act("echo", text="small"), act("write", text="table"), act("echo", text=text)
    )
    await server.reported(tasks[0])
    await server.until(lambda: server.waiting == 2)
    assert list(server.reports) == tasks[:1]
    server.open.set()
    _, written, large = await server.results(*tasks)
    assert server.blobs[written.outputs["rows"].address.hash] == b"table"
    assert large.rows is None
    assert json.loads(server.blobs[Digest.parse(large.rows_blob).hash])[0]["text"] == text


async def test_inputs_and_trees_are_fetched_once(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start()
    file = Artifact("file", str(server.put(b"content")))
    read = [act("read", inputs={"file": file}, n=n) for n in range(2)]
    results = await server.results(*await server.grant(1, *read))
    assert [result.rows for result in results] == [[{"text": "content"}]] * 2
    assert server.downloads.count(file.address.hash) == 1

    model = _model(server, tmp_path)
    tasks = await server.grant(2, act("look", inputs={"model": model}))
    tasks += await server.grant(3, act("look", op="also", inputs={"model": model}))
    [generate, choose] = await server.results(*tasks)
    assert generate.rows and choose.rows
    assert generate.rows[0]["files"] == ["config", "part", "part/weights"]
    assert generate.rows == choose.rows, "two operators of a model share its process"
    assert server.downloads.count(model.address.hash) == 1


def _model(server: FakeServer, tmp_path: Path) -> Artifact:
    """A tree of two files, on the server."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config").write_text("{}")
    (folder / "part" / "weights").write_text("0")
    store = FileStore(tmp_path / "made")
    tree = put_tree(store, folder)
    for info in store.list():
        server.put(store.read(info.digest))
    return Artifact("tree", str(tree))


async def test_a_shared_store_is_used_in_place(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    shared = FileStore(tmp_path / "shared")
    await start(store=shared.root)
    file = Artifact("file", str(shared.put(b"content")))
    tasks = await server.grant(1, act("read", inputs={"file": file}), act("write", text="out"))
    for content in server.blobs.values():
        shared.put(content)  # the pack
    read, written = await server.results(*tasks)
    assert read.rows == [{"text": "content"}]
    assert shared.read(written.outputs["rows"].address) == b"out"
    assert server.downloads == []
    assert server.uploads == []


async def test_a_missing_input_fails_only_the_tasks_that_need_it(
    server: FakeServer, start: Start
) -> None:
    await start()
    lost = Artifact("file", str(Digest.of(b"nowhere")))
    tasks = await server.grant(1, act("read", inputs={"file": lost}), act("echo", text="a"))
    without, done = await server.reported(*tasks)
    assert without.kind == "transient"
    assert lost.digest in without.message
    assert done.result is not None


async def test_a_document_of_another_task_is_not_run(server: FakeServer, start: Start) -> None:
    await start()
    [task] = await server.grant(1, act("echo", text="a"))
    wrong = fingerprint({"not": "this"})
    [named] = server.leases[1].tasks
    server.leases[2] = server.leases[1].model_copy(
        update={
            "lease": 2,
            "tasks": [LeaseTask(task=wrong, pack=named.pack, line=0)],
        }
    )
    await server.change()
    [report] = await server.reported(wrong)
    assert report.kind == "internal"
    assert task in report.message


async def test_an_idle_process_makes_room_for_another(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start(memory_bytes=1)  # Room for none: one at a time is allowed all the same.
    [light] = await server.reported(*await server.grant(1, act("echo", text="a")))
    look = act("look", inputs={"model": _model(server, tmp_path)})
    await server.results(*await server.grant(2, look))
    assert await is_gone(pid_of(light.result))
    await server.until(lambda: server.syncs[-1].info.warm == SHARED)


async def test_processes_stay_while_there_is_room(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start(memory_bytes=1 << 40)
    [first] = await server.reported(*await server.grant(1, act("echo", text="a")))
    look = act("look", inputs={"model": _model(server, tmp_path)})
    await server.results(*await server.grant(2, look))
    [second] = await server.reported(*await server.grant(3, act("echo", text="b")))
    assert pid_of(first.result) == pid_of(second.result)


async def test_two_slots_run_two_batches_at_one_time(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start(slots=2)
    [first] = await server.grant(1, hanging(tmp_path))
    await server.results(*await server.grant(2, act("echo", text="a")))
    assert first not in server.reports
    (tmp_path / "fifo").write_text("go on")
    await server.results(first)


async def test_children_do_not_see_the_token(
    server: FakeServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWMESH_TOKEN", "secret")
    await start(threads=3)
    [result] = await server.results(*await server.grant(1, act("environment")))
    encoded = result.rows_blob and server.blobs[Digest.parse(result.rows_blob).hash]
    [seen] = json.loads(encoded) if encoded else result.rows or []
    assert "FLOWMESH_TOKEN" not in seen
    assert (seen["HF_HUB_OFFLINE"], seen["OMP_NUM_THREADS"]) == ("1", "3")


async def test_a_wrong_token_ends_the_worker(server: FakeServer, start: Start) -> None:
    server.token = "right"
    worker = await start(token="wrong")
    with pytest.raises(AccessDenied, match="token"):
        await worker


async def test_the_right_token_is_sent(server: FakeServer, start: Start) -> None:
    server.token = "right"
    await start(token="right")
    await server.results(*await server.grant(1, act("echo", text="a")))


async def test_an_orphan_leaves(server: FakeServer, start: Start) -> None:
    worker = await start(exit_when_orphaned_s=0.1)
    await server.until(lambda: server.syncs)
    await server.stop()
    with pytest.raises(Unreachable, match="no word from the server"):
        async with asyncio.timeout(PATIENCE_S):
            await worker
    await server.start()


async def test_the_death_of_the_zygote_is_a_crash_and_not_the_end(
    server: FakeServer, start: Start, tmp_path: Path
) -> None:
    await start()
    done, waiting = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    [report] = await server.reported(done)
    status = Path(f"/proc/{pid_of(report.result)}/status").read_text()
    zygote = next(int(line.split()[1]) for line in status.splitlines() if line[:4] == "PPid")
    os.kill(zygote, signal.SIGKILL)
    [crashed] = await server.reported(waiting)
    assert crashed.kind == "crash"
    assert await is_gone(pid_of(report.result))
    await server.results(*await server.grant(2, act("echo", text="b")))


PROGRAM = """
import sys
from pathlib import Path
from flowmesh.worker.agent import run_worker
from flowmesh.worker.settings import WorkerSettings
from worker_support.operators import OPERATORS
server, home = sys.argv[1:]
sys.exit(run_worker(WorkerSettings(server=server, home=Path(home), operators=OPERATORS)))
"""


async def _process(server: FakeServer, tmp_path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PROGRAM, server.address, str(tmp_path / "home")),
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_process_outlives_the_worker(
    server: FakeServer, tmp_path: Path, number: signal.Signals
) -> None:
    worker = await _process(server, tmp_path)
    done, _ = await server.grant(1, act("echo", text="a"), hanging(tmp_path))
    [report] = await server.reported(done)
    worker.send_signal(number)
    _, said = await worker.communicate()
    assert await is_gone(pid_of(report.result))
    if number == signal.SIGTERM:
        assert (worker.returncode, said) == (0, b"")
        assert server.syncs[-1].leaving
        assert server.syncs[-1].running == []


async def test_a_refused_worker_says_why_and_exits_with_2(
    server: FakeServer, tmp_path: Path
) -> None:
    server.token = "right"
    worker = await _process(server, tmp_path)
    _, said = await worker.communicate()
    assert worker.returncode == 2
    assert said.decode().startswith(f"flowmesh worker: {server.address} refused the access token")
