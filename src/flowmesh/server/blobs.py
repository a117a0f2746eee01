"""Blobs over HTTP: find missing, put, get; and the care of the store.

Knowing a digest is no permission: a tenant reads what it put itself and what its own runs
made or used (`access.py`). A worker carries out everybody's tasks and reads everything.
"""

import asyncio
import errno
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from flowmesh.base.digest import Digest
from flowmesh.base.errors import (
    BlobMissing,
    DigestMismatch,
    LimitExceeded,
    Problem,
    QuotaExceeded,
    SpecError,
    StoreError,
    StoreFull,
)
from flowmesh.base.ids import WorkerId
from flowmesh.server.auth import Tenant, TheDriver, WorkerName
from flowmesh.server.driver import Driver
from flowmesh.server.live import live_blobs
from flowmesh.stores.gc import collect, verify
from flowmesh.wire import Digests, StoreReport

routes = APIRouter(prefix="/v1", tags=["store"])

BLOB_LIMIT_BYTES = 64 << 30
#: Of a body that is refused, read and let go.
PASSED_BYTES = 64 << 20
#: Of a digest that is asked for; its text has at most 18 decimals.
Size = Annotated[int | None, Query(ge=0, lt=10**18)]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HEX = frozenset("0123456789abcdef")


@routes.post("/blobs/missing")
async def missing(body: Digests, tenant: Tenant, driver: TheDriver) -> Digests:
    """Those of `digests` that the tenant must put before it may use them."""
    asked = [_digest(text) for text in body.digests]

    def work() -> list[Digest]:
        there = driver.store.has(asked)
        may_use = driver.access.may_use
        return [one for one in asked if one not in there or not may_use(tenant, one)]

    return Digests(digests=[str(digest) for digest in await asyncio.to_thread(work)])


@routes.put("/blobs/{hex_hash}")
async def put(
    hex_hash: str, request: Request, tenant: Tenant, driver: TheDriver, worker: WorkerName = ""
) -> dict[str, str]:
    """Keep the body's bytes. Its SHA-256 must be `hex_hash`: who has the bytes may read them."""
    check_hash(hex_hash)
    if is_worker(driver, worker):
        return {"digest": str(await _keep(request, driver, hex_hash, None))}
    told = request.headers.get("content-length", "")
    told_bytes = int(told) if told.isdecimal() else 0
    try:
        room = await driver.uploads.room(tenant, hex_hash, told_bytes)
    except QuotaExceeded:
        await _read_on(request)
        raise
    with driver.uploads.coming(tenant, told_bytes):
        got = await _keep(request, driver, hex_hash, room)
        await driver.access.grant(tenant, got)
    return {"digest": str(got)}


async def _read_on(request: Request) -> None:
    """Let a refused body pass: a client that still sends may not hear the answer."""
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > PASSED_BYTES:
            break


async def _keep(request: Request, driver: Driver, hex_hash: str, room: int | None) -> Digest:
    """Put the body into the store; it has at most `room` bytes."""
    try:
        with tempfile.TemporaryDirectory(prefix="flowmesh-put-") as folder:
            path = Path(folder) / "body"
            got = await _receive(request, path, room)
            if got.hash != hex_hash:
                expected = Digest(hex_hash, got.size_bytes)
                raise DigestMismatch(want=expected, got=got, source="the request's body")
            await asyncio.to_thread(driver.store.put, path, got)
    except OSError as error:
        raise _no_place(error) from error
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL:
            raise _no_place(error.__cause__) from error
        raise
    return got


def _no_place(error: OSError) -> StoreError:
    """What a client is told where the server cannot write."""
    if error.errno in _FULL:
        return StoreFull(
            f"the server has no room for this blob ({error.strerror}); make some with "
            "`flowmesh store gc`, or give its disk more"
        )
    return StoreError(f"the server cannot keep this blob: {error.strerror or error}")


