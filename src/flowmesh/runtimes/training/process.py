"""One process of a training on several devices, started by `accelerate launch`.

    python -m flowmesh.runtimes.training.process SETUP_FILE

It carries the whole attempt out, as its siblings do; the first of them asks its launcher for
what only that has. See `frames` for the words and `launch` for the other side.
"""

import errno
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.runtimes.base import (
    Done,
    Failed,
    FailureKind,
    Outcome,
    Progress,
    Stopped,
    Unwatched,
)
from flowmesh.runtimes.dying import die_with_parent
from flowmesh.runtimes.training import team
from flowmesh.runtimes.training.attempts import Start
from flowmesh.runtimes.training.checkpoints import Story, is_disk_full
from flowmesh.runtimes.training.frames import (
    DETAIL_LIMIT,
    LAUNCHER_VARIABLE,
    MESSAGE_LIMIT,
    Channel,
    Frame,
)
from flowmesh.runtimes.training.isolation import isolated
from flowmesh.runtimes.training.job import Job
from flowmesh.runtimes.training.outcomes import outcome_of
from flowmesh.spec.action import Action, Result


class Launcher:
    """Where the first process asks."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def ask(self, name: str, **more: Any) -> Any:
        """Raises OSError where the launcher's disk is full."""
        self._channel.send({"ask": name, **more})
        told = self._channel.receive()
        if told is None:
            os._exit(1)  # nobody is left to train for
        if "full" in told:
            raise OSError(errno.ENOSPC, told["full"])
        return told["answer"]


class LaunchedBlobs:
    """`runtimes.base.Blobs`: what the action names lies ready, what is put the launcher takes."""

    def __init__(self, launcher: Launcher, setup: Mapping[str, Any]) -> None:
        self._launcher, self._setup = launcher, setup

    def path(self, digest: Digest) -> Path:
        return Path(self._setup["files"][str(digest)])

    def tree(self, digest: Digest) -> Path:
        return Path(self._setup["trees"][str(digest)])

    def put(self, content: bytes | Path) -> Digest:
        if isinstance(content, bytes):
            handle, name = tempfile.mkstemp(dir=self._setup["folder"])
            with open(handle, "wb") as file:
                file.write(content)
            content = Path(name)
        return Digest.parse(self._launcher.ask("put", path=str(content)))

    def put_tree(self, folder: Path) -> Digest:
        return Digest.parse(self._launcher.ask("put_tree", path=str(folder)))

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._setup["folder"]))


class LaunchedMonitor:
    """`runtimes.base.Monitor` of the first process; the others have nothing to say."""

    def __init__(self, launcher: Launcher, interruptions_per_hour: float) -> None:
        self._launcher = launcher
        self._interruptions_per_hour = interruptions_per_hour

    @property
    def interruptions_per_hour(self) -> float:
        return self._interruptions_per_hour

    @property
    def stopping(self) -> bool:
        return bool(self._launcher.ask("stopping"))

    def progress(self, progress: Progress) -> None:
        facts = dict(progress.facts)
        self._launcher.ask("progress", step=progress.step, steps=progress.steps, facts=facts)

    def saved(self, tree: Digest, step: int) -> None:
        self._launcher.ask("saved", tree=str(tree), step=step)


def last_word(outcome: Outcome) -> Frame:
    if isinstance(outcome, Done):
        return {"done": outcome.result.encode()}
    message, detail = outcome.message[:MESSAGE_LIMIT], outcome.detail[-DETAIL_LIMIT:]
    return {"failed": str(outcome.kind), "message": message, "detail": detail}


class _Silent(Exception):
    """This process has done its part, and another tells of it."""


def _attempt(setup: Mapping[str, Any], channel: Channel) -> Result:
    launcher = Launcher(channel)
    monitor = LaunchedMonitor(launcher, setup["interruptions_per_hour"])
    checkpoint = Path(setup["checkpoint"]) if setup["checkpoint"] else None
    made = Job(
        Action.of(setup["action"]),
        monitor if team.is_first() else Unwatched(),
        LaunchedBlobs(launcher, setup),
        Start(checkpoint, Story(**setup["story"])),
        Path(setup["folder"]),
    ).run()
    if made is None:
        raise _Silent
    return made


def main(setup_file: Path) -> int:
    """The process's exit status: anything but 0 ends the others too."""
    die_with_parent(int(os.environ[LAUNCHER_VARIABLE]), signal.SIGKILL)
    channel = Channel(socket.socket(fileno=os.dup(0)))
    # Whatever a training starts does not hold the channel open.
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    setup = json.loads(setup_file.read_bytes())
    try:
        with isolated():
            outcome = outcome_of(setup["task"], lambda: _attempt(setup, channel))
    except _Silent:
        return 0
    except Stopped:
        if team.is_first():
            channel.send({"stopped": True})
        return 0
    except Exception as error:  # the last chance to say it
        if team.lost_another(error):
            return 1
        message = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        detail = "".join(traceback.format_exception(error))
        kind = FailureKind.TRANSIENT if is_disk_full(error) else FailureKind.INTERNAL
        outcome = Failed(setup["task"], kind, message, detail)
    channel.send(last_word(outcome))
    return 0 if isinstance(outcome, Done) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
