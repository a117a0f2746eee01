"""A training on several devices: its processes under `accelerate launch`, seen from their parent.

The store and the monitor stay here; the first process asks for them, see `frames`. Each of the
processes carries the whole attempt out, see `process`.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowmesh.base.digest import Digest
from flowmesh.runtimes.base import Blobs, FailureKind, Monitor, Progress, Stopped, Work
from flowmesh.runtimes.training.attempts import Start
from flowmesh.runtimes.training.checkpoints import is_disk_full
from flowmesh.runtimes.training.frames import DETAIL_LIMIT, Channel, Frame
from flowmesh.runtimes.training.refused import LaunchFailed, Refused
from flowmesh.spec.action import Result

_SETUP_FILE, _PRINTED_FILE = "setup.json", "printed.txt"
_LAUNCHER = "flowmesh.runtimes.training.launcher"
PROCESS = "flowmesh.runtimes.training.process"


def launched(work: Work, blobs: Blobs, start: Start, folder: Path) -> Result:
    """One attempt, in as many processes as the action asks for devices.

    Raises Refused, Stopped, MemoryError, LaunchFailed.
    """
    devices = int(work.action.params["devices"])
    _check_devices(devices)
    (folder / _SETUP_FILE).write_text(json.dumps(_setup(work, blobs, start, folder)))
    processes = Processes(_command(devices, folder / _SETUP_FILE), folder)
    try:
        return served(processes.channel, blobs, work.monitor)
    except EOFError:
        raise processes.ending() from None
    finally:
        processes.close()


class Processes:
    """What `accelerate launch` started; nothing of it outlives `close`, or this process."""

    def __init__(self, command: list[str], folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._printed = folder / _PRINTED_FILE
        # Without the user's own settings of accelerate, which lie below HF_HOME.
        environment = {**os.environ, "HF_HOME": str(folder)}
        with theirs, self._printed.open("wb") as printed:
            self._launcher = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=printed, stderr=printed, env=environment
            )
        self.channel = Channel(ours)

    def close(self) -> None:
        """Kill them; each dies with its parent, and all of them hold the channel."""
        self._launcher.kill()
        self._launcher.wait()
        while self.channel.receive() is not None:
            pass
        self.channel.close()

    def ending(self) -> LaunchFailed:
        """Why they ended without a word, as far as it can be told."""
        status = self._launcher.wait()
        printed = self._printed.read_bytes()[-DETAIL_LIMIT:].decode(errors="replace")
        return LaunchFailed(
            FailureKind.TRANSIENT,
            f"the processes that `accelerate launch` started ended with status {status} before the"
            " training did; they were killed, perhaps for want of memory, or could not start:"
            " what they printed last is in the detail",
            printed,
        )


def served(channel: Channel, blobs: Blobs, monitor: Monitor) -> Result:
    """Answer until the last word.

    Raises Refused, Stopped, MemoryError, LaunchFailed; EOFError if they end without one.
    """
    while (frame := channel.receive()) is not None:
        if "ask" in frame:
            channel.send(_answer(frame, blobs, monitor))
        elif "done" in frame:
            return Result.decode(frame["done"])
        elif "stopped" in frame:
            raise Stopped
        else:
            raise _failure(frame)
    raise EOFError


def _answer(frame: Frame, blobs: Blobs, monitor: Monitor) -> Frame:
    answer: Any = None
    match frame["ask"]:
        case "stopping":
            answer = monitor.stopping
        case "progress":
            monitor.progress(Progress(frame["step"], frame["steps"], frame["facts"]))
        case "saved":
            monitor.saved(Digest.parse(frame["tree"]), frame["step"])
        case name:
            put = {"put": blobs.put, "put_tree": blobs.put_tree}[name]
            try:
                answer = str(put(Path(frame["path"])))
            except Exception as error:  # a checkpoint may be missed; what else failed goes on
                if not is_disk_full(error):
                    raise
                return {"full": str(error)}
    return {"answer": answer}


def _failure(frame: Frame) -> Exception:
    kind, message = FailureKind(frame["failed"]), str(frame["message"])
    match kind:
        case FailureKind.INPUT:
            return Refused(message)
        case FailureKind.MEMORY:
            return MemoryError(message)
        case _:
            return LaunchFailed(kind, message, frame["detail"])


def _check_devices(devices: int) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else devices
    if found < devices:
        raise LaunchFailed(
            FailureKind.TRANSIENT,
            f"the training takes {devices} GPUs, and this worker sees {found}; start workers with"
            " as many `--devices` as they have",
            "",
        )


def _setup(work: Work, blobs: Blobs, start: Start, folder: Path) -> dict[str, Any]:
    """All that a process has to know, with paths in place of the store."""
    found = list(work.action.artifacts())
    trees = {one.digest: str(blobs.tree(one.address)) for one in found if one.kind == "tree"}
    files = {one.digest: str(blobs.path(one.address)) for one in found if one.kind != "tree"}
    return {
        "task": work.task,
        "action": work.action.document(),
        "trees": trees,
        "files": files,
        "checkpoint": str(start.checkpoint) if start.checkpoint else None,
        "story": asdict(start.story),
        "folder": str(folder),
        "interruptions_per_hour": work.monitor.interruptions_per_hour,
    }


def _command(devices: int, setup: Path) -> list[str]:
    # `--multi_gpu` is accelerate's word for several processes; where there is no GPU, our settings
    # have them compute on processors, and they talk by gloo.
    launch = [
        *("--multi_gpu", "--num_processes", str(devices), "--num_machines", "1"),
        *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--module", PROCESS, str(setup)),
    ]
    return [sys.executable, "-m", _LAUNCHER, str(os.getpid()), *launch]
