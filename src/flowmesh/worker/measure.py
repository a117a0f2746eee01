"""What this machine's processors, memory and disk can do: a second or two of trying.

Run as `python -m flowmesh.worker.measure THREADS FOLDER`, in a process of its own, whose
environment limits each matrix product to one thread. Prints a JSON object.

Processor time is what counts, so that a machine which is busy just now seems no slower.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from flowmesh.runtimes.training.energy import Meter

T = TypeVar("T")

_MATMUL_S = 0.4
_COPY_S = 0.3
_IDLE_S = 0.2
_DISK_S = 0.3
_SIDE = 768
#: Beyond what a processor's caches hold, for all threads together.
_COPIED_BYTES = 128 << 20
_FILE_BYTES = 128 << 20
_PIECE_BYTES = 4 << 20


def flops_per_s(threads: int) -> float:
    """Of products of float32 matrices, one in each thread, at best."""
    one = np.random.default_rng(0).random((_SIDE, _SIDE), dtype=np.float32)
    made = [one @ one for _ in range(threads)]
    best_s = _best_s(lambda out: np.matmul(one, one, out=out), made, _MATMUL_S)
    return 2.0 * _SIDE**3 * threads / best_s


def bandwidth_bytes_per_s(threads: int) -> float:
    """Read and written by copies in so many threads, at best."""
    count = _COPIED_BYTES // threads // 8  # of float64
    pairs = [(np.ones(count), np.empty(count)) for _ in range(threads)]
    best_s = _best_s(lambda pair: np.copyto(pair[1], pair[0]), pairs, _COPY_S)
    return 2.0 * 8 * count * threads / best_s


def _best_s(work: Callable[[T], object], parts: Sequence[T], limit_s: float) -> float:
    """Do the parts in as many threads, again and again; the least processor seconds of each."""
    took_s: list[float] = []
    end = time.perf_counter() + limit_s
    with ThreadPoolExecutor(len(parts)) as pool:
        while len(took_s) < 3 or time.perf_counter() < end:
            began = time.process_time()
            list(pool.map(work, parts))
            took_s.append((time.process_time() - began) / len(parts))
    return max(min(took_s), 1e-9)


def load_bytes_per_s(folder: Path) -> float:
    """Of a file that was written before and is not in memory, where the system heeds that."""
    piece = os.urandom(_PIECE_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        size, end = 0, time.perf_counter() + _DISK_S
        while size < _FILE_BYTES and time.perf_counter() < end:
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        room, read = bytearray(_PIECE_BYTES), 0
        began = time.perf_counter()
        while read < size and time.perf_counter() - began < 2 * _DISK_S:
            read += file.readinto(room)
        return read / (time.perf_counter() - began)


def main(threads: int, folder: Path) -> dict[str, float]:
    idle = Meter()
    time.sleep(_IDLE_S if idle.joules() is not None else 0)
    idle_joules = idle.joules()
    busy, began = Meter(), time.perf_counter()
    found = {"flops_per_s": flops_per_s(threads)}
    busy_joules, busy_s = busy.joules(), time.perf_counter() - began
    found["bandwidth_bytes_per_s"] = bandwidth_bytes_per_s(threads)
    found["load_bytes_per_s"] = load_bytes_per_s(folder)
    if idle_joules is not None and busy_joules is not None:
        # The machine's idle power is shared by all that may work on it at a time.
        idle_w = idle_joules / _IDLE_S
        share_w = idle_w * min(1.0, threads / (os.cpu_count() or 1))
        found |= {"idle_w": share_w, "busy_w": share_w + max(0.0, busy_joules / busy_s - idle_w)}
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
