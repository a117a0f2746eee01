"""Runs the query of `transform`: rows into DuckDB, a locked door, rows out.

A column has one SQL type, inferred from all of its rows: numbers are BIGINT or DOUBLE,
texts are VARCHAR and are never taken for dates, lists and objects of one make are LIST and
STRUCT, and whatever is mixed is JSON. Results leave as DuckDB's `to_json` writes them:
dates and times as text in UTC, decimals as numbers. NaN and infinities are refused.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, NoReturn

import duckdb

from flowmesh.operators import sql
from flowmesh.runtimes.rows import Row, Table, TableError
from flowmesh.spec.table import encode_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_RESULT = "flowmesh result"
_FETCH_ROWS = 10_000
_BIGINT, _HUGEINT = 2**63, 2**127


def run_query(query: str, tables: Mapping[str, Table], scratch: Path, *, timeout_s: float) -> Table:
    """The result of one SELECT over `tables`.

    Raises TableError for a wrong query or one that takes over `timeout_s`, MemoryError
    where it needs more than `sql.MEMORY_LIMIT`.
    """
    with sql.connect() as connection:
        stop = Timer(timeout_s, connection.interrupt)
        stop.start()
        try:
            for number, (name, table) in enumerate(tables.items()):
                _load(connection, name, table, scratch / f"table-{number}.jsonl")
            sql.lock(connection)
            return _select(connection, query)
        except sql.SqlError as error:
            raise TableError(str(error)) from None
        except duckdb.InterruptException:
            raise TableError(f"the query took over `timeout_s`: {timeout_s:g} s") from None
        except duckdb.OutOfMemoryException:
            raise MemoryError(f"the query needs more memory than {sql.MEMORY_LIMIT}") from None
        except duckdb.Error as error:
            raise TableError(sql.explain(error)) from None
        finally:
            stop.cancel()


def _select(connection: "DuckDBPyConnection", query: str) -> Table:
    select = sql.one_select(connection, query)
    described = connection.execute(f"DESCRIBE {select}").fetchall()
    columns = tuple(row[0] for row in described)
    sql.refuse_twice(columns, "the result")
    # Stored first, because storing keeps the query's order and a subquery need not.
    name = sql.quoted(_RESULT)
    connection.execute(f"CREATE TEMP TABLE {name} AS {select}")
    cursor = connection.execute(f"SELECT to_json(result) FROM {name} AS result")
    rows: list[Row] = []
    while texts := cursor.fetchmany(_FETCH_ROWS):
        rows += (json.loads(text, parse_constant=_not_a_number) for (text,) in texts)
    return Table(rows, columns)


def _load(connection: "DuckDBPyConnection", name: str, table: Table, path: Path) -> None:
    if not table.columns:
        raise sql.SqlError(f"table {name!r} has no columns")
    if not table.rows:
        connection.execute(sql.untyped_view(name, table.columns))
        return
    sql.refuse_twice(table.columns, f"table {name!r}")
    lines = encode_rows(table.rows)
    path.write_bytes(lines)
    longest = max(map(len, lines.splitlines(keepends=True)))
    types = ", ".join(
        f"{_literal(column)}: {_literal(_type_of([row.get(column) for row in table.rows]))}"
        for column in table.columns
    )
    connection.execute(
        f"CREATE TABLE {sql.quoted(name)} AS SELECT * FROM read_json({_literal(str(path))},"
        f" format = 'newline_delimited', records = 'true', maximum_object_size = {longest + 1},"
        f" columns = {{{types}}})"
    )
    path.unlink()


def _type_of(values: Iterable[Any]) -> str:
    """The narrowest SQL type that holds all values and gives each back as it was."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    if not kinds or kinds == {str}:
        return "VARCHAR"
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int}:
        return _whole(present)
    if kinds <= {int, float}:
        return "DOUBLE"
    if kinds == {list}:
        return f"{_type_of(one for value in present for one in value)}[]"
    if kinds == {dict} and len({tuple(value) for value in present}) == 1 and present[0]:
        return _struct(present)
    return "JSON"


def _whole(values: list[int]) -> str:
    low, high = min(values), max(values)
    if low >= -_BIGINT and high < _BIGINT:
        return "BIGINT"
    return "HUGEINT" if low >= -_HUGEINT and high < _HUGEINT else "JSON"


def _struct(values: list[dict[str, Any]]) -> str:
    names = tuple(values[0])
    if len({name.lower() for name in names}) < len(names):
        return "JSON"
    fields = (f"{sql.quoted(name)} {_type_of(value[name] for value in values)}" for name in names)
    return f"STRUCT({', '.join(fields)})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _not_a_number(text: str) -> NoReturn:
    raise TableError(f"the result holds {text}, which a table can not; filter it out or use null")
