"""Messages between a worker and its child processes: a length, then a JSON object.

Never a pickle: what a child says is data, whatever code it ran.
"""

import asyncio
import socket
import struct
from typing import Any

import msgspec

#: Four bytes, big-endian: how long the JSON text is.
HEADER = struct.Struct("!I")
#: A longer frame is a bug (or a lie): large things travel as blobs.
FRAME_LIMIT_BYTES = 256 << 20

Frame = dict[str, Any]


class BadFrame(Exception):
    """The other side sent something that is no frame; the channel is of no more use."""


def encode(frame: Frame) -> bytes:
    text = msgspec.json.encode(frame)
    return HEADER.pack(_checked(len(text))) + text


def receive(channel: socket.socket) -> Frame | None:
    """Wait for the next frame on a blocking socket; None when the other side has gone."""
    header = _exactly(channel, HEADER.size)
    return None if header is None else body(channel, header)


def body(channel: socket.socket, header: bytes) -> Frame | None:
    """Wait for the rest of a frame whose header was read already."""
    (size,) = HEADER.unpack(header)
    text = _exactly(channel, _checked(size))
    return None if text is None else _decode(text)


async def read(stream: asyncio.StreamReader) -> Frame | None:
    """The next frame of a stream; None when the other side has gone, in mid-frame or not."""
    try:
        (size,) = HEADER.unpack(await stream.readexactly(HEADER.size))
        return _decode(await stream.readexactly(_checked(size)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _checked(size: int) -> int:
    if size > FRAME_LIMIT_BYTES:
        raise BadFrame(f"a frame of {size} bytes; the limit is {FRAME_LIMIT_BYTES}")
    return size


def _decode(text: bytes) -> Frame:
    try:
        return msgspec.json.decode(text, type=Frame)
    except msgspec.DecodeError as error:
        raise BadFrame(f"not a JSON object: {error}") from error


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
