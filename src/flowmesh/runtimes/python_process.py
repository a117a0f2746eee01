"""A child process with a user's function in it, seen from its parent."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("python_child.py")
#: Longest answer to one call; more rows than that are a table's business.
ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
#: How much of what a call printed is kept, from its end.
_PRINTED_LIMIT_BYTES = 4096
#: Passed on: without them some installations do not find their libraries.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class TookTooLong(Exception):
    """The process was killed at the time limit of a call."""


class ProcessEnded(Exception):
    """The process ended instead of answering; the message says how."""


class FunctionProcess:
    """One process, in a session of its own, that answers one call at a time.

    It sees no variables of the worker's environment: they may hold its tokens.
    """

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            env=_environment(home),
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        self._selector = selectors.DefaultSelector()
        os.set_blocking(self._stdin.fileno(), False)
        for pipe in (self._stdout, self._stderr):
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)
        self._printed = b""

    @property
    def printed(self) -> str:
        """The end of what was printed during the last call."""
        return self._printed.decode(errors="replace")

    def ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """One call. After either error the process is of no more use: close it.

        Raises TookTooLong or ProcessEnded.
        """
        deadline = time.monotonic() + timeout_s
        self._printed = b""
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        answer = bytearray()
        while not answer.endswith(b"\n"):
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TookTooLong
            if len(answer) > ANSWER_LIMIT_BYTES:
                raise ProcessEnded(f"returned over {ANSWER_LIMIT_BYTES:,} bytes")
            for key, _ in ready:
                if key.fileobj is self._stdin:
                    unsent = self._write(unsent)
                else:
                    self._read(key.fd, answer)
        return self._parsed(answer)

    def _write(self, unsent: memoryview) -> memoryview:
        """Send as much of a request as the pipe takes; what is left of it."""
        try:
            sent = os.write(self._stdin.fileno(), unsent)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            raise ProcessEnded(self._ending()) from None
        if sent == len(unsent):
            self._selector.unregister(self._stdin)
        return unsent[sent:]

    def close(self) -> None:
        """Kill whatever is left of the process and all that it started."""
        self._kill()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):  # unsent bytes of a request that nobody will read
                pipe.close()

    def _kill(self) -> int:
        """End the whole group; the status of its leader, who may have ended by itself."""
        if self._process.returncode is None:
            # Before the wait: only until then is the leader's pid sure to name its group.
            with suppress(ProcessLookupError, PermissionError):  # macOS: of a dead leader
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _read(self, fd: int, answer: bytearray) -> None:
        data = os.read(fd, 1 << 16)
        if fd == self._stderr:
            self._printed = (self._printed + data)[-_PRINTED_LIMIT_BYTES:]
            if not data:
                self._selector.unregister(fd)
        elif data:
            answer += data
        else:
            raise ProcessEnded(self._ending())

    def _ending(self) -> str:
        # A process closes its pipes after its status is settled, so the kill does not change it.
        status = self._kill()
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended its process with status {status}"

    def _parsed(self, answer: bytearray) -> dict[str, Any]:
        try:
            parsed = json.loads(answer)
        except ValueError:
            raise ProcessEnded("wrote to FlowMesh's own channel") from None
        assert isinstance(parsed, dict), parsed
        return parsed


def _environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        # Equal calls, equal results: the order of a set must not vary.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # What a call printed has come before its answer does.
        "PYTHONUNBUFFERED": "1",
        # A worker runs several functions at once, each within its memory limit.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
