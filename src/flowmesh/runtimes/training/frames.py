"""The lines between a training's processes on several devices and the one that launched them.

    process -> launcher   {"ask": name, ...}: of the first process only, which waits for the answer:
                            "stopping"; "progress" (step, steps, facts); "put" (path); "put_tree"
                            (path); "saved" (tree, step)
                          {"done": result}, {"stopped": true} or
                          {"failed": kind, "message", "detail"}: the last word, for all; any of
                            them may fail
    launcher -> process   {"answer": value}, or {"full": message}: the disk was

One JSON text a line. The channel is the standard input of the processes: of all that they
inherit, the only thing that `accelerate launch` passes on.
"""

import json
import socket
from typing import Any

Frame = dict[str, Any]

#: One write of less than this is never mixed with another process's.
LINE_LIMIT_BYTES = 32_000
#: Longest message and detail of a failure that fit into a line, in characters of up to 6 bytes.
MESSAGE_LIMIT, DETAIL_LIMIT = 1_000, 4_000
#: Tells the processes who has started them.
LAUNCHER_VARIABLE = "FLOWMESH_LAUNCHER"


class Channel:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._read = bytearray()

    def send(self, frame: Frame) -> None:
        """Raises OSError if nobody listens any more."""
        line = json.dumps(frame, ensure_ascii=False).encode(errors="replace") + b"\n"
        assert len(line) <= LINE_LIMIT_BYTES, f"{len(line)} bytes: {line[:200]!r}"
        self._end.sendall(line)

    def receive(self) -> Frame | None:
        """The next one; None once all of the other end's processes have gone."""
        while b"\n" not in self._read:
            try:
                data = self._end.recv(1 << 16)
            except ConnectionResetError:  # they went without reading what they were told
                data = b""
            if not data:
                return None
            self._read += data
        line, _, rest = self._read.partition(b"\n")
        self._read = bytearray(rest)
        frame = json.loads(line)
        assert isinstance(frame, dict), frame
        return frame

    def close(self) -> None:
        self._end.close()
