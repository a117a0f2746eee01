"""The server of a home directory: one for all who want it, and a new one when it dies."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from flowmesh.base.errors import StoreInUse
from flowmesh.sdk import embedded
from flowmesh.sdk.client import Client
from flowmesh.sdk.embedded import Embedded
from flowmesh.sdk.transport import NoServer
from flowmesh.server.app import ServerSettings, serve
from flowmesh.stores.sqlite import Database


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
    with pytest.raises(StoreInUse, match=rf"process {first}, the embedded .* leaves 3 s after"):
        serve(ServerSettings(home, port=0))
    os.kill(first, signal.SIGKILL)
    assert one.locate().url.startswith("http://127.0.0.1:")
    assert json.loads((home / "server.json").read_text())["pid"] != first


def test_a_request_that_outlasts_the_server_leaves_no_traceback(home: Path) -> None:
    at = urlsplit(Embedded(home, workers=0).locate().url)
    assert at.port is not None
    with socket.create_connection(("127.0.0.1", at.port)) as stuck:
        head = f"PUT /v1/blobs/{'0' * 64} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
        stuck.sendall(head.encode() + b"part")
        httpx.get(f"{at.geturl()}/healthz", trust_env=False)  # it has read what came before
        (server,) = embedded._started
        server.terminate()
        assert server.wait(30) == 0
    log = (home / "logs" / "server.log").read_text()
    assert "Cancel 1 running task(s)" in log
    assert "Traceback" not in log


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    (home / "store").write_text("in the way")
    with pytest.raises(NoServer, match=r"ended as it started .*server\.log"):
        Embedded(home, workers=0).locate()


def test_only_a_server_that_a_client_starts_leaves_without_clients(tmp_path: Path) -> None:
    client = Client(home=tmp_path)
    assert client.is_embedded, "it would be started"
    (tmp_path / "server.json").write_text('{"attended": false}')
    assert not client.is_embedded
    (tmp_path / "server.json").write_text('{"attended": true}')
    assert client.is_embedded
    assert not Client("http://127.0.0.1:1", home=tmp_path).is_embedded


def test_who_holds_a_home_is_told_only_where_it_is_known(tmp_path: Path) -> None:
    owner = Database(tmp_path / "journal.db")
    pid = os.getpid()
    try:
        for noted in ("{", "{}", f'{{"pid": {pid}, "attended": false}}', '{"pid": 1}'):
            (tmp_path / "server.json").write_text(noted)
            with pytest.raises(StoreInUse, match=f"in use by process {pid}; stop that one first"):
                serve(ServerSettings(tmp_path, port=0))
    finally:
        owner.close()


@pytest.mark.parametrize("noted", ["", "{}", '{"url": "http://x", "pid": "y"}', "[1]"])
def test_a_note_that_cannot_be_read_is_no_server(home: Path, noted: str) -> None:
    (home / "server.json").write_text(noted)
    assert not Embedded(home).serves("http://x")
