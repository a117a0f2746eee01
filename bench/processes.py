"""Child processes that are measured: their seconds, and an end that surely comes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: That a process gets to end by itself.
GRACE_S = 30.0


class TookTooLong(RuntimeError):
    """Something did not come to its end in time; the message says what, and when it was stopped."""


def family(pid: int) -> list[int]:
    """A process and its descendants that live."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and of children that it has waited for; 0 if it is gone."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    # utime, stime, and the same of children that were waited for.
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the command's name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def busy_s() -> float:
    """Processor seconds of the whole machine since it started, all but idle ones; see proc(5)."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
    return (sum(ticks[:8]) - idle) / _TICKS_PER_S


def end(process: "subprocess.Popen[bytes]", grace_s: float = GRACE_S) -> int:
    """Ask a process to end, and kill it with its descendants if it does not; how many were."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
            return 0
    return kill(process)


def kill(process: "subprocess.Popen[bytes]") -> int:
    """Kill a process that runs, and all its descendants; how many there were."""
    if process.poll() is not None:
        return 0
    doomed = family(process.pid)
    for pid in reversed(doomed):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(doomed)


def run_within(
    command: Sequence[str], limit_s: float, *, capture: bool = False, cwd: Path | None = None
) -> str:
    """Run a command to its end; what it printed if that is captured, else it goes to stderr.

    Raises TookTooLong after `limit_s`, once it and all that it had started are dead, and
    RuntimeError if it fails.
    """
    words = " ".join(Path(word).name if "/" in word else word for word in command)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE if capture else sys.stderr, cwd=cwd)
    try:
        told, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        count = kill(process)
        raise TookTooLong(
            f"`{words}` had not ended after {limit_s:.0f} s; it was killed with all its processes "
            f"({count}). Its last lines are above. Is the machine busy with something else?"
        ) from None
    finally:
        kill(process)
    if process.returncode:
        spent_s = time.monotonic() - began
        raise RuntimeError(f"`{words}` failed after {spent_s:.0f} s, status {process.returncode}")
    return (told or b"").decode()
