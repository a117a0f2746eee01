"""One server over HTTP, with its failures turned into ours, and its restarts waited out.

Every request may be sent again: runs carry an idempotency key, blobs are named by their
content, and the rest says the same twice. So whatever is lost on the way is just repeated.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from flowmesh.base.digest import Digest
from flowmesh.base.errors import (
    AccessDenied,
    Conflict,
    FlowMeshError,
    LimitExceeded,
    NotFound,
    Problem,
    QuotaExceeded,
    SpecError,
    StoreError,
    StoreFull,
    Unreachable,
)
from flowmesh.base.version import __version__
from flowmesh.wire import ErrorBody

#: How long a server that has never answered is waited for.
FIRST_CONTACT_S = 10.0
_CONNECT_S = 5.0
_PAUSE_S = (0.05, 2.0)
_CHUNK_BYTES = 1 << 20
#: Answers that a restart or a proxy in front of one gives.
_PASSING = {502, 503, 504}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class NoServer(Unreachable):
    """There is no server and none can be started: to try again would not help."""


class Refused(FlowMeshError):
    """The server said no, for a reason that has no class of its own here."""

    code = "refused"

    def __init__(self, message: str, code: str = "refused") -> None:
        super().__init__(message)
        self.server_code = code


_ERRORS: Mapping[str, type[FlowMeshError]] = {
    AccessDenied.code: AccessDenied,
    Conflict.code: Conflict,
    LimitExceeded.code: LimitExceeded,
    NotFound.code: NotFound,
    QuotaExceeded.code: QuotaExceeded,
    StoreError.code: StoreError,
    StoreFull.code: StoreFull,
    Unreachable.code: Unreachable,
    "blob_missing": NotFound,
    "digest_mismatch": StoreError,
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and the token that it asks for."""

    url: str
    token: str | None = None