async def _receive(request: Request, path: Path, room: int | None) -> Digest:
    """Write the body to `path`. Raises LimitExceeded, QuotaExceeded."""
    hashed, size_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            size_bytes += len(chunk)
            if size_bytes > BLOB_LIMIT_BYTES:
                raise LimitExceeded(f"a blob has at most {BLOB_LIMIT_BYTES} bytes")
            if room is not None and size_bytes > room:
                raise QuotaExceeded(
                    f"the blob is larger than the {room:,} bytes that its tenant may still store"
                )
            hashed.update(chunk)
            await asyncio.to_thread(file.write, chunk)
    return Digest(hashed.hexdigest(), size_bytes)


@routes.get("/blobs/{hex_hash}", response_class=StreamingResponse)
async def get(
    hex_hash: str,
    tenant: Tenant,
    driver: TheDriver,
    worker: WorkerName = "",
    size: Size = None,
) -> StreamingResponse:
    """The bytes of a blob; `size` is known from its digest, or else looked up."""
    check_hash(hex_hash)
    may_read = driver.access.may_read
    if not is_worker(driver, worker) and not await asyncio.to_thread(may_read, tenant, hex_hash):
        raise BlobMissing(f"sha256:{hex_hash}", f"the store of tenant {tenant}")
    digest = await asyncio.to_thread(sized, driver, hex_hash, size)
    headers = {"content-length": str(digest.size_bytes)}
    chunks: Iterator[bytes] = await asyncio.to_thread(driver.store.stream, digest)
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def is_worker(driver: Driver, name: str) -> bool:
    """Whether it is a worker that has joined who asks: workers serve all tenants."""
    return WorkerId(name) in driver.plane.state.workers


@routes.post("/store/verify")
async def verify_store(driver: TheDriver) -> StoreReport:
    """Read every blob; damaged ones are set aside and listed."""
    report = await asyncio.to_thread(verify, driver.store)
    return StoreReport(
        blobs=report.blobs, size_bytes=report.size_bytes, bad=[str(digest) for digest in report.bad]
    )


@routes.post("/store/gc")
async def collect_garbage(
    driver: TheDriver,
    dry_run: bool = False,
    grace_s: Annotated[int, Query(ge=300)] = 3600,
) -> StoreReport:
    """Remove what no run, result or model needs and nobody touched for `grace_s` seconds."""

    # What comes after this moment is too young to be collected, so the order matters.
    now_ms = time.time_ns() // 1_000_000
    packs, checkpoints = driver.checkpoints.held()
    gone: set[Digest] = set()

    def work() -> StoreReport:
        live, trees = live_blobs(driver.database, packs, checkpoints)
        report = collect(
            driver.store,
            live=live,
            trees=trees,
            grace_ms=grace_s * 1000,
            now_ms=now_ms,
            dry_run=dry_run,
        )
        gone.update(set(report.removed) - driver.store.has(report.removed))
        return StoreReport(
            blobs=report.blobs,
            size_bytes=report.size_bytes,
            removed=[str(digest) for digest in report.removed],
            removed_bytes=report.removed_bytes,
            dry_run=dry_run,
        )

    made = await asyncio.to_thread(work)
    if not dry_run:
        await driver.access.collected(sorted(gone))
    return made


def sized(driver: Driver, hex_hash: str, size: int | None) -> Digest:
    """A hash without its length is no digest; a local store finds the length."""
    if size is not None:
        return Digest(hex_hash, size)
    for info in driver.store.list():
        if info.digest.hash == hex_hash:
            return info.digest
    raise BlobMissing(f"sha256:{hex_hash}", driver.store.name)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise SpecError(Problem(str(error))) from None


def check_hash(hex_hash: str) -> None:
    """Raises SpecError."""
    if len(hex_hash) != 64 or not _HEX.issuperset(hex_hash):
        raise SpecError(Problem(f"{hex_hash[:80]!r} is not a SHA-256 in hex"))
