"""Operators on whole tables: `transform`, `concat`, `split`, `dedupe`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from flowmesh.base.nearest import nearest
from flowmesh.operators import sql
from flowmesh.operators.amounts import whole_tables
from flowmesh.spec.operator import Columns, Determinism, Operator, ParamError, Params, Port

_PartName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
_Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
#: Below 1, as 1.0 and 1 are one number in canonical JSON: it has to be a count.
_Share = Annotated[float, Field(gt=0, lt=1)]
_SHARES_TOLERANCE = 1e-9


class TransformParams(Params):
    """Make a table from tables by SQL."""

    sql: Annotated[
        str,
        Field(
            min_length=1,
            max_length=100_000,
            description=(
                "One SELECT in DuckDB's dialect, over the names of `tables`. Without ORDER BY the"
                " order of rows is DuckDB's: fixed, but of no meaning."
            ),
        ),
    ]
    timeout_s: Annotated[
        float, Field(gt=0, le=86_400, description="Seconds after which the query is stopped.")
    ] = 600.0


class ConcatParams(Params):
    """Put tables under each other; a column that one of them lacks is null there."""


class SplitParams(Params):
    """Deal the rows of a table into named parts; each part is an output."""

    parts: Annotated[
        dict[_PartName, _Count | _Share | Literal["rest"]],
        Field(
            min_length=1,
            max_length=64,
            description=(
                "Part to size: shares of the rows (below 1, with a sum of 1), or counts of rows;"
                " one part may be `rest`."
            ),
        ),
    ]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, description="Fixes who goes where.")] = 0
    by: Annotated[
        list[str],
        Field(
            max_length=64,
            description=(
                "Columns whose equal values stay in one part; sizes are then met as nearly as"
                " whole groups allow."
            ),
        ),
    ] = []  # noqa: RUF012 (pydantic copies it)

    @field_validator("by", mode="before")
    @classmethod
    def _one_column(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        counts = [size for size in self.parts.values() if isinstance(size, int)]
        shares = [size for size in self.parts.values() if isinstance(size, float)]
        rests = len(self.parts) - len(counts) - len(shares)
        if counts and shares:
            raise ParamError("parts", "mixes counts and shares; give either, and one `rest`")
        if rests > 1:
            raise ParamError("parts", "only one part can be `rest`")
        total = sum(shares)
        if shares and not rests and abs(total - 1) > _SHARES_TOLERANCE:
            raise ParamError("parts", f"shares sum to {total:.6g}, not to 1; name one part `rest`")
        if shares and rests and total >= 1 - _SHARES_TOLERANCE:
            raise ParamError("parts", f"shares sum to {total:.6g}, which leaves nothing for `rest`")
        return self


class DedupeParams(Params):
    """Keep the first of rows that are equal, or nearly so."""

    by: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Columns to compare; all of them if not given.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description=(
                "Drop near-duplicates too: rows whose texts, in lower case, share at least this"
                " part of their 5-character pieces (Jaccard) with a row that was kept."
                " Needs `flowmesh[dedupe]` on the worker."
            ),
        ),
    ] = None

    @field_validator("by", mode="before")
    @classmethod
    def _one_column(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


def _transform_columns(params: TransformParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    try:
        return {"rows": sql.check_names(params.sql, inputs["tables"])}
    except sql.SqlError as error:
        raise ParamError("sql", str(error)) from None


def _transform_determinism(params: TransformParams) -> Determinism:
    return "pure" if sql.is_repeatable(params.sql) else "sampled"


def _concat_columns(params: ConcatParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    tables: list[Columns] = inputs["tables"]
    union: dict[str, None] = {}
    for columns in tables:
        if columns is None:
            return {"rows": None}
        union.update(dict.fromkeys(columns))
    return {"rows": tuple(union)}


def _split_columns(params: SplitParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    _known("by", params.by, inputs["rows"])
    return dict.fromkeys(params.parts, inputs["rows"])


def _dedupe_columns(params: DedupeParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    _known("by", params.by or [], inputs["rows"])
    return {"rows": inputs["rows"]}


def _known(field: str, names: list[str], columns: Columns) -> None:
    """Raise ParamError for a name that is no column, if the columns are known."""
    for name in names:
        if columns is not None and name not in columns:
            raise ParamError(field, f"no column {name!r}{nearest(name, columns)}")


_ENTRY = "flowmesh.runtimes.tables:open_tables"
_ROWS = Port("table", "the rows")

TRANSFORM = Operator(
    name="transform",
    version=1,
    summary="Make a table from tables by SQL.",
    params=TransformParams,
    inputs={"tables": Port("table", "the tables of the query, by name", arity="map")},
    grain="whole",
    runtime="tables",
    entry=_ENTRY,
    preload=("duckdb",),
    columns=_transform_columns,
    amounts=whole_tables,
    limits=("timeout_s",),
    determinism=_transform_determinism,
)

CONCAT = Operator(
    name="concat",
    version=1,
    summary="Put tables under each other.",
    params=ConcatParams,
    inputs={"tables": Port("table", "the tables, in order", arity="list")},
    grain="whole",
    runtime="tables",
    entry=_ENTRY,
    columns=_concat_columns,
    amounts=whole_tables,
)

SPLIT = Operator(
    name="split",
    version=1,
    summary="Deal the rows of a table into named parts.",
    params=SplitParams,
    inputs={"rows": _ROWS},
    grain="whole",
    runtime="tables",
    entry=_ENTRY,
    outputs=lambda params: dict.fromkeys(params.parts, "table"),
    columns=_split_columns,
    amounts=whole_tables,
)

DEDUPE = Operator(
    name="dedupe",
    version=1,
    summary="Keep the first of rows that are equal, or nearly so.",
    params=DedupeParams,
    inputs={"rows": _ROWS},
    grain="whole",
    runtime="tables",
    entry=_ENTRY,
    columns=_dedupe_columns,
    amounts=whole_tables,
)
