"""The server of a home directory: one for all who want it, and a new one when it dies."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowmesh.sdk import embedded
from flowmesh.sdk.embedded import Embedded
from flowmesh.sdk.transport import NoServer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Whatever is started there is ended."""
    yield tmp_path
    for server in embedded._started:
        server.terminate()
    for server in embedded._started:
        server.wait(30)
    embedded._started.clear()


def test_racing_clients_get_one_server_and_a_killed_one_is_replaced(home: Path) -> None:
    one = Embedded(home, workers=0)
    with ThreadPoolExecutor(3) as threads:
        found = [future.result() for future in [threads.submit(one.locate) for _ in range(3)]]
    assert len(set(found)) == 1
    assert len(embedded._started) == 1
    assert one.serves(found[0].url)
    assert not one.serves("http://127.0.0.1:1")

    first = json.loads((home / "server.json").read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    assert one.locate().url.startswith("http://127.0.0.1:")
    assert json.loads((home / "server.json").read_text())["pid"] != first


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    (home / "store").write_text("in the way")
    with pytest.raises(NoServer, match=r"ended as it started .*server\.log"):
        Embedded(home, workers=0).locate()


@pytest.mark.parametrize("noted", ["", "{}", '{"url": "http://x", "pid": "y"}', "[1]"])
def test_a_note_that_cannot_be_read_is_no_server(home: Path, noted: str) -> None:
    (home / "server.json").write_text(noted)
    assert not Embedded(home).serves("http://x")
