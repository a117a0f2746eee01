"""A small catalog for tests of the language: each operator shows one thing that real ones do."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowmesh.spec.operator import Operator, ParamError, Params, Port

ROWS = Port("table", "rows to work on")
MODEL = Port("model", "a language model")


class Turn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user"]
    content: str


class WriteParams(Params):
    prompt: str | None = None
    messages: list[Turn] | None = None
    samples: Annotated[int, Field(ge=1, le=8)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    style: Literal["plain", "chat"] = "chat"
    stop: str | list[str] = ""
    keep: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0)] | Literal["all"] = 1
    into: str = "text"

    @model_validator(mode="after")
    def _one_prompt(self) -> "WriteParams":
        if (self.prompt is None) == (self.messages is None):
            raise ParamError("prompt", "give either `prompt` or `messages`")
        return self


def _write_task(params: WriteParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    task = {key: rendered[key] for key in ("prompt", "messages", "max_tokens", "temperature")}
    return task | ({"seed": params.seed, "sample": sample} if params.temperature > 0 else {})


class RenderParams(Params):
    template: str
    into: str = "rendered"


class CallParams(Params):
    url: str


class ScriptParams(Params):
    columns: list[str] | None = None


class QueryParams(Params):
    sql: str


def _query_columns(params: QueryParams, inputs: Mapping[str, Any]) -> dict[str, Any]:
    for name in inputs["tables"]:
        if name not in params.sql:
            raise ParamError("sql", f"the query does not use table {name!r}")
    return {"rows": None}


class JoinParams(Params):
    tag: str | None = None


class SplitParams(Params):
    parts: dict[str, Annotated[float, Field(gt=0)]]
    seed: int = 0


class TrainParams(Params):
    steps: int = 1


def _first(params: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"rows": inputs["tables"][0]}


def _parts(params: SplitParams, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(params.parts, inputs["rows"])


class ScoreParams(Params):
    threshold: float = 0.5
    into: str = "score"


def _mean(params: ScoreParams, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = [row[params.into] for row in rows]
    return [{"mean": sum(scores) / len(scores) if scores else None, "count": len(scores)}]


class TuneParams(Params):
    steps: int = 1
    seed: Annotated[int, Field(ge=0, le=50)] = 0


def _operator(
    name: str, params: type[Params], grain: Literal["row", "whole"], **more: Any
) -> Operator:
    return Operator(
        name=name,
        version=1,
        summary=f"{name} for tests",
        params=params,
        grain=grain,
        runtime="tests",
        entry="tests:open",
        **more,
    )


CATALOG: Mapping[str, Operator] = {
    operator.name: operator
    for operator in (
        _operator(
            "write",
            WriteParams,
            "row",
            inputs={"rows": ROWS, "model": MODEL},
            templated=("prompt", "messages"),
            samples=lambda params: params.samples,
            task=_write_task,
            shape=lambda params, rows, sample: [
                {params.into: row["text"], "sample": sample} for row in rows
            ],
            adds=lambda params: (params.into, "sample"),
            determinism=lambda params: (
                "sampled" if params.temperature > 0 and params.seed is None else "pure"
            ),
            engine=lambda params: "fake/float32",
            work=lambda task: float(task["max_tokens"]),
        ),
        _operator(
            "render",
            RenderParams,
            "row",
            inputs={"rows": ROWS},
            templated=("template",),
            task=lambda params, rendered, sample: {"template": rendered["template"]},
            adds=lambda params: (params.into,),
        ),
        _operator(
            "call",
            CallParams,
            "row",
            inputs={"rows": ROWS},
            templated=("url",),
            adds=lambda params: ("status",),
            determinism=lambda params: "effect",
        ),
        _operator(
            "script",
            ScriptParams,
            "row",
            inputs={"rows": ROWS, "file": Port("file", "a function")},
            sees=lambda params: None if params.columns is None else tuple(params.columns),
            task=lambda params, rendered, sample: {},
            adds=lambda params: None,
        ),
        _operator(
            "query",
            QueryParams,
            "whole",
            inputs={"tables": Port("table", "tables by name", arity="map")},
            columns=_query_columns,
        ),
        _operator(
            "concat",
            JoinParams,
            "whole",
            inputs={
                "tables": Port("table", "tables in order", arity="list"),
                "like": Port("table", "a table with the columns to keep", required=False),
            },
            columns=_first,
        ),
        _operator(
            "split",
            SplitParams,
            "whole",
            inputs={"rows": ROWS},
            outputs=lambda params: dict.fromkeys(params.parts, "table"),
            columns=_parts,
        ),
        _operator(
            "train",
            TrainParams,
            "whole",
            inputs={"rows": ROWS, "base": Port("model", "where to start", required=False)},
            outputs=lambda params: {"weights": "tree"},
        ),
        _operator(
            "score",
            ScoreParams,
            "row",
            inputs={
                "rows": ROWS,
                "model": MODEL,
                "adapter": Port("adapter", "what adapts the model", required=False),
            },
            task=lambda params, rendered, sample: {"threshold": params.threshold},
            sees=lambda params: ("text",),
            adds=lambda params: (params.into,),
            aggregate=_mean,
        ),
        _operator(
            "answer",
            WriteParams,
            "row",
            inputs={
                "rows": ROWS,
                "model": MODEL,
                "adapter": Port("adapter", "what adapts the model", required=False),
            },
            templated=("prompt", "messages"),
            task=_write_task,
            adds=lambda params: (params.into,),
            engine=lambda params: "fake/float32",
        ),
        _operator(
            "tune",
            TuneParams,
            "whole",
            inputs={
                "data": Port("table", "what to learn from"),
                "model": MODEL,
                "adapter": Port("adapter", "where to go on", required=False),
            },
            outputs=lambda params: {"adapter": "adapter", "metrics": "table"},
            columns=lambda params, inputs: {"metrics": ("step", "loss")},
        ),
        _operator(
            "merge",
            TrainParams,
            "whole",
            inputs={"model": MODEL, "adapter": Port("adapter", "what to merge into it")},
            outputs=lambda params: {"model": "model"},
        ),
    )
}
