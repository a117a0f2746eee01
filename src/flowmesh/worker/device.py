"""What this machine can do, for the server's first guesses: a data sheet, or a short trial.

The kind of the machine is known at once. Its figures are measured when the worker has been
idle for a while, and kept in its home (or beside the server's store, for all workers of one
machine) until its processors or the worker's threads are others.
"""

import asyncio
import fcntl
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from flowmesh.core import datasheet
from flowmesh.core.fleet import Device
from flowmesh.worker.settings import WorkerSettings, most_memory_bytes

log = logging.getLogger("flowmesh.worker")

#: Raise it when the trial changes.
VERSION = 1
#: A trial that takes longer is given up.
LIMIT_S = 60.0
_SMI_S = 10.0
#: Blobs of a store on the same machine are used in place: to fetch them takes no time.
_IN_PLACE_BYTES_PER_S = 1e12
_NOISE = re.compile(r"\((?:R|TM|C)\)|\bCPU\b|\bProcessor\b|\bwith .*|@.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Stored:
    """What was measured, and of which machine."""

    version: int
    machine: str
    device: Device


class Gauge:
    """The device of a worker: `device` gets better as more is known.

    Attributes:
        is_measured: whether there is nothing left to try.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        shared = settings.store.parent if settings.store is not None else None
        self._folder = shared if shared is not None and os.access(shared, os.W_OK) else None
        self._gpu = False
        self._base = Device()
        self._trial = Device()
        self.device = Device()
        self.is_measured = False

    def look(self) -> None:
        """What can be told at once, and what was measured before. Waits for `nvidia-smi`."""
        settings = self._settings
        found = _gpus(settings.devices)
        self._gpu = found is not None
        self._base = found or _processors(settings)
        self._take(self._stored())

    async def measure(self, environment: Mapping[str, str]) -> None:
        """Try it, unless another worker of this home has. A trial that fails leaves what is."""
        folder = self._home
        with (folder / "device.lock").open("a") as lock:
            while not _locked(lock.fileno()):
                await asyncio.sleep(0.2)
            stored = await asyncio.to_thread(self._stored)
            if stored is None:
                stored = await self._tried(folder, environment)
            self._take(stored)
        self.is_measured = True

    def joules(self, seconds: float, cpu_s: float) -> float:
        """Modelled energy: in between idle and busy power, by how busy the processors were.

        A GPU counts as busy all the time. 0 where nothing is known of the machine's power.
        """
        device = self.device
        busy_s = seconds if self._gpu else min(seconds, cpu_s / self._settings.threads)
        return device.idle_w * seconds + (device.busy_w - device.idle_w) * busy_s

    @property
    def _home(self) -> Path:
        return self._folder or self._settings.home

    @property
    def _machine(self) -> str:
        return f"{self._base.kind}, {_processor()}, {self._settings.threads} threads"

    def _stored(self) -> Stored | None:
        try:
            found = msgspec.json.decode((self._home / "device.json").read_bytes(), type=Stored)
        except (OSError, msgspec.MsgspecError):
            return None
        return found if (found.version, found.machine) == (VERSION, self._machine) else None

    async def _tried(self, folder: Path, environment: Mapping[str, str]) -> Stored | None:
        command = (sys.executable, "-m", "flowmesh.worker.measure")
        process = await asyncio.create_subprocess_exec(
            *(*command, str(_threads(self._settings)), str(folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                out, err = await process.communicate()
            stored = Stored(VERSION, self._machine, msgspec.json.decode(out, type=Device))
        except (TimeoutError, msgspec.MsgspecError):
            said = "it took too long" if process.returncode is None else err.decode()[-300:]
            log.warning("the machine could not be measured: %s", said)
            return None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        self._keep(folder, stored)
        return stored

    def _keep(self, folder: Path, stored: Stored) -> None:
        draft = folder / f"device.json.{os.getpid()}"
        try:
            draft.write_text(json.dumps(asdict(stored), indent=1))
            draft.replace(folder / "device.json")
        except OSError as error:
            log.warning("what was measured is not kept: %s", error)

    def _take(self, stored: Stored | None) -> None:
        if stored is not None:
            self._trial, self.is_measured = stored.device, True
        self.device = self._complete()

    def _complete(self) -> Device:
        base, trial, slowdown = self._base, self._trial, self._settings.slowdown
        load = trial.load_bytes_per_s
        if not self._gpu:
            base = replace(
                base,
                flops_per_s=(trial.flops_per_s or base.flops_per_s) / slowdown,
                bandwidth_bytes_per_s=(trial.bandwidth_bytes_per_s or base.bandwidth_bytes_per_s)
                / slowdown,
                idle_w=trial.idle_w or base.idle_w,
                busy_w=trial.busy_w or base.busy_w,
            )
        return replace(
            base,
            kind=base.kind if slowdown == 1 else f"{base.kind}-slow{slowdown:g}",
            load_bytes_per_s=load / slowdown,
            fetch_bytes_per_s=0.0 if self._settings.store is None else _IN_PLACE_BYTES_PER_S,
        )


def _threads(settings: WorkerSettings) -> int:
    """Threads of a batch that can run at one time."""
    return min(settings.threads, os.cpu_count() or 1)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _processors(settings: WorkerSettings) -> Device:
    """A machine without a GPU: its kind, its memory, and a modelled power of its threads."""
    threads = _threads(settings)
    name = _NOISE.sub(" ", _processor())
    slug = "-".join(re.findall(r"[a-z0-9.]+", name.lower())) or "cpu"
    return Device(
        kind=f"{slug}-{settings.threads}t",
        flops_per_s=datasheet.THREAD_FLOPS_PER_S * threads,
        bandwidth_bytes_per_s=datasheet.THREAD_BYTES_PER_S * threads,
        memory_bytes=settings.memory_bytes or most_memory_bytes(),
        idle_w=datasheet.THREAD_IDLE_W * threads,
        busy_w=datasheet.THREAD_BUSY_W * threads,
    )


def _processor() -> str:
    """What the system calls the processor. Of one without a name of its own, its model number."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    except OSError:
        pass
    called = facts.get("model name", "")
    if re.search(r"\d", called):
        return called
    numbers = (facts.get("cpu family", ""), facts.get("model", ""), facts.get("CPU part", ""))
    return " ".join([called or platform.machine(), *filter(None, numbers)])


def _gpus(count: int) -> Device | None:
    """The GPUs that a batch may use, by `nvidia-smi` and their data sheet; None without."""
    asked = "--query-gpu=name,memory.total,power.limit,power.draw"
    try:
        said = subprocess.run(
            ["nvidia-smi", asked, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SMI_S,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line]
    if not lines or len(lines[0]) < 4:
        return None
    name, memory, limit, draw = lines[0][:4]
    slug = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
    known = datasheet.gpu(name) or Device(kind=slug)
    one = replace(
        known,
        memory_bytes=int(_number(memory) * 2**20) or known.memory_bytes,
        busy_w=_number(limit) or known.busy_w,
        idle_w=min(_number(draw), _number(limit) or known.busy_w),
    )
    return datasheet.several(one, min(count, len(lines)))


def _number(text: str) -> float:
    """0 for what the driver does not tell: `[N/A]`."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
