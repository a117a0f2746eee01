"""Carries out `compare`: pairs the rows of two scored tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmesh.base.digest import canonical
from flowmesh.base.nearest import nearest
from flowmesh.operators.compare import PAIR_COLUMNS, SUMMARY_COLUMNS, CompareParams, summary
from flowmesh.operators.statistics import rounded
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.rows import Row, Table, TableError, read_table, store_table
from flowmesh.spec.action import Action, Artifact, Result


def open_compare(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "CompareEngine":
    """An `OpenEngine`."""
    return CompareEngine(blobs)


class CompareEngine:
    """Runs tasks one by one; keeps nothing warm."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                rows, told = self._compare(work.action)
                by = CompareParams.model_validate(work.action.params).by
                outputs = {
                    "rows": store_table(self._blobs, rows, (*by, *PAIR_COLUMNS)),
                    "summary": store_table(self._blobs, [told], SUMMARY_COLUMNS),
                }
                yield Done(work.task, Result(outputs=outputs))
            except TableError as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))

    def _compare(self, action: Action) -> tuple[list[Row], Row]:
        """The pairs, in the order of the first table, and what they say together."""
        params = CompareParams.model_validate(action.params)
        first = self._scores(action, "first", params.by, params.score)
        second = self._scores(action, "second", params.by, params.second_score or params.score)
        unmatched = [key for key in first if key not in second]
        unmatched += [key for key in second if key not in first]
        if unmatched and params.unmatched == "fail":
            raise TableError(
                f"{len(unmatched)} rows have no partner or no score, as the one with "
                f"{', '.join(params.by)} = {unmatched[0].decode()[1:-1]:.200}; mend the tables, or "
                "set `unmatched: drop`"
            )
        pairs = [key for key in first if key in second]
        rows = []
        for key in pairs:
            one, other = first[key][1], second[key][1]
            named = {column: first[key][0].get(column) for column in params.by}
            rows.append(named | {"first": one, "second": other, "difference": rounded(one - other)})
        ones, others = ([table[key][1] for key in pairs] for table in (first, second))
        return rows, summary(ones, others, len(unmatched))

    def _scores(
        self, action: Action, port: str, by: Sequence[str], score: str
    ) -> dict[bytes, tuple[Row, float]]:
        """Rows that have a score, by the values that name them. Raises TableError."""
        bound = action.inputs[port]
        assert isinstance(bound, Artifact), bound
        table = read_table(self._blobs, bound)
        _check_columns(table, port, (*by, score))
        found: dict[bytes, tuple[Row, float]] = {}
        for number, row in enumerate(table.rows):
            key, value = canonical([row.get(column) for column in by]), row.get(score)
            if key in found:
                raise TableError(
                    f"`{port}` has two rows with {', '.join(by)} = {key.decode()[1:-1]:.200}; name "
                    "in `by` what tells all rows apart"
                )
            if value is None:
                continue
            if not isinstance(value, int | float):
                raise TableError(
                    f"`{port}`, row {number + 1}: {score!r} is {value!r:.40}, not a number"
                )
            found[key] = row, float(value)
        return found


def _check_columns(table: Table, port: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.columns and (table.rows or table.columns):
            raise TableError(f"`{port}` has no column {name!r}{nearest(name, table.columns)}")
