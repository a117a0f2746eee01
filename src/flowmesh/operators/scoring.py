"""What operators that score rows share, and `reward`: a reward model or classifier over rows.

The aggregates are pure functions, as the server calls them when it puts a step's rows
together. `runtimes/reward_model.py` carries `reward` out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flowmesh.operators import statistics
from flowmesh.operators.amounts import READING_FLOPS, reading
from flowmesh.operators.generate import (
    COLUMN,
    PRELOAD,
    Prompted,
    check_prompt,
    prompt_of,
)
from flowmesh.spec.operator import Operator, ParamError, Port

Row = dict[str, Any]

PREFIX = "Begins the names of the new columns: `x` makes `x_score` of `score`."


class RewardParams(Prompted):
    """Score a text of each row by a reward model, or by one label of a classifier."""

    completion: Annotated[
        str | None,
        Field(description="Template of the answer behind `prompt` or `messages`."),
    ] = None
    text: Annotated[
        str | None,
        Field(description="Template of a text that is read as it is, in place of a prompt."),
    ] = None
    label: Annotated[
        str | None,
        Field(description="The label to score, for a model that has several."),
    ] = None
    value: Annotated[
        Literal["logit", "probability"] | None,
        Field(
            description=(
                "What of the label; without it the logit of a model with one label, else the"
                " probability. The probability of one label is the logistic function of its logit."
            )
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Field(ge=1, le=2**20, description="Most tokens to read; without it what the model holds."),
    ] = None
    truncate: Annotated[
        Literal["no", "start", "end"],
        Field(
            description=(
                "What to cut from a longer text; `no` fails its row. Cutting adds the column"
                " `<into>_truncated`. A reward model reads at the end, so cut it at the `start`."
            )
        ),
    ] = "no"
    into: Annotated[str, Field(pattern=COLUMN, description="Column of the reward.")] = "reward"

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.text is None:
            check_prompt(self)
            if self.completion is None:
                raise ParamError("completion", "is missing: what is to be scored behind the prompt")
            return self
        for field in ("prompt", "messages", "system", "completion"):
            if getattr(self, field) is not None:
                raise ParamError(field, f"`{field}` and `text` are two ways; give one of them")
        return self


def _reward_task(params: RewardParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    if params.text is not None:
        read: dict[str, Any] = {"text": rendered["text"], "end": False}
    elif params.chat:
        answer = {"role": "assistant", "content": rendered["completion"]}
        read = {"messages": [*prompt_of(params, rendered)["messages"], answer]}
    else:
        read = {"text": rendered["prompt"] + rendered["completion"], "end": True}
    return read | {
        "label": params.label,
        "value": params.value,
        "max_length": params.max_length,
        "truncate": params.truncate,
    }


def _reward_shape(params: RewardParams, rows: list[Row], sample: int) -> list[Row]:
    names = dict(zip(("reward", "truncated"), _reward_adds(params), strict=False))
    return [{name: row[key] for key, name in names.items()} for row in rows]


def _reward_adds(params: RewardParams) -> tuple[str, ...]:
    return (params.into, *((f"{params.into}_truncated",) if params.truncate != "no" else ()))


def _reward_aggregate(params: RewardParams, rows: list[Row]) -> list[Row]:
    rewards = [row[params.into] for row in rows]
    found = statistics.mean(rewards)
    spread = statistics.rounded(statistics.deviation(rewards))
    return [
        {"n": found.n, "mean": found.value, "std": spread}
        | {"ci_low": found.low, "ci_high": found.high, "method": found.method}
    ]


def named(prefix: str | None, column: str) -> str:
    return column if prefix is None else f"{prefix}_{column}"


def engine(params: Any) -> str:
    return f"transformers/{params.dtype}"


def exact(params: Any) -> bool:
    return bool(params.dtype == "float32")


REWARD = Operator(
    name="reward",
    version=1,
    summary="Score each row by a reward model, or by one label of a classifier.",
    params=RewardParams,
    inputs={
        "rows": Port("table", "one text to score for each row"),
        "model": Port("model", "a sequence classifier, or the base of an adapter that is one"),
        "adapter": Port(
            "adapter", "a LoRA adapter of the model, with the layer that scores", required=False
        ),
    },
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.reward_model:open_reward_model",
    preload=PRELOAD,
    templated=("prompt", "messages", "system", "completion", "text"),
    task=_reward_task,
    shape=_reward_shape,
    adds=_reward_adds,
    aggregate=_reward_aggregate,
    engine=engine,
    exact=exact,
    amounts=reading,
    flops_per_parameter=READING_FLOPS,
    max_batch=32,
)
