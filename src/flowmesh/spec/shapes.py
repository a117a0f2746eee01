"""The columns of a step's outputs, and whether the rows have what the step reads of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowmesh.base.nearest import nearest
from flowmesh.spec.nodes import ERROR_COLUMN, ERRORS_PORT, SUMMARY_PORT, Sources
from flowmesh.spec.operator import Columns, Operator
from flowmesh.spec.parameters import Instance
from flowmesh.spec.references import texts
from flowmesh.spec.table import columns_of
from flowmesh.spec.templates import columns_named
from flowmesh.spec.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Shapes:
    """`report` is told (message, *path) of what is wrong."""

    wiring: Wiring
    report: Callable[..., None]

    def columns(
        self,
        op: Operator,
        params: Any,
        inputs: Mapping[str, Sources],
        instance: Instance,
        *,
        wired: bool,
    ) -> dict[str, Columns]:
        """Of each output port that is a table. Raises ParamError.

        `wired`: `inputs` has all that the step is given; else some of it is not known.
        """
        if op.grain == "whole":
            # What an operator says about half of its inputs would be wrong.
            known = op.columns(params, self._tables(op, inputs)) if wired else {}
            kinds = op.outputs(params)
            return {port: known.get(port) for port in kinds if kinds[port] == "table"}
        base: Columns = self.wiring.columns(inputs["rows"]) if "rows" in inputs else None
        adds = op.adds(params)
        self._check_row(op, params, base, instance)
        found: dict[str, Columns] = {"rows": None}
        if op.aggregate is not None:
            found[SUMMARY_PORT] = columns_of(op.aggregate(params, [])) or None
        if base is None:
            return {**found, **({ERRORS_PORT: None} if _quarantines(instance) else {})}
        found["rows"] = None if adds is None else (*base, *adds)
        for column in adds or ():
            if column in base:
                into = "; give another name with `into`" if _has_into(op) else ""
                message = f"the rows already have a column {column!r}, which {op.name} adds{into}"
                where = ("into",) if "into" in instance.step.settings else ()
                self.report(message, *instance.path, *where)
        if _quarantines(instance):
            if ERROR_COLUMN in base:
                message = f"the rows already have a column {ERROR_COLUMN!r}, which quarantine adds"
                self.report(message, *instance.path, "on_error")
            found[ERRORS_PORT] = (*base, ERROR_COLUMN)
        return found

    def _tables(self, op: Operator, inputs: Mapping[str, Sources]) -> dict[str, Any]:
        return {
            port: self.wiring.columns(sources)
            for port, sources in inputs.items()
            if op.inputs[port].kind == "table"
        }

    def _check_row(self, op: Operator, params: Any, base: Columns, instance: Instance) -> None:
        """Templates can be read, and name columns that the rows have."""
        plain = params.model_dump(mode="json", include=set(op.templated))
        for place, text in texts(plain):
            try:
                named = columns_named(text)
            except ValueError as error:
                self.report(str(error), *instance.path, *place)
                continue
            for column in sorted(named - set(base or named)):
                message = f"the template names {column!r}, a column that the rows do not have"
                self.report(message + nearest(column, base or ()), *instance.path, *place)
        for column in op.sees(params) or ():
            if base is not None and column not in base:
                message = f"{op.name} reads column {column!r}, which the rows do not have"
                self.report(message + nearest(column, base), *instance.path)


def _quarantines(instance: Instance) -> bool:
    return instance.step.on_error == "quarantine"


def _has_into(op: Operator) -> bool:
    return "into" in op.params.model_fields
