"""How a worker is set up; the command line fills this in, nothing here reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowmesh.operators.catalog import catalog
from flowmesh.spec.operator import Operator


def devices_found() -> int:
    """NVIDIA GPUs of this machine; 1 where there is none, as its processors count for one."""
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def most_memory_bytes() -> int:
    """What a worker that has a machine to itself may take: most of its memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker process.

    Attributes:
        server: `http://host:port`.
        home: this worker's own directory, made if missing: its cache lies there.
        token: what the server asks for, if it does.
        name: start of the worker's id, which is new with each start; the host's name if empty.
        store: directory of the server's blob store, where both are on one machine: blobs
            are then used in place, and nothing is copied or sent.
        cache_bytes: limit of the cache under `home`.
        threads: of each child process.
        memory_bytes: limit of all children's memory: idle ones are ended before another
            would exceed it. 0 is no limit.
        devices: GPUs that a batch may use, or 1 for the processors of a machine without.
        usd_per_hour: what the machine costs.
        slots: batches at one time.
        runtimes: offer these only; all that this machine can run if None.
        exit_when_orphaned_s: leave after so long without a word from the server; never if None.
        stop_grace_s: how long a batch that can be gone on with may take to leave a checkpoint,
            when the worker is told to stop.
        interruptions_per_hour: how often this worker is expected to vanish; long tasks leave
            checkpoints the more often.
        place: region or site of the machine; what moves between places may cost.
        instance: name of the rented machine that it runs on, if it is one.
        slowdown: everything it executes takes this many times as long, by idling: for tests that
            need unlike machines.
        poll_ms: how long the server may hold its answer.
        operators: what this worker can be asked for.
    """

    server: str
    home: Path
    token: str | None = None
    name: str = ""
    store: Path | None = None
    cache_bytes: int = 50 << 30
    threads: int = 1
    memory_bytes: int = 0
    devices: int = field(default_factory=devices_found)
    usd_per_hour: float = 0.0
    slots: int = 1
    runtimes: tuple[str, ...] | None = None
    exit_when_orphaned_s: float | None = None
    stop_grace_s: float = 20.0
    interruptions_per_hour: float = 0.01
    place: str = ""
    instance: str = ""
    slowdown: float = 1.0
    poll_ms: int = 10_000
    operators: Mapping[str, Operator] = field(default_factory=catalog)
