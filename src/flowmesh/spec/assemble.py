"""From the results of a step's tasks to its output tables, and where each row came from.

Only row operators are assembled; a whole operator's result holds its tables already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowmesh.spec.action import Result
from flowmesh.spec.expand import Item
from flowmesh.spec.nodes import ERROR_COLUMN, ERRORS_PORT, SUMMARY_PORT, StepNode

#: An input port, a row of it, and the sample of that row; both counted from 0.
Origin = tuple[str, int, int]
Table = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Assembled:
    """Tables by output port, and for each of their rows the input row it was made from.

    A summary was made from all rows, and has no origins.
    """

    tables: Mapping[str, Table]
    origins: Mapping[str, list[Origin]]


def assemble(
    node: StepNode,
    rows: Sequence[Mapping[str, Any]],
    items: Sequence[Item],
    results: Mapping[str, Result],
    failures: Mapping[tuple[int, int], str],
) -> Assembled:
    """Merge results into the rows that asked for them, in the order of (row, sample).

    Args:
        rows: content of the port `rows`.
        items: those that became tasks.
        results: of each task that succeeded, with `rows` loaded where they were a blob.
        failures: message of each failed item by (row, sample), refused ones included.
    """
    assert node.op.grain == "row", f"{node.name} makes its tables itself"
    assert not failures or node.on_error != "fail", f"{node.name} has failed"
    tasks = {(item.row, item.sample): item.task for item in items}
    tables: dict[str, Table] = {"rows": []}
    origins: dict[str, list[Origin]] = {"rows": []}
    if node.on_error == "quarantine":
        tables[ERRORS_PORT], origins[ERRORS_PORT] = [], []
    for row, sample in sorted(tasks.keys() | failures.keys()):
        if (row, sample) not in failures:
            made, port = _merged(node, rows[row], results[tasks[row, sample]], sample), "rows"
        elif node.on_error == "quarantine":
            made, port = [{**rows[row], ERROR_COLUMN: failures[row, sample]}], ERRORS_PORT
        else:
            continue
        tables[port] += made
        origins[port] += [("rows", row, sample)] * len(made)
    if node.op.aggregate is not None:
        tables[SUMMARY_PORT] = node.op.aggregate(node.params, tables["rows"])
    return Assembled(tables, origins)


def _merged(node: StepNode, row: Mapping[str, Any], result: Result, sample: int) -> Table:
    assert result.rows is not None, f"a result of {node.name} has its rows in a blob still"
    return [{**row, **added} for added in node.op.shape(node.params, result.rows, sample)]
