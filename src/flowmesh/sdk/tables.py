"""Tables on this machine to rows: JSON lines, JSON, CSV, Parquet, and rows in memory.

A column of a CSV file becomes true or false, numbers or text, decided over the whole file,
and an empty cell null; dates stay as they are written. Cells are parted by commas, or by
semicolons where the first line has those and no comma. Of a Parquet file or a data frame,
times become ISO text and decimals numbers; what a data frame calls missing is null.
"""

import csv
import datetime
import decimal
import glob
import io
import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.table import check_rows, decode_rows, encode_rows, no_key_twice

Rows = list[dict[str, Any]]

#: What all cells of a CSV column must look like to be more than text. Codes with leading
#: zeros are text; so are numbers beyond what a double holds.
_CELL_TYPES: Sequence[tuple[re.Pattern[str], Callable[[str], Any]]] = (
    (re.compile(r"true|false", re.IGNORECASE), lambda cell: cell.lower() == "true"),
    (re.compile(r"-?(?:0|[1-9][0-9]{0,17})"), int),
    (re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?"), float),
)


class NotPlain(ValueError):
    """A value that has no place in a table; the message says what it is."""


def read_table(path: Path, shown: str) -> Rows:
    """The rows of a file, at least one; `shown` is what messages call it.

    Raises SpecError: no such file, an unknown kind of it, not one row, a column that mixes
    types, or bytes that are not what the file's name says; with the line where there is one.
    """
    check_file(path, shown)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        message = f"{path.name!r} does not end as a table does{nearest(path.suffix, _READERS)}"
        raise SpecError(Problem(message, shown))
    return reader(path, shown)


def check_file(path: Path, shown: str) -> None:
    """Raises SpecError unless `path` is a file that can be read and holds something."""
    try:
        if path.is_dir():
            raise SpecError(Problem("is a directory; expected a file", shown))
        if path.exists() and not path.is_file():  # to open a pipe is to wait for its writer
            raise SpecError(Problem("is a device or a pipe; expected a file", shown))
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise SpecError(Problem(f"there is no such file{_beside(path)}", shown)) from None
    except OSError as error:
        raise SpecError(Problem(f"cannot be read: {error.strerror}", shown)) from None
    if empty:
        raise SpecError(Problem("the file is empty", shown))


def rows_in_memory(table: Any, shown: str) -> Rows:
    """The rows of a list of dicts or a data frame. Raises SpecError for anything else."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        rows = table.to_dict("records")
        missing: Callable[[Any], bool] = _is_missing
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes | Mapping):
        rows, missing = list(table), _never
    else:
        kind = type(table).__name__
        message = f"expected a path, a list of dicts or a data frame, found {kind}"
        raise SpecError(Problem(message, shown))
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            message = f"row {number + 1} is of type {type(row).__name__}; expected a dict"
            raise SpecError(Problem(message, shown))
    found = _plain_rows(rows, shown, missing)
    check_rows(found, shown)
    return found


def encoded(rows: Rows, shown: str) -> bytes:
    """The bytes of a table. Raises SpecError, with the row, for what JSON cannot hold."""
    try:
        return encode_rows(rows)
    except (ValueError, TypeError):
        for number, row in enumerate(rows):
            try:
                encode_rows([row])
            except (ValueError, TypeError) as error:
                message = f"row {number + 1} cannot be kept as JSON: {error}"
                raise SpecError(Problem(message, shown)) from None
        raise


def _json_lines(path: Path, shown: str) -> Rows:
    data = path.read_bytes()
    rows = decode_rows(data.removeprefix(b"\xef\xbb\xbf"), shown)
    blank = any(not line.strip() for line in data.rstrip().split(b"\n"))
    check_rows(rows, shown, None if blank else 1)
    return rows


def _json(path: Path, shown: str) -> Rows:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = json.loads(text, parse_constant=refuse, object_pairs_hook=no_key_twice)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise SpecError(Problem(message, shown, error.lineno, error.colno)) from None
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise SpecError(Problem(message, shown)) from None
    except (ValueError, RecursionError) as error:
        raise SpecError(Problem(f"not JSON: {error}", shown)) from None
    if not isinstance(rows, list):
        message = "expected a list of objects; one object a line goes into a .jsonl file"
        raise SpecError(Problem(message, shown))
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            message = f"row {number + 1} is not an object with column names"
            raise SpecError(Problem(message, shown))
    check_rows(rows, shown)
    return rows


def _csv(path: Path, shown: str) -> Rows:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SpecError(Problem("not UTF-8; save the file as UTF-8", shown, line)) from None
    header = text.partition("\n")[0]
    by_semicolon = ";" in header and "," not in header
    tab = path.suffix.lower() == ".tsv"
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tab else ";" if by_semicolon else ",",
        strict=True,
    )
    try:
        columns = _header(next(reader, []), shown)
        cells = [_cells(row, columns, shown, reader.line_num) for row in reader if row]
    except csv.Error as error:
        raise SpecError(Problem(f"not a sound CSV file: {error}", shown, reader.line_num)) from None
    if not cells:
        raise SpecError(Problem("the table has no rows", shown))
    typed = [_typed(column) for column in zip(*cells, strict=True)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*typed, strict=True)]


def _header(columns: list[str], shown: str) -> list[str]:
    for n, name in enumerate(columns):
        if not name.strip():
            raise SpecError(Problem(f"column {n + 1} has no name", shown, 1))
        if name in columns[:n]:
            raise SpecError(Problem(f"two columns are called {name!r}", shown, 1))
    return columns


def _cells(row: list[str], columns: list[str], shown: str, line: int) -> list[str]:
    if len(row) != len(columns):
        message = f"{len(row)} cells, where the first line names {len(columns)} columns"
        raise SpecError(Problem(message, shown, line))
    return row


def _typed(column: Sequence[str]) -> list[Any]:
    """The values of a column, all of one type; an empty cell is null."""
    filled = [cell for cell in column if cell]
    for pattern, read in _CELL_TYPES:
        if filled and all(map(pattern.fullmatch, filled)):
            return [read(cell) if cell else None for cell in column]
    return [cell or None for cell in column]


def _parquet(path: Path, shown: str) -> Rows:
    import duckdb

    # DuckDB takes a name for a pattern.
    file = glob.escape(str(path.resolve()))
    with duckdb.connect(":memory:") as database:
        try:
            found = database.execute("SELECT * FROM read_parquet($file)", {"file": file})
            names = [column[0] for column in found.description]
            values = found.fetchall()
        except duckdb.Error as error:
            words = str(error).replace(file, shown).splitlines()[0]
            raise SpecError(Problem(f"not a sound Parquet file: {words}", shown)) from None
    records = [dict(zip(names, row, strict=True)) for row in values]
    rows = _plain_rows(records, shown, _never)
    check_rows(rows, shown)
    return rows


def _plain_rows(
    rows: Iterable[Mapping[Any, Any]], shown: str, missing: Callable[[Any], bool]
) -> Rows:
    found: Rows = []
    for number, row in enumerate(rows):
        plain: dict[str, Any] = {}
        for column, value in row.items():
            try:
                plain[str(column)] = None if missing(value) else _plain(value)
            except NotPlain as error:
                message = f"row {number + 1}, column {str(column)!r}: {error}"
                raise SpecError(Problem(message, shown)) from None
        found.append(plain)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it. Raises NotPlain."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case float():
            raise NotPlain(f"{value} has no place in JSON; make it null")
        case decimal.Decimal() if value.is_finite():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case uuid.UUID():
            return str(value)
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
    if hasattr(value, "tolist"):  # of numpy, without importing it
        return _plain(value.tolist())
    raise NotPlain(f"a value of type {type(value).__name__} has no place in JSON")


def _is_missing(value: Any) -> bool:
    """NaN, NaT and NA, none of which equals itself."""
    if value is None or type(value).__name__ == "NAType":
        return True
    return type(value).__name__ == "NaTType" or (isinstance(value, float) and value != value)


def _never(value: Any) -> bool:
    return False


def _beside(path: Path) -> str:
    """The most similar name in the same directory, if one is similar."""
    try:
        names = [one.name for one in path.parent.iterdir()]
    except OSError:
        return f" (and no directory {str(path.parent)!r})"
    # A common suffix alone makes no likeness.
    stems = get_close_matches(path.stem, {Path(name).stem for name in names})
    guess = nearest(path.name, [name for name in names if Path(name).stem in stems])
    return guess if guess.startswith("; did you mean") else ""


_READERS: Mapping[str, Callable[[Path, str], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
