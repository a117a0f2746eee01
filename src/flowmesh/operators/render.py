"""`render`: columns written from templates, with no model behind them."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from flowmesh.spec.operator import Columns, Operator, ParamError, Params, Port

Column = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]


class RenderParams(Params):
    """Add columns of text: several by `columns`, or one by `template` and `into`."""

    columns: Annotated[
        dict[Column, str] | None,
        Field(description="New column to template over the row.", min_length=1, max_length=256),
    ] = None
    template: Annotated[
        str | None, Field(description="Template of the one new column that `into` names.")
    ] = None
    into: Annotated[Column, Field(description="Column of the rendered `template`.")] = "text"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.columns is None) == (self.template is None):
            raise ParamError("template", "give either `template` or `columns`, and not both")
        if self.columns is not None and "into" in self.model_fields_set:
            raise ParamError("into", "`into` goes with `template`; `columns` names its own")
        return self


def _task(params: RenderParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    if params.columns is None:
        return {"columns": {params.into: rendered["template"]}}
    return {"columns": rendered["columns"]}


def _adds(params: RenderParams) -> Columns:
    return (params.into,) if params.columns is None else tuple(params.columns)


def _shape(params: RenderParams, rows: list[dict[str, Any]], sample: int) -> list[dict[str, Any]]:
    """Columns in the order in which they were written: a task knows none."""
    return [{name: row[name] for name in _adds(params) or ()} for row in rows]


RENDER = Operator(
    name="render",
    version=1,
    summary="Write new columns from templates.",
    params=RenderParams,
    inputs={"rows": Port("table", "the rows to add columns to")},
    grain="row",
    runtime="tables",
    entry="flowmesh.runtimes.render:open_render",
    templated=("columns", "template"),
    task=_task,
    shape=_shape,
    adds=_adds,
    max_batch=256,
)
