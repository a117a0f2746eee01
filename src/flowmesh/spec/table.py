"""Tables as JSON lines: one object a row, each line ended, key order kept, no NaN."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from flowmesh.base.errors import Problem, SpecError

#: Deepest nesting of lists and objects in a row.
DEPTH_LIMIT = 64

_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table's bytes: equal rows give equal bytes.

    Raises ValueError for NaN, lone surrogates and rows that are nested too deep to be read
    again, TypeError for what JSON cannot hold.
    """
    return "".join(f"{_line(row)}\n" for row in rows).encode()


def _line(row: Mapping[str, Any]) -> str:
    text = _encode(row)
    _check_depth(row, text.count("[") + text.count("{"))
    return text


def _check_depth(row: Any, brackets: int) -> None:
    if brackets > DEPTH_LIMIT and _depth(row) > DEPTH_LIMIT:
        raise ValueError(f"nested deeper than the limit of {DEPTH_LIMIT} levels")


def decode_rows(data: bytes, name: str = "") -> list[dict[str, Any]]:
    """Rows of JSON lines; blank lines are passed over.

    Raises SpecError that names the line of `name` which is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = _row(line)
        except (ValueError, RecursionError) as error:
            raise SpecError(_bad_line(error, name, number)) from None
        if not isinstance(row, dict):
            message = f"line {number} is {_kind(row)}; expected an object with column names"
            raise SpecError(Problem(message, name, number))
        rows.append(row)
    return rows


def columns_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Every column of a table, in the order in which they are first seen."""
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row))
    return tuple(seen)


def check_rows(
    rows: Sequence[Mapping[str, Any]], name: str = "", first_line: int | None = None
) -> None:
    """Refuse an empty table, and a column that holds values of more than one type.

    Whole numbers and fractions are one type, and null is of any. `first_line` is the
    line of the first row in the file `name`, where each row has a line of its own.

    Raises SpecError with one problem for each bad column.
    """
    if not rows:
        raise SpecError(Problem("the table has no rows", name))
    first: dict[str, tuple[str, int]] = {}
    bad: dict[str, Problem] = {}
    for number, row in enumerate(rows):
        for column, value in row.items():
            if value is None:
                continue
            kind = _kind(value)
            before, row_before = first.setdefault(column, (kind, number))
            if kind != before and column not in bad:
                message = (
                    f"column {column!r} mixes types: row {number + 1} holds {kind}, "
                    f"row {row_before + 1} {before}"
                )
                line = 0 if first_line is None else first_line + number
                bad[column] = Problem(message, name, line)
    if bad:
        raise SpecError(*bad.values())


def _row(line: bytes) -> Any:
    text = line.decode()  # here, for json would take UTF-16 and guess
    row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=no_key_twice)
    _check_depth(row, line.count(b"[") + line.count(b"{"))
    if b"\\ud" in line.lower():
        _encode(row).encode()  # half of a pair of surrogates cannot be written out again
    return row


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its entries, for `json.loads`. Raises ValueError for a key given twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise ValueError(f"key {twice!r} is written twice")
    return made


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _bad_line(error: Exception, name: str, number: int) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        message = f"{error.msg[:1].lower()}{error.msg[1:]}"
        return Problem(f"line {number} is not JSON: {message}", name, number, error.colno)
    cause = "not UTF-8" if isinstance(error, UnicodeError) else str(error)
    if isinstance(error, RecursionError):
        cause = "nested too deep"
    elif "integer string conversion" in cause:
        cause = "a number has thousands of digits"
    return Problem(f"line {number} is not JSON: {cause}", name, number)
