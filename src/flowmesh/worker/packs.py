"""Action documents out of packs: blobs of one document a line, up to a whole step's.

A step of many rows comes as many leases, each of a few lines of one large pack. So where
the lines start is remembered, and each lease reads its own lines only.
"""

import mmap
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from flowmesh.base.digest import Digest

#: Packs whose lines are remembered; 8 bytes a line.
REMEMBERED = 16


class Packs:
    def __init__(self) -> None:
        self._starts: OrderedDict[Digest, array[int]] = OrderedDict()

    def lines(self, digest: Digest, path: Path, numbers: Iterable[int]) -> dict[int, bytes]:
        """Those of the lines, counted from 0, that the pack in the file `path` has."""
        starts = self._starts.get(digest)
        if starts is None:
            starts = self._starts[digest] = _line_starts(path)
            if len(self._starts) > REMEMBERED:
                self._starts.popitem(last=False)
        found = {}
        with path.open("rb") as file:
            for number in numbers:
                if 0 <= number < len(starts):
                    file.seek(starts[number])
                    found[number] = file.readline()
        return found


def _line_starts(path: Path) -> "array[int]":
    starts: array[int] = array("Q")
    if path.stat().st_size == 0:
        return starts  # which mmap refuses
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = 0
        while start < len(text):
            starts.append(start)
            end = text.find(b"\n", start)
            start = len(text) if end < 0 else end + 1
    return starts
