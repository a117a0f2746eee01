"""`evaluate`: how good a language model is at what the rows hold, by one of four measures.

Each row gets columns of its measure and a `score`, the higher the better, so that two
evaluations can be compared row by row (`compare`). The aggregate says it of all rows.
`runtimes/scorer.py` carries it out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flowmesh.operators import statistics
from flowmesh.operators.amounts import READING_FLOPS, reading
from flowmesh.operators.generate import (
    ADAPTER,
    COLUMN,
    LANGUAGE_MODEL,
    PRELOAD,
    Prompted,
    check_prompt,
    prompt_of,
)
from flowmesh.operators.judge import Versus, check_pair, judged_pairs, pair_task
from flowmesh.operators.scoring import PREFIX, Row, engine, exact, named
from flowmesh.spec.operator import Operator, ParamError, Port

Metric = Literal["perplexity", "exact_match", "choice_accuracy", "win_rate"]
Ignored = Literal["whitespace", "case", "punctuation", "articles"]

_PROMPT = ("prompt", "messages", "system", "chat")
_PAIR = ("first", "second", "question", "criterion", "labels", "layout", "method", "invalid")
#: Parameters that each measure needs, and those that it may have beside.
_OF_METRIC: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "perplexity": ((), ("text", "completion", *_PROMPT)),
    "exact_match": (("reference",), ("match", "ignore", "max_tokens", "stop", *_PROMPT)),
    "choice_accuracy": (("choices", "answer"), ("normalise", *_PROMPT)),
    "win_rate": (("first", "second"), ("max_tokens", "system", "chat", *_PAIR)),
}
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("score", "nll", "tokens", "perplexity"),
    "exact_match": ("score", "correct", "completion"),
    "choice_accuracy": ("score", "correct", "choice", "probability"),
    "win_rate": ("score", "winner", "preference", "consistent"),
}


class EvaluateParams(Versus, Prompted):
    """Measure a language model on each row, and on all of them with a confidence interval."""

    metric: Annotated[
        Metric,
        Field(
            description=(
                "`perplexity` of `completion` behind the prompt, or of `text`; `exact_match` of the"
                " model's greedy answer with `reference`; `choice_accuracy`: whether it finds"
                " `answer` the likeliest of `choices`; `win_rate` of `first` over `second`, judged"
                " by it as `judge` does."
            )
        ),
    ]
    completion: Annotated[
        str | None, Field(description="perplexity: template of the text behind the prompt.")
    ] = None
    text: Annotated[
        str | None, Field(description="perplexity: template of a whole text, without a prompt.")
    ] = None
    reference: Annotated[
        str | None, Field(description="exact_match: template of the right answer.")
    ] = None
    match: Annotated[
        Literal["equal", "contains"],
        Field(description="exact_match: the answer is the reference, or it holds it somewhere."),
    ] = "equal"
    ignore: Annotated[
        list[Ignored],
        Field(
            description=(
                "exact_match: differences that do not count: in white space, in case, in"
                " punctuation, in the words a, an and the."
            )
        ),
    ] = ["whitespace", "case", "punctuation"]  # noqa: RUF012 (pydantic copies it)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]],
        Field(max_length=16, description="exact_match: strings that end an answer; cut off."),
    ] = []  # noqa: RUF012 (pydantic copies it)
    choices: Annotated[
        list[str] | None,
        Field(min_length=2, max_length=64, description="choice_accuracy: templates of answers."),
    ] = None
    answer: Annotated[
        str | None,
        Field(description="choice_accuracy: template of the right one, equal to one of `choices`."),
    ] = None
    normalise: Annotated[
        Literal["none", "length"],
        Field(description="choice_accuracy: `length` compares log-probabilities per token."),
    ] = "none"
    max_tokens: Annotated[
        int, Field(ge=1, le=32768, description="Most tokens to generate for an answer.")
    ] = 128
    into: Annotated[str | None, Field(pattern=COLUMN, description=PREFIX)] = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        needed, allowed = _OF_METRIC[self.metric]
        for field in needed:
            if getattr(self, field) is None:
                raise ParamError(field, f"is missing: `metric: {self.metric}` needs it")
        for field in sorted(self.model_fields_set - {"metric", "dtype", "into", *needed, *allowed}):
            raise ParamError(field, f"has no meaning for `metric: {self.metric}`; remove it")
        if self.metric == "win_rate":
            check_pair(self)
            if self.system is not None and not self.chat:
                raise ParamError("system", "`system` needs a chat; remove it or `chat: false`")
        elif self.text is None:
            check_prompt(self)
        self._check_completion()
        return self

    def _check_completion(self) -> None:
        if self.metric != "perplexity":
            return
        if self.text is None and self.completion is None:
            raise ParamError("completion", "is missing: the text behind the prompt; or give `text`")
        for field in (*_PROMPT, "completion"):
            if self.text is not None and field in self.model_fields_set:
                raise ParamError(field, f"`{field}` and `text` are two ways; give one of them")


def _task(params: EvaluateParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    task: dict[str, Any] = {"kind": params.metric}
    if params.metric == "win_rate":
        system = rendered["system"] if params.chat else None
        pair = pair_task(params, rendered)
        return task | {"kind": "pairwise", "chat": params.chat, "system": system, **pair}
    if params.text is not None:
        return task | {"text": rendered["text"]}
    task |= prompt_of(params, rendered)
    match params.metric:
        case "perplexity":
            task |= {"completion": rendered["completion"]}
        case "exact_match":
            task |= {
                "reference": rendered["reference"],
                "match": params.match,
                "ignore": sorted(set(params.ignore)),
                "max_tokens": params.max_tokens,
                "stop": sorted(set(params.stop)),
            }
        case "choice_accuracy":
            choices = list(rendered["choices"])
            task |= {"choices": choices, "answer": rendered["answer"]}
            task |= {"normalise": params.normalise}
    return task


def _shape(params: EvaluateParams, rows: list[Row], sample: int) -> list[Row]:
    columns = _COLUMNS[params.metric]
    return [{named(params.into, column): row[column] for column in columns} for row in rows]


def _adds(params: EvaluateParams) -> tuple[str, ...]:
    return tuple(named(params.into, column) for column in _COLUMNS[params.metric])


def _aggregate(params: EvaluateParams, rows: list[Row]) -> list[Row]:
    def column(name: str) -> list[Any]:
        return [row[named(params.into, name)] for row in rows]

    match params.metric:
        case "perplexity":
            found = statistics.perplexity(column("nll"), column("tokens"))
        case "win_rate":
            found = judged_pairs(column("winner"))
        case _:
            found = statistics.rate(sum(column("score")), len(rows))
    return [
        {"metric": params.metric, "n": found.n, "value": found.value}
        | {"ci_low": found.low, "ci_high": found.high, "method": found.method}
    ]


EVALUATE = Operator(
    name="evaluate",
    version=2,
    summary="Measure a language model: perplexity, exact match, choice accuracy or win rate.",
    params=EvaluateParams,
    inputs={
        "rows": Port("table", "one text, question or pair for each row"),
        "model": LANGUAGE_MODEL,
        "adapter": ADAPTER,
    },
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.scorer:open_scorer",
    preload=PRELOAD,
    templated=(
        *("prompt", "messages", "system", "completion", "text", "reference", "choices", "answer"),
        *("first", "second", "question", "criterion"),
    ),
    task=_task,
    shape=_shape,
    adds=_adds,
    aggregate=_aggregate,
    engine=engine,
    exact=exact,
    amounts=reading,
    flops_per_parameter=READING_FLOPS,
    max_batch=32,
)
