"""The worker's calls to its server, with their failures turned into ours."""

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from flowmesh.base.digest import Digest
from flowmesh.base.errors import (
    AccessDenied,
    BlobMissing,
    DigestMismatch,
    FlowMeshError,
    Problem,
    SpecError,
    StoreError,
    StoreFull,
    Unreachable,
)
from flowmesh.base.version import __version__
from flowmesh.wire import ErrorBody, SyncAnswer, SyncRequest

CHUNK_BYTES = 1 << 20
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
#: Answers that are no verdict: the same request may succeed in a moment.
_PASSING = {408, 425, 429}


class Refused(FlowMeshError):
    """The server understood and said no; to ask again would not help."""

    code = "refused"
    http_status = 400
    exit_code = 2


def backoff_s(attempt: int) -> float:
    """How long to wait before try number `attempt` + 1: up to 2 s, never in step with others."""
    return min(2.0, 0.05 * float(1 << min(attempt, 10))) * random.uniform(0.5, 1.0)


class Transport:
    """One server, as seen by a worker. Any call may raise Unreachable or AccessDenied."""

    def __init__(self, server: str, token: str | None, worker: str) -> None:
        """Raises SpecError if `server` is no HTTP address."""
        address = urlsplit(server)
        if address.scheme not in ("http", "https") or not address.hostname:
            wanted = "expected http://HOST:PORT or https://HOST"
            raise SpecError(Problem(f"{server!r} is not the address of a server; {wanted}"))
        headers = {"user-agent": f"flowmesh-worker/{__version__}", "x-flowmesh-worker": worker}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self.server = server.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self.server,
            headers=headers,
            timeout=httpx.Timeout(60.0, connect=5.0),
            # A proxy named in the environment does not know our loopback.
            trust_env=address.hostname not in _LOOPBACK,
        )

    async def sync(self, request: SyncRequest) -> SyncAnswer:
        """Report and be told. Raises Unreachable for all that may pass, Refused for the rest."""
        patience_s = request.wait_ms / 1000 + 10
        try:
            response = await self._client.post(
                "/v1/sync",
                content=request.model_dump_json(),
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(patience_s, connect=5.0),
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_server_error:
            said = f"{self.server} answered {response.status_code}: {_problem(response)[1]}"
            raise Unreachable(said)
        self._check(response)
        try:
            return SyncAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise Unreachable(f"{self.server} gave no FlowMesh answer: {error}") from error

    async def download(self, digest: Digest, to: Path) -> None:
        """Write a blob to a new file. Raises BlobMissing, DigestMismatch, StoreError."""
        hasher, size_bytes = hashlib.sha256(), 0
        try:
            async with self._client.stream(
                "GET", f"/v1/blobs/{digest.hash}", params={"size": digest.size_bytes}
            ) as response:
                if response.status_code == 404:
                    raise BlobMissing(digest, self.server)
                if response.is_error:
                    await response.aread()
                self._check(response)
                with to.open("xb") as file:
                    async for chunk in response.aiter_bytes(CHUNK_BYTES):
                        hasher.update(chunk)
                        size_bytes += len(chunk)
                        if size_bytes > digest.size_bytes:
                            break
                        file.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            raise StoreError(f"cannot write {to}: {error.strerror or error}") from error
        got = Digest(hasher.hexdigest(), size_bytes)
        if got != digest:
            raise DigestMismatch(want=digest, got=got, source=self.server)

    async def upload(self, digest: Digest, source: Path) -> None:
        """Send a blob; it is durable on the server when this returns.

        Raises Refused, and StoreError where either side has trouble with its disk.
        """
        try:
            with source.open("rb") as file:
                response = await self._client.put(
                    f"/v1/blobs/{digest.hash}",
                    content=_pieces(file),
                    headers={
                        "content-type": "application/octet-stream",
                        "content-length": str(digest.size_bytes),
                    },
                )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except OSError as error:
            raise StoreError(f"cannot read {source}: {error.strerror or error}") from error
        self._check(response)

    async def close(self) -> None:
        await self._client.aclose()

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.server} does not answer: {error or type(error).__name__}")

    def _check(self, response: httpx.Response) -> None:
        fault = verdict(response, self.server)
        if fault is not None:
            raise fault


def verdict(response: httpx.Response, server: str) -> FlowMeshError | None:
    """What the status of an answer means: only Unreachable is worth another try."""
    if response.is_success:
        return None
    code, detail = _problem(response)
    said = f"{server} answered {response.status_code}: {detail}"
    if response.status_code in (401, 403):
        wanted = "start the worker with the token of this server"
        return AccessDenied(f"{server} refused the access token; {wanted}")
    if code in (StoreError.code, StoreFull.code, DigestMismatch.code):
        return StoreError(said)
    if response.is_server_error or response.status_code in _PASSING:
        return Unreachable(said)
    return Refused(said)


def _problem(response: httpx.Response) -> tuple[str, str]:
    """Code and words of an error answer; something between us may answer in its own way."""
    try:
        body = ErrorBody.model_validate_json(response.content)
    except ValidationError:
        return "", response.text[:200] or response.reason_phrase
    return body.code, body.detail


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece
