"""What goes to the terminal: answers to standard output, all else to standard error.

Text from elsewhere (a model's words, a user's file) cannot steer the terminal: control
characters are shown, not sent. Colour only where a terminal reads it and nobody objects.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def emit(document: Any) -> None:
    """The one JSON document of a command with `--json`."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    # Half a pair of surrogates, as in the name of a file, becomes an escape of JSON's.
    click.echo(text.encode(errors="backslashreplace").decode())


def say(text: str = "") -> None:
    """To whoever asked."""
    click.echo(plain(text), color=False)


def note(text: str) -> None:
    """About what is going on; never mixed with the answer."""
    click.echo(plain(text), err=True, color=False)


def heading(text: str) -> None:
    """A line that stands out, where that can be."""
    click.echo(click.style(plain(text), bold=True), color=is_colourful(sys.stdout))


def plain(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def is_colourful(stream: TextIO) -> bool:
    return is_live(stream) and not os.environ.get("NO_COLOR")


def is_live(stream: TextIO) -> bool:
    """Whether a terminal that understands cursor movements reads this."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns; numbers to the right. Without rows, the headers alone."""
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [
        max([len(header), *(len(row[n]) for row in texts)]) for n, header in enumerate(headers)
    ]
    right = [
        any(isinstance(row[n], int | float) for row in rows) and not isinstance(header, bool)
        for n, header in enumerate(headers)
    ]
    lines = [
        "  ".join(
            cell.rjust(widths[n]) if right[n] else cell.ljust(widths[n])
            for n, cell in enumerate(row)
        ).rstrip()
        for row in [list(headers), *texts]
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "" if value is None else plain(str(value)).replace("\n", " ").replace("\t", " ")


def size(size_bytes: int) -> str:
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
