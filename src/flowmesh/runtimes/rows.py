"""Whole tables on their way in and out of a runtime."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowmesh.runtimes.base import Blobs
from flowmesh.spec.action import Artifact
from flowmesh.spec.table import columns_of, decode_rows, encode_rows

Row = dict[str, Any]
#: Where a row of an output comes from: input port (as `tables/0` in a list) and row.
Origin = tuple[str, int]


class TableError(ValueError):
    """The rows or the parameters are at fault; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, with all their columns, which rows may lack: an empty table has some too."""

    rows: list[Row]
    columns: tuple[str, ...]
    origins: Sequence[Origin] | None = None

    def pick(self, chosen: Sequence[int]) -> "Table":
        """The chosen rows of the port `rows`, which remember where they were."""
        origins = [("rows", row) for row in chosen]
        return Table([self.rows[row] for row in chosen], self.columns, origins)


def store_table(blobs: Blobs, rows: list[Row], columns: tuple[str, ...]) -> Artifact:
    """Keep a table. Raises TableError for a row that JSON can not hold."""
    try:
        data = encode_rows(rows)
    except (TypeError, ValueError) as error:
        raise TableError(f"the result can not be written as JSON: {error}") from None
    return Artifact("table", str(blobs.put(data)), len(rows), columns)


def read_table(blobs: Blobs, artifact: Artifact) -> Table:
    """A table of the store; without rows it has the columns that its artifact tells."""
    rows = decode_rows(blobs.path(artifact.address).read_bytes())
    return Table(rows, columns_of(rows) if rows else artifact.columns)
