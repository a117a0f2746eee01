"""SQL in a closed room: what `transform` promises about a query, before and while it runs.

A query gets a DuckDB of its own that can reach no file, no network, no extension and no
variable of ours. It must be one SELECT. Its names are checked before any data exists, by
binding it to tables of untyped columns.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from flowmesh.base.nearest import nearest
from flowmesh.spec.operator import Columns

if TYPE_CHECKING:
    import duckdb

#: Of one query, tables included.
MEMORY_LIMIT = "1GB"

#: Messages of DuckDB about a name, whatever the types; the name is the group.
_WRONG_NAME = re.compile(
    r'Referenced (?:column|table) "(?P<a>[^"]+)" not found'
    r'|does not have a column named "(?P<b>[^"]+)"'
    r"|Table with name (?P<c>\S+) does not exist"
    r"|Function with name (?P<d>\S+) does not exist"
)
_CLOCKS = frozenset(
    ("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp")
)
#: Functions that vary from call to call though DuckDB lists no stability for them.
_UNSTABLE = frozenset(("age", "query", *_CLOCKS))
#: Words that do so without a bracket behind them.
_BARE = frozenset(("tablesample", *_CLOCKS))


#: Make much of little. DuckDB evaluates constants while it binds, within no limit that we
#: can set, and names are checked on the server: with one of these they are not.
_GROWS = frozenset(
    {"repeat", "lpad", "rpad", "printf", "format", "bar", "range", "generate_series"}
    | {"list_resize", "array_resize", "bitstring", "set_bit"}
)


class SqlError(ValueError):
    """The query or its tables are at fault; the message is for the user."""


def connect() -> "duckdb.DuckDBPyConnection":
    """A database in memory with one thread, so that equal queries give equal row orders."""
    import duckdb

    connection = duckdb.connect(
        config={
            "threads": 1,
            "preserve_insertion_order": True,
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": "",
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def lock(connection: "duckdb.DuckDBPyConnection") -> None:
    """Shut the door: from here on, SQL reaches only the tables that are inside."""
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")


def one_select(connection: "duckdb.DuckDBPyConnection", sql: str) -> str:
    """The query as DuckDB reads it. Raises SqlError unless it is one SELECT."""
    import duckdb

    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise SqlError(explain(error)) from None
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        found = " and ".join(kind.lower() for kind in kinds) or "none"
        raise SqlError(f"expected one SELECT statement, found {found}")
    query = statements[0].query
    # DuckDB leaves comments before it out; their lines keep the numbers in its messages right.
    skipped = sql.partition(query)[0].count("\n") if query in sql else 0
    return "\n" * skipped + query.rstrip().rstrip(";")


def check_names(sql: str, tables: Mapping[str, Columns]) -> Columns:
    """Columns of the result, or None where only running the query can tell.

    Raises SqlError for what is wrong whatever the types are: syntax, an unknown table,
    column or function, or a column of the result that occurs twice.
    """
    import duckdb

    with connect() as connection:
        query = one_select(connection, sql)
        known = {name: columns for name, columns in tables.items() if columns}
        for name, columns in known.items():
            connection.execute(untyped_view(name, columns))
        if len(known) < len(tables) or _GROWS & _calls(_words(query)):
            return None
        lock(connection)
        try:
            described = connection.execute(f"DESCRIBE {query}").fetchall()
        except duckdb.PermissionException as error:
            raise SqlError(explain(error)) from None
        except duckdb.Error as error:
            wrong = _WRONG_NAME.search(str(error))
            every = {column.lower() for columns in known.values() for column in columns}
            # A name that exists was refused for its type, which is not known here.
            if wrong is None or _name(wrong).lower() in every:
                return None
            if wrong["c"]:  # DuckDB would propose tables of its own
                table = _name(wrong)
                raise SqlError(f"no table is called {table!r}{nearest(table, known)}") from None
            raise SqlError(explain(error)) from None
    columns = tuple(row[0] for row in described)
    refuse_twice(columns, "the result")
    return columns


@lru_cache(maxsize=256)
def is_repeatable(sql: str) -> bool:
    """Whether equal tables give equal results: no clock, no chance, no sampling."""
    with connect() as connection:
        found = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
        ).fetchall()
    unstable = _UNSTABLE | {row[0] for row in found}
    words = _words(sql)
    sampled = ("using", "sample") in pairwise(words)
    called = _calls(words)
    inward = any(name.startswith(("duckdb_", "pragma_")) for name in called)
    return not (sampled or inward or _BARE & set(words) or unstable & called)


def untyped_view(name: str, columns: Iterable[str]) -> str:
    """SQL for an empty table whose columns fit wherever a value of any type does."""
    refuse_twice(columns := tuple(columns), f"table {name!r}")
    selected = ", ".join(f"NULL AS {quoted(column)}" for column in columns)
    return f"CREATE VIEW {quoted(name)} AS SELECT {selected} WHERE false"


def quoted(name: str) -> str:
    """A name as SQL spells it, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def refuse_twice(columns: Iterable[str], place: str) -> None:
    """Raise SqlError if two names are one to SQL, which does not tell `A` from `a`."""
    seen: dict[str, str] = {}
    for column in columns:
        folded = column.lower()
        if folded in seen:
            raise SqlError(
                f"{place} has two columns that SQL can not tell apart, {seen[folded]!r} and"
                f" {column!r}: rename one of them"
            )
        seen[folded] = column


def explain(error: Exception) -> str:
    """DuckDB's own words, without its drawing of the place."""
    text, _, place = str(error).partition("\n\nLINE ")
    line = place.partition(":")[0]
    words = " ".join(text.split())
    return f"{words} (line {line} of the query)" if line.isdigit() else words


def _words(sql: str) -> list[str]:
    """The query in lower case, word by word, without texts, numbers and comments."""
    import duckdb

    starts = duckdb.tokenize(sql)
    ends = [place for place, _ in starts[1:]] + [len(sql)]
    return [
        sql[place:end].strip().lower().strip('"')
        for (place, kind), end in zip(starts, ends, strict=True)
        if kind.name not in ("string_const", "numeric_const", "comment")
    ]


def _calls(words: list[str]) -> set[str]:
    """The words that a bracket follows: functions, mostly."""
    return {word for word, following in pairwise(words) if following.startswith("(")}


def _name(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group).strip('"!')
