"""The items of an expanded step, as a blob: JSON lines `[row, sample, task or null, message]`.

They stay out of the core and the tables: a step may have a million of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from flowmesh.spec.expand import Expansion, Item, Refused


@dataclass(frozen=True, slots=True)
class Items:
    """Items that became tasks, and those whose template failed on their row."""

    items: tuple[Item, ...]
    refused: tuple[Refused, ...]


_Line = tuple[int, int, str | None, str]


def encode(expansion: Expansion) -> bytes:
    lines: list[_Line] = [(item.row, item.sample, item.task, "") for item in expansion.items]
    lines += [(row, sample, None, message) for row, sample, message in expansion.failed]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in sorted(lines, key=_place))


def decode(blob: bytes) -> Items:
    lines = list(_lines(blob))
    return Items(
        tuple(Item(row, sample, task) for row, sample, task, _ in lines if task is not None),
        tuple(Refused(row, sample, why) for row, sample, task, why in lines if task is None),
    )


def _lines(blob: bytes) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    return (decoder.decode(line) for line in blob.splitlines())


def _place(line: _Line) -> tuple[int, int]:
    return line[0], line[1]


def lines_of(values: Iterable[object]) -> bytes:
    """Any values as JSON lines."""
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)
