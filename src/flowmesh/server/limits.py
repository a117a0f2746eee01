"""How much a request may say: all bodies but those of blobs are read into memory whole."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowmesh.base.errors import LimitExceeded
from flowmesh.server import problems

#: Above the largest report of a worker, and a document with 100,000 files.
BODY_LIMIT_BYTES = 64 << 20


class BodyLimit:
    """Refuses bodies above the limit, before or while they are read; blobs have their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_blob(scope):
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        body = b""
        if told.isdecimal() and int(told) > BODY_LIMIT_BYTES:
            await _refuse(scope, receive, send)
            return
        if told.isdecimal() or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)  # no more than it says is ever read
            return
        # Without a length, the only way to know it is to read on.
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > BODY_LIMIT_BYTES:
                await _refuse(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        await self._app(scope, _replayed(body, receive), send)


def _is_blob(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "PUT" and path.startswith("/v1/blobs/")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What was read before, once; then what comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = LimitExceeded(f"the body of a request has at most {BODY_LIMIT_BYTES} bytes")
    await problems.answer(problems.body_of(error))(scope, receive, send)
