"""Carries out `http`: requests side by side, each with its own tries and time limit.

What may pass is tried again with exponential back-off, or after as long as the server
asks for. A request that acts on the world carries its task's id as Idempotency-Key, the
same at every try, so that a server which heeds it acts once.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from threading import Thread
from typing import Any

import httpx
import msgspec

from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.spec.action import Result

#: Requests in flight for one batch.
CONCURRENCY = 8
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_LONGEST_RETRY_AFTER_S = 120.0
_REDIRECTS = 5
#: A name in ASCII (IDNA) or an IP address.
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
_TRY_AGAIN = frozenset((408, 429, *range(500, 600)))

Sleep = Callable[[float], Awaitable[None]]


class Refused(Exception):
    """The row is at fault, or the answer is final; the message is for the user."""


class TryAgain(Exception):
    """It may work later. `after_s` is how long the server asked to wait, if it did."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


def open_http(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "HttpEngine":
    """An `OpenEngine`."""
    return HttpEngine()


class HttpEngine:
    """Runs the requests of a batch on an event loop in a thread, so that each outcome is
    handed on as it comes. `sleep` waits between tries, in seconds."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        found: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        thread = Thread(target=self._thread, args=(batch, found.put), daemon=True)
        thread.start()
        for _ in batch:
            outcome = found.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
        thread.join()

    def _thread(
        self, batch: Sequence[Work], tell: Callable[[Outcome | BaseException], None]
    ) -> None:
        try:
            asyncio.run(self._all(batch, tell))
        except BaseException as error:  # crosses to the thread that called, and is raised there
            tell(error)

    async def _all(self, batch: Sequence[Work], tell: Callable[[Outcome], None]) -> None:
        places = asyncio.Semaphore(CONCURRENCY)
        hooks: Mapping[str, list[Callable[..., Any]]] = {"response": [_check_redirect]}
        async with (
            httpx.AsyncClient(
                timeout=None,  # one limit over the whole try, see `_once`
                follow_redirects=True,
                max_redirects=_REDIRECTS,
                event_hooks=hooks,
            ) as client,
            asyncio.TaskGroup() as group,
        ):

            async def one(work: Work) -> None:
                async with places:
                    tell(await self._outcome(client, work))

            for work in batch:
                group.create_task(one(work))

    async def _outcome(self, client: httpx.AsyncClient, work: Work) -> Outcome:
        params = work.action.params
        where = f"{params['method']} {params['url']}"
        for attempt in range(params["retries"] + 1):
            try:
                answer = await _once(client, work)
            except Refused as error:
                return Failed(work.task, FailureKind.INPUT, f"{where}: {error}")
            except TryAgain as error:
                last = error
            else:
                return Done(work.task, Result(rows=[answer]))
            if attempt < params["retries"]:
                await self._sleep(_wait_s(work.task, attempt, last.after_s))
        tries = "1 try" if params["retries"] == 0 else f"{params['retries'] + 1} tries"
        return Failed(work.task, FailureKind.TRANSIENT, f"{where}: {last} (after {tries})")


async def _once(client: httpx.AsyncClient, work: Work) -> dict[str, Any]:
    """One try. Raises Refused or TryAgain."""
    params = work.action.params
    try:
        request = _request(client, work)
        async with asyncio.timeout(params["timeout_s"]):
            response = await client.send(request, stream=True)
            try:
                body = await _body(response, params["max_bytes"])
            finally:
                await response.aclose()
    except TimeoutError:
        raise TryAgain(f"no whole answer within {params['timeout_s']:g} s") from None
    except (
        httpx.InvalidURL,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        UnicodeError,  # of a host name that has no IDNA spelling
    ) as error:
        raise Refused(f"can not be sent: {error}") from None
    except (httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise Refused(str(error)) from None
    except (httpx.TransportError, OSError) as error:
        raise TryAgain(f"no answer: {error or type(error).__name__}") from None
    status = response.status_code
    if status in _TRY_AGAIN:
        raise TryAgain(f"status {status}", _retry_after_s(response))
    if not response.is_success:
        raise Refused(f"status {status}: {_start(body)}" if body else f"status {status}")
    return {"status": status, "body": _read(response, body, params)}


def _request(client: httpx.AsyncClient, work: Work) -> httpx.Request:
    """The request of a task. Raises Refused for what can not be one."""
    params = work.action.params
    try:
        url = httpx.URL(params["url"].strip())
        headers = httpx.Headers(params["headers"])
    except UnicodeEncodeError:
        raise Refused("a header holds characters beyond ASCII; encode them") from None
    _check_address(url)
    if params["act"]:
        headers.setdefault("Idempotency-Key", work.task)
    body = params["body"]
    if body is None:
        return client.build_request(params["method"], url, headers=headers)
    if isinstance(body, str):
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return client.build_request(params["method"], url, headers=headers, content=body)
    return client.build_request(params["method"], url, headers=headers, json=body)


def _check_address(url: httpx.URL) -> None:
    """Raises Refused for what would break the connection code, or leave the web."""
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.raw_host):
        raise Refused("the address must start with http:// or https:// and name a host")
    if url.port is not None and not 0 < url.port < 65536:
        raise Refused(f"port {url.port} is not within 1 to 65535")


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    """The body, as far as it is worth reading: of a refusal, its start is enough."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > max_bytes:
            if response.is_success:
                raise Refused(f"the answer is longer than `max_bytes`: {max_bytes:,}")
            break
    return bytes(body)


def _read(response: httpx.Response, body: bytes, params: Mapping[str, Any]) -> Any:
    if params["expect"] == "text":
        try:
            return body.decode(response.charset_encoding or "utf-8", errors="replace")
        except LookupError:
            raise Refused(f"unknown charset {response.charset_encoding!r}") from None
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(
            f"status {response.status_code}, but the body is not JSON ({error}): {_start(body)};"
            " `expect: text` takes any"
        ) from None


async def _check_redirect(response: httpx.Response) -> None:
    """Stay on the web, and never go from an encrypted connection to an open one."""
    target = response.next_request
    if target is None:
        return
    if (response.request.url.scheme, target.url.scheme) == ("https", "http"):
        raise Refused(f"redirected to {target.url}, which is not encrypted")
    try:
        _check_address(target.url)
    except Refused as error:
        raise Refused(f"redirected to {target.url}: {error}") from None


def _wait_s(task: str, attempt: int, asked_s: float | None) -> float:
    """How long to wait after try number `attempt`, the first being 0.

    The jitter keeps tasks from coming back all at once, and is fixed for each.
    """
    if asked_s is not None:
        return min(asked_s, _LONGEST_RETRY_AFTER_S)
    jitter = random.Random(f"{task}/{attempt}").uniform(0.5, 1.0)
    return float(min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S) * jitter)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date; None if absent or unreadable."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _start(body: bytes) -> str:
    text = " ".join(body[:400].decode(errors="replace").split())
    return text if len(text) <= 120 else text[:119] + "…"
