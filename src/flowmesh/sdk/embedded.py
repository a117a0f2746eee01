"""The server of a home directory: found if it runs, started if it does not.

It is a process of its own, so that it outlives this one while others still use it, and
leaves by itself once nobody does. Many processes may want one at once: a lock lets one of
them start it, the others find it.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from flowmesh.sdk.transport import Address, NoServer

START_S = 60.0
LEAVE_S = 10.0
_POLL_S = 0.03
_HEALTH_S = 5.0
#: Servers that this process has started; kept, as a child must have a parent that knows it.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class Embedded:
    """The server of `home`, with so many workers where it has to be started."""

    home: Path
    workers: int = 1

    def locate(self) -> Address:
        """Where it is; started if need be. Raises NoServer if it does not come up."""
        if (found := self._running()) is not None:
            return found
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._ready(self._living() or self._start())

    def serves(self, url: str) -> bool:
        """Whether the server at `url` is the one of this home."""
        found = self._noted()
        return found is not None and found.url.rstrip("/") == url.rstrip("/")

    def is_attended(self) -> bool:
        """Whether its server leaves without clients: all do but those of `flowmesh up`."""
        try:
            return json.loads((self.home / "server.json").read_bytes())["attended"] is not False
        except (OSError, ValueError, KeyError, TypeError):
            return True  # there is none: the one that is started will be

    def _living(self) -> Address | None:
        """The server that is there; one that is on its way out is let go first."""
        deadline = time.monotonic() + LEAVE_S
        while (noted := self._noted()) is not None:
            if _health(noted) != "gone":
                return noted
            if time.monotonic() > deadline:
                break  # its process id is another's by now
            time.sleep(_POLL_S)
        return None

    def _noted(self) -> Address | None:
        """What `server.json` says, if its process lives."""
        for server in _started:
            server.poll()  # a child that has died looks alive until its parent has asked
        try:
            noted = json.loads((self.home / "server.json").read_bytes())
            with suppress(PermissionError):  # another user's process: its health will tell
                os.kill(int(noted["pid"]), 0)
            return Address(str(noted["url"]), noted.get("token"))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None  # there is none, or it died without a word

    def _running(self) -> Address | None:
        found = self._noted()
        return found if found is not None and _health(found) == "ready" else None

    def _start(self) -> Address:
        """Start one, and wait until it says where it is."""
        logs = self.home / "logs"
        logs.mkdir(exist_ok=True)
        log_file = logs / "server.log"
        command = [sys.executable, "-m", "flowmesh", "up", "--attended", "--home", str(self.home)]
        command += ["--port", "0", "--workers", str(self.workers)]
        (self.home / "server.json").unlink(missing_ok=True)  # of one that died without a word
        with log_file.open("ab") as log:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C here is not meant for it
            )
        _started.append(server)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if (found := self._noted()) is not None:
                return found
            if (status := server.poll()) is not None:
                raise NoServer(
                    f"the server of {self.home} ended as it started (status {status}): "
                    f"{_last_line(log_file)}; see {log_file}"
                )
            time.sleep(_POLL_S)
        server.terminate()
        server.wait()
        raise NoServer(f"the server of {self.home} did not come up; see {log_file}")

    def _ready(self, at: Address) -> Address:
        """The server, once it takes work."""
        deadline = time.monotonic() + START_S
        while (health := _health(at)) != "ready":
            if health == "gone" or time.monotonic() > deadline:
                raise NoServer(f"{at.url} went away as it started; see {self.home / 'logs'}")
            time.sleep(_POLL_S)
        return at


def _health(at: Address) -> Literal["ready", "busy", "gone"]:
    try:
        answer = httpx.get(f"{at.url}/healthz", timeout=_HEALTH_S, verify=False, trust_env=False)
    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
        return "gone"
    except httpx.TransportError:
        return "busy"
    return "ready" if answer.status_code == 200 else "busy"


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
