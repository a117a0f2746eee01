"""A process that has imported the heavy libraries once, and forks children that have them.

Started as `python -m flowmesh.worker.zygote FD MODULE...` by `children.Zygote`, which
holds the other end of the socket FD. It is single-threaded: only so is a fork safe.

    worker -> zygote   {"fork": n}, with the child's end of a new socket pair as SCM_RIGHTS
    zygote -> worker   {"ready": true} or {"failed": message}, once, after the imports
                       {"forked": n, "pid": pid}
                       {"exited": pid, "status": s}, s < 0 for a signal
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from flowmesh.runtimes.dying import die_with_parent
from flowmesh.worker import child, frames


class Zygote:
    """Forks on request, and tells how every child ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, self._terminated)

    def serve(self) -> None:
        """Until the worker closes its end. No child outlives this."""
        while True:
            ready, _, _ = select.select([self._channel, self._woken], [], [])
            if self._woken in ready:
                self._woken.recv(4096)
                self._reap()
            if self._channel in ready:
                header, fds, _, _ = socket.recv_fds(self._channel, frames.HEADER.size, 1)
                request = frames.body(self._channel, header) if header else None
                if request is None:
                    return self.kill_all()
                self._fork(request["fork"], fds[0])

    def kill_all(self) -> None:
        for pid in self._children:
            _kill_group(pid)

    def _fork(self, number: int, fd: int) -> None:
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(zygote, fd)
        # Both sides do this, so that it is done before either goes on.
        os.setpgid(pid, pid)
        os.close(fd)
        self._children.add(pid)
        self._say({"forked": number, "pid": pid})

    def _become_child(self, zygote: int, fd: int) -> NoReturn:
        status = 1
        try:
            # What a user's function starts belongs to the group, and is killed with it.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with_parent(zygote, signal.SIGKILL)
            for inherited in (self._channel, self._wake, self._woken):
                inherited.close()
            child.main(socket.socket(fileno=fd))
            status = 0
        except BaseException:  # Nothing above us can say it: what is above is the zygote.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _reap(self) -> None:
        """Report every child that has ended, after the rest of its group was killed."""
        for pid in sorted(self._children):
            # The group is named by the dead leader's pid, which is ours until we wait for it.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            self._children.remove(pid)
            self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, frame: frames.Frame) -> None:
        self._channel.sendall(frames.encode(frame))

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.kill_all()
        os._exit(0)


def _kill_group(leader: int) -> None:
    # Either error says that nobody is left in it; EPERM is how macOS puts it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def main(fd: int, parent: int, preload: Sequence[str]) -> int:
    die_with_parent(parent, signal.SIGTERM)
    channel = socket.socket(fileno=fd)
    try:
        for module in preload:
            importlib.import_module(module)
    except ImportError as error:
        channel.sendall(frames.encode({"failed": f"cannot import {module}: {error}"}))
        return 1
    gc.collect()
    gc.freeze()  # Untouched by the children's collections, these pages stay shared.
    zygote = Zygote(channel)
    try:
        channel.sendall(frames.encode({"ready": True}))
        zygote.serve()
    except (BrokenPipeError, ConnectionResetError):
        zygote.kill_all()  # The worker has gone in the middle of a message.
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
