"""The small parts of a worker: frames, offers, settings that cannot be, shares of time."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.errors import (
    AccessDenied,
    FlowMeshError,
    SpecError,
    StoreError,
    Unreachable,
)
from flowmesh.operators.catalog import catalog
from flowmesh.wire import ErrorBody
from flowmesh.worker import agent, frames
from flowmesh.worker.delivery import shares
from flowmesh.worker.offers import offered, preloads
from flowmesh.worker.packs import REMEMBERED, Packs
from flowmesh.worker.process import memory_bytes
from flowmesh.worker.settings import WorkerSettings
from flowmesh.worker.transport import Refused, Transport, backoff_s, verdict
from worker_support.operators import OPERATORS


def test_a_frame_comes_back_as_it_was() -> None:
    frame = {"text": "ü\n", "n": [1, None, {"deep": True}]}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frames.encode(frame) * 2)
        assert [frames.receive(theirs), frames.receive(theirs)] == [frame, frame]


def test_the_end_of_a_channel_is_no_frame_wherever_it_comes() -> None:
    whole = frames.encode({"a": 1})
    for length in range(len(whole)):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(whole[:length])
            assert frames.receive(theirs) is None


@pytest.mark.parametrize("bad", [b"\xff\xff\xff\xff", b"\0\0\0\1[", b"\0\0\0\2[]"])
async def test_what_is_no_frame_is_refused(bad: bytes) -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(bad)
    with pytest.raises(frames.BadFrame):
        await frames.read(stream)


def test_a_runtime_is_offered_if_its_libraries_are_here() -> None:
    assert offered(OPERATORS, None) == ("broken", "light")
    assert offered(OPERATORS, ["light"]) == ("light",)
    with pytest.raises(SpecError, match="did you mean 'light'"):
        offered(OPERATORS, ["lihgt"])
    with pytest.raises(SpecError, match="'absent' needs no_such_package"):
        offered(OPERATORS, ["absent"])


def test_offers_import_nothing() -> None:
    before = set(sys.modules)
    offered(catalog(), None)
    heavy = {"torch", "transformers", "duckdb"}
    assert not heavy & (set(sys.modules) - before)


def test_operators_of_one_runtime_share_what_is_imported_beforehand() -> None:
    shared = preloads(catalog().values())["transformers"]
    for operator in catalog().values():
        if operator.runtime == "transformers":
            assert set(operator.preload) <= set(shared)


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_lines_of_a_pack_are_found_by_number(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "pack"
    path.write_bytes(b"zero\n\n" + b"two" + end)
    packs = Packs()
    for _ in range(2):  # the second time by memory
        lines = packs.lines(Digest.of(path.read_bytes()), path, [2, 0, 1, 3, -1])
        assert lines == {0: b"zero\n", 1: b"\n", 2: b"two" + end}


def test_a_pack_may_be_empty_and_many_are_not_remembered_for_ever(tmp_path: Path) -> None:
    packs = Packs()
    for number in range(2 * REMEMBERED):
        path = tmp_path / str(number)
        path.write_text(str(number) if number else "")
        expected = {0: str(number).encode()} if number else {}
        assert packs.lines(Digest.of(path.read_bytes()), path, [0]) == expected
    assert len(packs._starts) == REMEMBERED


def test_a_worker_is_light() -> None:
    heavy = "{'torch', 'transformers', 'duckdb', 'pandas'}"
    code = f"import flowmesh.worker.agent, sys; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_waits_grow_and_are_bounded() -> None:
    assert 0 < backoff_s(0) <= 0.05
    assert 1.0 <= backoff_s(20) <= 2.0


def test_memory_is_measured_and_nothing_is_held_by_the_dead() -> None:
    assert memory_bytes(os.getpid()) > 1 << 20
    assert memory_bytes(2**22 + 1) == 0


def test_shares_of_time_add_up() -> None:
    assert shares([3, 0, 1], 8.0) == [6.0, 0.0, 2.0]
    assert shares([0, 0], 8.0) == [4.0, 4.0]
    assert shares([], 8.0) == []


@pytest.mark.parametrize("server", ["localhost:80", "ftp://there", "http://", ""])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(SpecError, match="http://HOST:PORT"):
        Transport(server, None, "w")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "access_denied", AccessDenied),
        (403, "", AccessDenied),
        (413, "limit_exceeded", Refused),
        (422, "", Refused),
        (429, "", Unreachable),
        (500, "internal", Unreachable),
        (502, "", Unreachable),
        (502, "digest_mismatch", StoreError),
    ],
)
def test_a_status_says_whether_to_ask_again(
    status: int, code: str, error: type[FlowMeshError]
) -> None:
    body = ErrorBody(title="t", status=status, code=code, detail="d").model_dump_json()
    answer = httpx.Response(status, text=body if code else "<html>")
    assert type(verdict(answer, "http://there")) is error
    assert verdict(httpx.Response(200), "http://there") is None


async def test_a_home_is_for_one_worker(tmp_path: Path) -> None:
    settings = WorkerSettings(server="http://127.0.0.1:9", home=tmp_path / "home")
    stop = asyncio.Event()
    stop.set()
    first = asyncio.create_task(agent.work(settings, stop))
    second = asyncio.create_task(agent.work(settings, stop))
    with pytest.raises(SpecError, match="in use by another worker"):
        await second
    await first


async def test_a_home_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = WorkerSettings(server="http://127.0.0.1:9", home=tmp_path / "file" / "home")
    with pytest.raises(SpecError, match=r"cannot use .*home: Not a directory"):
        await agent.work(settings, asyncio.Event())


def test_an_engine_is_warm_for_all_operators_that_share_it() -> None:
    from flowmesh.operators.catalog import catalog
    from flowmesh.worker.offers import warm_keys

    found = warm_keys(("generate@2/transformers/float32/sha256:a/1", "dedupe@1"), catalog())
    assert "choose@2/transformers/float32/sha256:a/1" in found and "transform@1" in found
    assert "transform@1/transformers/float32/sha256:a/1" not in found
    assert "choose@2/transformers/float32/sha256:b/1" not in found
