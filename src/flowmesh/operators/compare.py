"""`compare`: whether one evaluation is better than another, row by row of the same questions."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from flowmesh.base.nearest import nearest
from flowmesh.operators import statistics
from flowmesh.operators.scoring import Row
from flowmesh.spec.operator import Columns, Operator, ParamError, Params, Port


class CompareParams(Params):
    """Pair the rows of two scored tables, and say whether the first scores higher."""

    by: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=64,
            description="Columns that name a row: equal in both rows of a pair, and in no others.",
        ),
    ]
    score: Annotated[str, Field(description="Column of the score; the higher the better.")] = (
        "score"
    )
    second_score: Annotated[
        str | None, Field(description="Column of the second table's score, if it is another.")
    ] = None
    unmatched: Annotated[
        Literal["fail", "drop"],
        Field(
            description="What to do about rows without a partner or a score; `drop` counts them."
        ),
    ] = "fail"

    @field_validator("by", mode="before")
    @classmethod
    def _one_column(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


PAIR_COLUMNS = ("first", "second", "difference")
SUMMARY_COLUMNS = (
    *("n", "first", "second", "difference", "ci_low", "ci_high", "method"),
    *("wins", "losses", "ties", "p_value", "unmatched"),
)


def summary(first: Sequence[float], second: Sequence[float], unmatched: int) -> Row:
    """One row over all pairs: both means, their difference, and a sign test of the pairs."""
    found = statistics.difference(first, second)
    wins = sum(one > other for one, other in zip(first, second, strict=True))
    losses = sum(one < other for one, other in zip(first, second, strict=True))
    values = (
        *(found.n, statistics.mean(first).value, statistics.mean(second).value, found.value),
        *(found.low, found.high, found.method, wins, losses, found.n - wins - losses),
        *(statistics.rounded(statistics.sign_test(wins, losses)), unmatched),
    )
    return dict(zip(SUMMARY_COLUMNS, values, strict=True))


def _columns(params: CompareParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    scores = {"first": params.score, "second": params.second_score or params.score}
    for port, score in scores.items():
        known: Columns = inputs[port]
        fields = [("by", name) for name in params.by]
        fields.append(("second_score" if score != params.score else "score", score))
        for field, name in fields:
            if known is not None and name not in known:
                raise ParamError(field, f"no column {name!r} in `{port}`{nearest(name, known)}")
    for name in params.by:
        if name in PAIR_COLUMNS:
            raise ParamError("by", f"{name!r} is a column that compare adds itself; rename it")
    return {"rows": (*params.by, *PAIR_COLUMNS), "summary": SUMMARY_COLUMNS}


COMPARE = Operator(
    name="compare",
    version=1,
    summary="Compare two evaluations of the same rows: the mean difference, and how sure it is.",
    params=CompareParams,
    inputs={
        "first": Port("table", "scored rows, as of the trained model"),
        "second": Port("table", "scored rows, as of its base"),
    },
    grain="whole",
    runtime="tables",
    entry="flowmesh.runtimes.comparing:open_compare",
    outputs=lambda params: {"rows": "table", "summary": "table"},
    columns=_columns,
)
