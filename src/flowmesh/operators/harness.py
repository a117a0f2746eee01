"""`harness`: tasks of EleutherAI's lm-evaluation-harness, from local files, off-line."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from flowmesh.operators.amounts import READING_FLOPS, of_tokens, rows_and_tokens
from flowmesh.operators.generate import ADAPTER, DTYPE, LANGUAGE_MODEL, PRELOAD, NumericFormat
from flowmesh.operators.scoring import engine, exact
from flowmesh.spec.action import Bound
from flowmesh.spec.operator import Amounts, Columns, Operator, Params, Port


class HarnessParams(Params):
    """Run a task of lm-evaluation-harness over the rows of a table."""

    num_fewshot: Annotated[
        int | None,
        Field(
            ge=0,
            le=64,
            description="Examples before each question: the first rows of `fewshot`.",
        ),
    ] = None
    chat: Annotated[bool, Field(description="Put questions into the model's chat template.")] = (
        False
    )
    system: Annotated[
        str | None, Field(description="The chat's system message, or a text before everything.")
    ] = None
    max_tokens: Annotated[
        int,
        Field(ge=1, le=32768, description="Most tokens to generate where the task does not say."),
    ] = 256
    dtype: Annotated[NumericFormat, Field(description=DTYPE)] = "float32"


SUMMARY_COLUMNS = ("task", "metric", "filter", "n", "value", "ci_low", "ci_high", "method")


def _columns(params: HarnessParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    return {"rows": None, "summary": SUMMARY_COLUMNS}


def _amounts(params: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    """As if each document were read once: how often it really is follows from the task's file."""
    rows, tokens = rows_and_tokens(inputs.get("data"))
    return of_tokens(rows * tokens)


HARNESS = Operator(
    name="harness",
    version=2,
    summary="Run a task of lm-evaluation-harness from a local file.",
    params=HarnessParams,
    inputs={
        "task": Port("file", "the task's YAML; where it looks for its data set is ignored"),
        "data": Port("table", "the documents of the task"),
        "fewshot": Port("table", "documents to take examples from", required=False),
        "model": LANGUAGE_MODEL,
        "adapter": ADAPTER,
    },
    grain="whole",
    runtime="harness",
    entry="flowmesh.runtimes.harness:open_harness",
    preload=(*PRELOAD, "lm_eval"),
    outputs=lambda params: {"rows": "table", "summary": "table"},
    columns=_columns,
    engine=engine,
    exact=exact,
    amounts=_amounts,
    flops_per_parameter=READING_FLOPS,
)
