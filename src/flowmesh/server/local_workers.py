"""Worker processes beside the server: `workers` slots, each held by one live process.

A worker outlives a server that was killed: it holds its slot's lock, goes on with its batch
and finds the next server, which starts only what is missing.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: What a local worker has for the checkpoints of long tasks when the server stops.
STOP_GRACE_S = 20.0
#: Then it has left, or is killed.
STOP_S = STOP_GRACE_S + 5.0
#: A slot's worker is started this often at most, lest one that cannot run spins.
START_GAP_S = 1.0
#: How long a local worker looks for a server before it gives up.
ORPHANED_S = 20


def _name(slot: int) -> str:
    return f"local-{slot}"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    url: str
    token: str | None
    usd_per_hour: float
    memory_bytes: int


class LocalWorkers:
    def __init__(self, home: Path, count: int, options: WorkerOptions) -> None:
        self._home = home
        self._count = count
        self._options = options
        self._ours: dict[int, subprocess.Popen[bytes]] = {}
        self._started_s: dict[int, float] = {}

    def ended(self) -> list[str]:
        """Of our workers that have ended since the last call: how their ids start."""
        dead = [slot for slot, process in self._ours.items() if process.poll() is not None]
        return [f"{_name(slot)}-{self._ours.pop(slot).pid}-" for slot in dead]

    def keep(self) -> None:
        """Start a worker for every slot whose lock nobody holds."""
        now_s = time.monotonic()
        for slot in range(self._count):
            if slot in self._ours or now_s - self._started_s.get(slot, -START_GAP_S) < START_GAP_S:
                continue
            lock = self._take(slot)
            if lock is not None:
                with lock:
                    self._started_s[slot] = now_s
                    self._ours[slot] = self._start(slot, lock)

    def _take(self, slot: int) -> IO[bytes] | None:
        folder = self._home / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"slot-{slot}.lock").open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def _start(self, slot: int, lock: IO[bytes]) -> subprocess.Popen[bytes]:
        """The child inherits the lock and keeps it for as long as it lives."""
        options = self._options
        command = [sys.executable, "-m", "flowmesh", "worker", "--server", options.url]
        command += ["--name", _name(slot), "--home", str(self._home / "workers" / str(slot))]
        command += ["--store", str(self._home / "store")]
        command += ["--usd-per-hour", str(options.usd_per_hour)]
        command += ["--exit-when-orphaned", str(ORPHANED_S)]
        command += ["--memory", str(options.memory_bytes)]
        command += ["--stop-grace", str(STOP_GRACE_S)]
        environment = {**os.environ}
        if options.token is not None:
            environment["FLOWMESH_TOKEN"] = options.token
        logs = self._home / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"worker-{slot}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
            )

    async def stop(self) -> None:
        """End the workers that we have started; adopted ones leave when no server comes back."""
        for slot in range(self._count):
            process = self._ours.get(slot)
            if process is not None and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + STOP_S
        for process in self._ours.values():
            while process.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)
            if process.poll() is None:
                process.kill()
                process.wait()
