"""The talk between a training's processes and the one that launched them; no training in it."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmesh.runtimes.base import Failed, FailureKind, Progress, Stopped
from flowmesh.runtimes.training.frames import Channel
from flowmesh.runtimes.training.launch import Processes, served
from flowmesh.runtimes.training.process import LaunchedBlobs, LaunchedMonitor, Launcher, last_word
from flowmesh.runtimes.training.refused import LaunchFailed, Refused
from flowmesh.spec.action import Result
from support.blobs import DirBlobs
from support.fabric import until
from support.training import Bench, FullDisk, Watcher

_SAY = "import os, sys; os.write(0, sys.argv[1].encode() + b'\\n'); sys.exit(1)"
_DIES_WITH = """
import os, subprocess, sys, time
import signal
from flowmesh.runtimes.dying import die_with_parent
die_with_parent(int(sys.argv[1]), signal.SIGKILL)
if len(sys.argv) == 3:
    os.write(0, b'{"pid": %d}\\n' % os.getpid())
    time.sleep(600)
subprocess.run([sys.executable, "-c", sys.argv[-1], str(os.getpid()), sys.argv[-1]],
               start_new_session=True)
"""


class Talk:
    """Both ends in one process: `served` answers in a thread what is asked here."""

    def __init__(self, blobs: DirBlobs, monitor: Watcher) -> None:
        ours, theirs = socket.socketpair()
        self._served = Channel(ours)
        self.channel = Channel(theirs)
        self.results: list[Result] = []
        self._thread = threading.Thread(target=self._serve, args=(blobs, monitor))
        self._thread.start()

    def _serve(self, blobs: DirBlobs, monitor: Watcher) -> None:
        try:
            self.results.append(served(self._served, blobs, monitor))
        finally:
            self._served.close()

    def end(self) -> None:
        self.channel.send({"done": Result(rows=[{"a": 1}]).encode()})
        self._thread.join()
        self.channel.close()


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    made = tuple(Channel(end) for end in socket.socketpair())
    yield made[0], made[1]
    for one in made:
        one.close()


def test_lines_come_one_by_one_and_whole() -> None:
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(b'{"ask": "stopping"}\n{"do')
    assert channel.receive() == {"ask": "stopping"}
    left.sendall(b'ne": "x"}\n')
    assert channel.receive() == {"done": "x"}
    left.close()
    assert channel.receive() is None
    channel.close()


def test_a_longest_failure_is_one_write(channels: tuple[Channel, Channel]) -> None:
    words = "\N{MATHEMATICAL BOLD CAPITAL A}\0" * 10_000
    said = last_word(Failed("task", FailureKind.INTERNAL, words, words))
    channels[0].send(said)
    assert channels[1].receive() == said


def test_store_and_monitor_are_asked_for(tmp_path: Path) -> None:
    blobs, watcher = DirBlobs(tmp_path / "store"), Watcher(stop_at=2)
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    talk = Talk(blobs, watcher)
    launcher = Launcher(talk.channel)
    monitor, remote = LaunchedMonitor(launcher, 3.0), LaunchedBlobs(launcher, {"folder": tmp_path})
    assert monitor.interruptions_per_hour == 3.0
    assert not monitor.stopping
    monitor.progress(Progress(1, 4, {"loss": float("nan")}))
    assert monitor.stopping
    tree = remote.put_tree(folder)
    monitor.saved(tree, 1)
    assert watcher.saves == [(1, tree)]
    assert (blobs.tree(tree) / "a.txt").read_text() == "a"
    assert blobs.path(remote.put(b"bytes")).read_bytes() == b"bytes"
    talk.end()
    assert talk.results == [Result(rows=[{"a": 1}])]
    assert [one.step for one in watcher.heard] == [1]


def test_a_full_disk_of_the_launcher_is_an_answer(tmp_path: Path) -> None:
    talk = Talk(FullDisk(DirBlobs(tmp_path / "store"), 1), Watcher())
    remote = LaunchedBlobs(Launcher(talk.channel), {"folder": tmp_path})
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    with pytest.raises(OSError, match="No space left on device"):
        remote.put_tree(folder)
    remote.put_tree(folder)
    talk.end()


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ('{"failed": "input", "message": "bad rows", "detail": ""}', Refused, "bad rows"),
        ('{"failed": "memory", "message": "too much", "detail": ""}', MemoryError, "too much"),
        ('{"failed": "internal", "message": "odd", "detail": "x"}', LaunchFailed, "odd"),
        ('{"stopped": true}', Stopped, "^$"),
    ],
)
def test_last_words(tmp_path: Path, said: str, error: type[Exception], message: str) -> None:
    processes = Processes([sys.executable, "-c", _SAY, said], tmp_path)
    with pytest.raises(error, match=message):
        served(processes.channel, DirBlobs(tmp_path / "store"), Watcher())
    processes.close()


def test_processes_that_do_not_start(tmp_path: Path) -> None:
    processes = Processes([sys.executable, "-c", "raise LookupError('no devices')"], tmp_path)
    assert processes.channel.receive() is None
    failed = processes.ending()
    processes.close()
    assert failed.kind is FailureKind.TRANSIENT
    assert "started ended with status 1 before the training did" in str(failed)
    assert "Traceback" not in str(failed)
    assert "LookupError: no devices" in failed.detail


def test_more_devices_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    bench = Bench(tmp_path)
    outcome = bench.outcome(bench.action("sft", devices=2))
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.TRANSIENT
    assert "the training takes 2 GPUs, and this worker sees 1; start workers" in outcome.message


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell of a parent's end")
def test_nothing_outlives_the_launch(tmp_path: Path) -> None:
    """Not even what left the process group, as the processes of `accelerate launch` do."""
    command = [sys.executable, "-c", _DIES_WITH, str(os.getpid()), "launcher", _DIES_WITH]
    processes = Processes(command, tmp_path)
    told = processes.channel.receive()
    assert told is not None
    assert Path(f"/proc/{told['pid']}").exists()
    processes.close()
    # Its end of the channel is shut a moment before it is gone.
    until(lambda: _is_dead(told["pid"]), "the end of what the launcher started", 10)


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
