"""A server and its workers as processes, to be killed and started again."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flowmesh.sdk.client import Client

PATIENCE_S = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something that must come; an error says for what."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}"
        time.sleep(0.02)


class Fabric:
    """`flowmesh up` with `workers` local workers, in `home`, on one port for its life.

    `options` are further ones of `flowmesh up`.
    """

    def __init__(self, home: Path, *, workers: int = 2, options: Sequence[str] = ()) -> None:
        self.home = home
        self.workers = workers
        self.options = options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []
        self._joined: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "flowmesh", "up", "--home", str(self.home)]
        command += ["--port", str(self.port), "--workers", str(self.workers), *self.options]
        with (self.home / "up.log").open("ab") as log:
            server = self.server = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: self._noted() == server.pid or server.poll() is not None, "the server")
        assert server.poll() is None, (self.home / "up.log").read_text()[-2000:]

    def _noted(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            pid: int = json.loads((self.home / "server.json").read_text())["pid"]
            return pid
        return None

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def restart_server(self) -> None:
        self.kill_server()
        self.start()

    def worker_pids(self) -> list[int]:
        """Of the local workers: processes whose command line names their home."""
        homes = {str(self.home / "workers" / str(slot)) for slot in range(self.workers)}
        return [pid for pid in _processes() if homes & set(_words(pid))]

    @property
    def joined(self) -> list[subprocess.Popen[bytes]]:
        return list(self._joined)

    def join_workers(self, count: int, *options: str) -> None:
        """`flowmesh worker`, as from another machine: blobs travel over HTTP."""
        for number in range(len(self._joined), len(self._joined) + count):
            home = self.home / f"joined-{number}"
            command = [sys.executable, "-m", "flowmesh", "worker", "--server", self.url]
            command += options
            with (self.home / f"joined-{number}.log").open("ab") as log:
                self._joined.append(
                    subprocess.Popen([*command, "--home", str(home)], stdout=log, stderr=log)
                )

    def kill_worker(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def client(self, tenant: str = "default") -> Client:
        client = Client(self.url, tenant=tenant, home=self.home, patience_s=PATIENCE_S)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for worker in self._joined:
            worker.terminate()
            worker.wait(20)
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(20)
        for pid in self.worker_pids():
            self.kill_worker(pid)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return []


@contextlib.contextmanager
def fabric(home: Path, *, workers: int = 2, options: Sequence[str] = ()) -> Iterator[Fabric]:
    running = Fabric(home, workers=workers, options=options)
    try:
        running.start()
        yield running
    finally:
        running.stop()
