"""Carries out the operators on whole tables: `transform`, `concat`, `split`, `dedupe`.

Tables are read whole, as lists of rows: the rows of a table fit on one worker.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from flowmesh.base.digest import canonical
from flowmesh.base.errors import SpecError
from flowmesh.base.nearest import nearest
from flowmesh.operators.tables import DedupeParams, SplitParams, TransformParams
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.dedupe import keep_distinct
from flowmesh.runtimes.query import run_query
from flowmesh.runtimes.rows import Row, Table, TableError, read_table, store_table
from flowmesh.spec.action import Action, Artifact, Result


def open_tables(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "TableEngine":
    """An `OpenEngine`."""
    return TableEngine(blobs)


class TableEngine:
    """Runs tasks one by one; a table operator keeps nothing warm."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                outputs = _RUN[work.action.op](work.action, self._blobs)
                yield Done(work.task, self._keep(outputs))
            except (TableError, SpecError) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
            except MemoryError as error:
                yield Failed(work.task, FailureKind.MEMORY, str(error) or "out of memory")

    def _keep(self, outputs: Mapping[str, Table]) -> Result:
        tables, origins = {}, {}
        for port, table in outputs.items():
            tables[port] = store_table(self._blobs, table.rows, table.columns)
            if table.origins is not None:
                lines = "".join(f"{json.dumps(list(origin))}\n" for origin in table.origins)
                origins[port] = Artifact("file", str(self._blobs.put(lines.encode())))
        return Result(outputs=tables, origins=origins)


def _input(action: Action, blobs: Blobs) -> Table:
    bound = action.inputs["rows"]
    assert isinstance(bound, Artifact), bound
    return read_table(blobs, bound)


def _transform(action: Action, blobs: Blobs) -> dict[str, Table]:
    bound = action.inputs["tables"]
    assert isinstance(bound, dict), bound
    tables = {name: read_table(blobs, artifact) for name, artifact in bound.items()}
    params = TransformParams.model_validate(action.params)
    return {"rows": run_query(params.sql, tables, blobs.scratch(), timeout_s=params.timeout_s)}


def _concat(action: Action, blobs: Blobs) -> dict[str, Table]:
    bound = action.inputs["tables"]
    assert isinstance(bound, list), bound
    tables = [read_table(blobs, artifact) for artifact in bound]
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    rows = [{column: row.get(column) for column in columns} for t in tables for row in t.rows]
    origins = [(f"tables/{n}", row) for n, t in enumerate(tables) for row in range(len(t.rows))]
    return {"rows": Table(rows, columns, origins)}


def _split(action: Action, blobs: Blobs) -> dict[str, Table]:
    params = SplitParams.model_validate(action.params)
    table = _input(action, blobs)
    groups: dict[bytes, list[int]] = {}
    for number, key in enumerate(keys_of(table, params.by or None)):
        # Without `by` each row goes its own way, equal ones too.
        groups.setdefault(key if params.by else key + b"/%d" % number, []).append(number)
    # By content: a row that is added moves few others from part to part.
    seed = canonical(params.seed)
    order = sorted(groups, key=lambda key: hashlib.sha256(seed + b"/" + key).digest())
    ends = _ends(params.parts, len(table.rows))
    parts: dict[str, list[int]] = {name: [] for name in ends}
    dealt = 0
    for key in order:
        members = groups[key]
        # A group goes where its middle falls.
        part = next(name for name, end in ends.items() if 2 * dealt + len(members) <= 2 * end)
        parts[part] += members
        dealt += len(members)
    return {name: table.pick(sorted(parts[name])) for name in params.parts}


def _ends(parts: Mapping[str, int | float | str], rows: int) -> dict[str, int]:
    """Each part's end in the dealt order. `rest` comes last, whatever its place."""
    sized = {name: size for name, size in parts.items() if not isinstance(size, str)}
    rest = [name for name in parts if name not in sized]
    counted = all(isinstance(size, int) for size in sized.values())
    total = sum(Fraction(str(size)) for size in sized.values())
    if sized and counted and (total > rows or (total < rows and not rest)):
        advice = "lower the counts" if total > rows else "give one part `rest`"
        raise TableError(f"the parts take {total} rows and the table has {rows}; {advice}")
    ends, sum_so_far = {}, Fraction(0)
    for name, size in sized.items():
        sum_so_far += Fraction(str(size))
        ends[name] = int(sum_so_far if counted else sum_so_far * rows + Fraction(1, 2))
    last = (rest or list(sized))[-1]
    return ends | {last: rows}


def _dedupe(action: Action, blobs: Blobs) -> dict[str, Table]:
    params = DedupeParams.model_validate(action.params)
    table = _input(action, blobs)
    first: dict[bytes, int] = {}
    for number, key in enumerate(keys_of(table, params.by)):
        first.setdefault(key, number)
    kept = list(first.values())
    if params.threshold is not None:
        texts = [_text(table.rows[number], params.by or table.columns) for number in kept]
        kept = [kept[n] for n in keep_distinct(texts, threshold=params.threshold)]
    return {"rows": table.pick(kept)}


def _text(row: Row, columns: Iterable[str]) -> str:
    values = [row.get(column) for column in columns]
    return "\n".join(v if isinstance(v, str) else canonical(v).decode() for v in values)


def keys_of(table: Table, by: Sequence[str] | None) -> Iterator[bytes]:
    """For each row, bytes that are equal where its values in `by` (all if None) are.

    Raises TableError for a name that no row has.
    """
    for name in by or ():
        if name not in table.columns and table.rows:
            raise TableError(f"`by`: no column {name!r}{nearest(name, table.columns)}")
    columns = by or table.columns
    for row in table.rows:
        yield canonical([row.get(column) for column in columns])


_RUN: Mapping[str, Callable[[Action, Blobs], dict[str, Table]]] = {
    "transform": _transform,
    "concat": _concat,
    "split": _split,
    "dedupe": _dedupe,
}