def address(url: str, token: str | None) -> Address:
    """Raises SpecError if this is no HTTP address."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        wanted = "expected http://HOST:PORT or https://HOST"
        raise SpecError(Problem(f"{url!r} is not the address of a server; {wanted}"))
    return Address(parts.geturl().rstrip("/"), token)


@dataclass(slots=True)
class Transport:
    """Requests to one server, wherever it is by now.

    Attributes:
        locate: where the server is; asked again after each failure, and may start one.
            Raises NoServer if there is none and none can be started.
        tenant: sent with each request.
        patience_s: how long a server that did answer before is waited for.
        now_s, sleep: the clock, for tests.
    """

    locate: Callable[[], Address]
    tenant: str
    patience_s: float = 60.0
    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _client: httpx.Client | None = None
    _address: Address | None = None
    _seen: bool = field(default=False)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | bytes | Path | None = None,
        params: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
    ) -> bytes:
        """The body of a good answer; a model is sent as JSON, bytes and files as they are.

        Raises Unreachable once patience has run out, and whatever the server's error says.
        """
        for failures in self._tries():
            try:
                return self._once(method, path, body, params, timeout_s)
            except NoServer:
                raise
            except Unreachable as error:
                failures.append(error)
            except httpx.TransportError as error:
                failures.append(self._unreachable(error))
        raise AssertionError("patience ends with an error")

    def download(
        self, path: str, to: Path, *, params: Mapping[str, Any], timeout_s: float = 60.0
    ) -> Digest:
        """Write the body of a good answer to a file, piece by piece; the digest of what came.

        Raises as `request`.
        """
        for failures in self._tries():
            try:
                return self._downloaded(path, to, params, timeout_s)
            except NoServer:
                raise
            except Unreachable as error:
                failures.append(error)
            except httpx.TransportError as error:
                failures.append(self._unreachable(error))
        raise AssertionError("patience ends with an error")

    def lines(self, path: str, timeout_s: float) -> Iterator[str]:
        """The lines of one stream. Raises Unreachable when it breaks off; does not repeat."""
        client, url = self._connection()
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        try:
            with client.stream("GET", url + path, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    raise self._error(response)
                self._seen = True
                yield from response.iter_lines()
        except httpx.TransportError as error:
            self._forget()
            raise self._unreachable(error) from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _tries(self) -> Iterator[list[Unreachable]]:
        """As many tries as patience allows: put what went wrong in the list to get another."""
        first_failure_s, pause_s = float("inf"), _PAUSE_S[0]
        while True:
            failures: list[Unreachable] = []
            yield failures
            if not failures:
                return
            self._forget()
            first_failure_s = min(first_failure_s, self.now_s())
            patience_s = self.patience_s if self._seen else min(FIRST_CONTACT_S, self.patience_s)
            if self.now_s() - first_failure_s + pause_s > patience_s:
                raise failures[-1]
            self.sleep(pause_s)
            pause_s = min(_PAUSE_S[1], 2 * pause_s)

    def _once(
        self,
        method: str,
        path: str,
        body: BaseModel | bytes | Path | None,
        params: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> bytes:
        client, url = self._connection()
        headers: dict[str, str] = {}
        with ExitStack() as stack:
            content: bytes | IO[bytes] | None
            if isinstance(body, BaseModel):
                content = body.model_dump_json().encode()
                headers["content-type"] = "application/json"
            else:
                content = stack.enter_context(body.open("rb")) if isinstance(body, Path) else body
            response = client.request(
                method,
                url + path,
                content=content,
                params=params,
                headers=headers,
                timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            )
        if response.status_code >= 400:
            raise self._error(response)
        self._seen = True
        return response.content

    def _downloaded(
        self, path: str, to: Path, params: Mapping[str, Any], timeout_s: float
    ) -> Digest:
        client, url = self._connection()
        hasher, size_bytes = hashlib.sha256(), 0
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        with client.stream("GET", url + path, params=params, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                raise self._error(response)
            self._seen = True
            try:
                with to.open("wb") as file:
                    for chunk in response.iter_bytes(_CHUNK_BYTES):
                        hasher.update(chunk)
                        size_bytes += len(chunk)
                        file.write(chunk)
            except OSError as error:
                error.filename = error.filename or str(to)  # a full disk does not name it
                raise
        return Digest(hasher.hexdigest(), size_bytes)

    def _connection(self) -> tuple[httpx.Client, str]:
        if self._address is None:
            self._address = self.locate()
        if self._client is None:
            self._client = self._open(self._address)
        return self._client, self._address.url

    def _open(self, at: Address) -> httpx.Client:
        headers = {
            "user-agent": f"flowmesh/{__version__}",
            "x-flowmesh-tenant": self.tenant,
        }
        if at.token:
            headers["authorization"] = f"Bearer {at.token}"
        parts = urlsplit(at.url)
        return httpx.Client(
            headers=headers,
            # To load certificates takes longer than most requests to a server next door.
            verify=parts.scheme == "https",
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def _forget(self) -> None:
        self.close()
        self._address = None

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        where = self._address.url if self._address else "the server"
        cause = str(error) or type(error).__name__
        return Unreachable(
            f"{where} does not answer ({cause}); is it running? Start one with `flowmesh up`"
        )

    def _error(self, response: httpx.Response) -> FlowMeshError:
        where = self._address.url if self._address else "the server"
        status = response.status_code
        try:
            body = ErrorBody.model_validate_json(response.content)
        except ValidationError:
            if status in _PASSING:
                return Unreachable(f"{where} is not ready: it answers with status {status}")
            return Unreachable(f"{where} answers, but not as a FlowMesh server (status {status})")
        if body.code in (SpecError.code, "invalid_request"):
            problems = [one.problem() for one in body.problems] or [Problem(body.detail)]
            return SpecError(*problems)
        if body.code in _ERRORS:
            return _ERRORS[body.code](body.detail)
        return Refused(body.detail, body.code)
