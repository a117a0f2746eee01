"""Operators on language models: `generate` writes, `choose` judges, `embed` measures.

What their tasks hold is normalised, so that two spellings of one question are one task:
a chat prompt becomes its messages, greedy decoding forgets seed and sample, and where a
result goes (`into`) is no part of the work. `runtimes/language_model.py` and
`runtimes/embedder.py` carry them out.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowmesh.operators.amounts import READING_FLOPS, of_tokens, prompt_parts, prompt_tokens
from flowmesh.spec.action import Bound
from flowmesh.spec.operator import Amounts, Determinism, Operator, ParamError, Params, Port
from flowmesh.spec.prefixes import estimated_tokens

NumericFormat = Literal["float32", "bfloat16"]
Role = Literal["system", "user", "assistant"]

COLUMN = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
DTYPE = "Numeric format of the model; results are independent of the batch in float32 only."

_ROWS = Port("table", "one prompt for each row")
LANGUAGE_MODEL = Port("model", "a causal language model: a directory with safetensors weights")
ADAPTER = Port(
    "adapter",
    "a LoRA adapter of that model; rows of different adapters share batches and the base",
    required=False,
)
_TOKEN_COLUMNS = ("prompt_tokens", "completion_tokens")
PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Annotated[Role, Field(description="Who speaks.")]
    content: Annotated[str, Field(description="Template over the row's columns.")]


class Prompted(Params):
    """What `generate` and `choose` share: how a row becomes a prompt."""

    prompt: Annotated[
        str | None, Field(description="Template of the prompt; a chat's one user turn.")
    ] = None
    messages: Annotated[
        list[Message] | None,
        Field(description="Templates of a whole chat, in place of `prompt`.", min_length=1),
    ] = None
    system: Annotated[
        str | None, Field(description="Template of a chat's system message, put first.")
    ] = None
    chat: Annotated[
        bool,
        Field(description="Apply the model's chat template; false continues `prompt` as it is."),
    ] = True
    dtype: Annotated[NumericFormat, Field(description=DTYPE)] = "float32"

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        check_prompt(self)
        return self


def check_prompt(params: Prompted) -> None:
    """Raise ParamError unless the parameters say in one way how a row becomes a prompt."""
    if (params.prompt is None) == (params.messages is None):
        raise ParamError("prompt", "give either `prompt` or `messages`, and not both")
    if not params.chat:
        for field in ("messages", "system"):
            if getattr(params, field) is not None:
                raise ParamError(field, f"`{field}` needs a chat; remove it or `chat: false`")
    if params.system is not None and any(m.role == "system" for m in params.messages or ()):
        raise ParamError("system", "`messages` has a system message already; keep one of them")


class GenerateParams(Prompted):
    """Write a continuation, or several, for each row."""

    samples: Annotated[
        int, Field(ge=1, le=1024, description="Answers, and so output rows, for each input row.")
    ] = 1
    max_tokens: Annotated[
        int, Field(ge=1, le=32768, description="Most tokens to generate for an answer.")
    ] = 128
    temperature: Annotated[
        float, Field(ge=0, le=10, description="0 takes the likeliest token; above 0 draws.")
    ] = 0.0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="Draw from the likeliest tokens of this total probability."),
    ] = 1.0
    top_k: Annotated[
        int, Field(ge=0, le=2**31 - 1, description="Draw from this many tokens; 0 for all.")
    ] = 0
    seed: Annotated[
        int | None,
        Field(ge=0, le=2**63 - 1, description="Fixes every draw; without it each run has others."),
    ] = None
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...],
        Field(max_length=16, description="Strings that end an answer; they are cut off."),
    ] = ()
    logprobs: Annotated[
        bool, Field(description="Add the column `logprobs`: tokens and their log-probabilities.")
    ] = False
    tokens: Annotated[
        bool,
        Field(
            description="Add the columns `prompt_tokens` and `completion_tokens`: lists of token "
            "ids, with the one that ended the answer."
        ),
    ] = False
    into: Annotated[str, Field(pattern=COLUMN, description="Column of the answer.")] = "completion"

    @model_validator(mode="after")
    def _distinct_columns(self) -> Self:
        if self.into in ("sample", "finish_reason", "logprobs", *_TOKEN_COLUMNS):
            raise ParamError("into", f"`{self.into}` is a column that generate adds itself")
        return self


class ChooseParams(Prompted):
    """Have the model pick one of the given answers for each row."""

    choices: Annotated[
        list[str],
        Field(min_length=2, max_length=64, description="Templates of the answers to pick from."),
    ]
    normalise: Annotated[
        Literal["none", "length"],
        Field(description="`length` compares log-probabilities per token, not in total."),
    ] = "none"
    into: Annotated[
        str,
        Field(
            pattern=COLUMN,
            description="Column of the choice; `<into>_probability` and `_probabilities` go along.",
        ),
    ] = "choice"

    @model_validator(mode="after")
    def _distinct_choices(self) -> Self:
        twice = {choice for choice in self.choices if self.choices.count(choice) > 1}
        if twice:
            raise ParamError("choices", f"choice {min(twice)!r} is listed more than once")
        if "" in self.choices:
            raise ParamError("choices", "an empty choice can not be scored")
        return self


class EmbedParams(Params):
    """Turn a text of each row into a vector."""

    text: Annotated[str, Field(description="Template of the text.")]
    normalize: Annotated[bool, Field(description="Scale vectors to length 1.")] = True
    truncate: Annotated[
        bool,
        Field(description="Cut a text to what the model can read; false fails its row."),
    ] = True
    dtype: Annotated[NumericFormat, Field(description=DTYPE)] = "float32"
    into: Annotated[str, Field(pattern=COLUMN, description="Column of the vector.")] = "embedding"


def prompt_of(params: Prompted, rendered: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt in its one spelling: `messages` for a chat, `prompt` for plain text."""
    if not params.chat:
        return {"prompt": rendered["prompt"]}
    turns = [{"role": "system", "content": rendered["system"]}] if params.system is not None else []
    if params.messages is None:
        turns.append({"role": "user", "content": rendered["prompt"]})
    else:
        turns += [{"role": m["role"], "content": m["content"]} for m in rendered["messages"]]
    return {"messages": turns}


def _generate_task(
    params: GenerateParams, rendered: Mapping[str, Any], sample: int
) -> dict[str, Any]:
    task = prompt_of(params, rendered) | {
        "max_tokens": params.max_tokens,
        "stop": sorted(set(params.stop)),
        "logprobs": params.logprobs,
        "temperature": params.temperature,
    }
    if params.temperature > 0:
        task |= {
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": params.seed,
            "sample": sample,
        }
    if params.tokens:  # Only then: a task keeps the name that it had before this could be asked.
        task["tokens"] = True
    return task


def _generate_shape(
    params: GenerateParams, rows: list[dict[str, Any]], sample: int
) -> list[dict[str, Any]]:
    shaped = []
    for row in rows:
        columns = {params.into: row["text"]}
        if params.samples > 1:
            columns["sample"] = sample
        columns["finish_reason"] = row["finish_reason"]
        if params.logprobs:
            columns["logprobs"] = row["logprobs"]
        if params.tokens:
            columns |= {name: row[name] for name in _TOKEN_COLUMNS}
        shaped.append(columns)
    return shaped


def _generate_adds(params: GenerateParams) -> tuple[str, ...]:
    sample = ("sample",) if params.samples > 1 else ()
    logprobs = ("logprobs",) if params.logprobs else ()
    tokens = _TOKEN_COLUMNS if params.tokens else ()
    return (params.into, *sample, "finish_reason", *logprobs, *tokens)


def _generate_determinism(params: GenerateParams) -> Determinism:
    return "sampled" if params.temperature > 0 and params.seed is None else "pure"


def _generate_samples(params: GenerateParams) -> int:
    return params.samples


def _choose_task(params: ChooseParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    return prompt_of(params, rendered) | {
        "choices": list(rendered["choices"]),
        "normalise": params.normalise,
    }


def _choose_shape(
    params: ChooseParams, rows: list[dict[str, Any]], sample: int
) -> list[dict[str, Any]]:
    names = dict(zip(("choice", "probability", "probabilities"), _choose_adds(params), strict=True))
    return [{names[key]: row[key] for key in names} for row in rows]


def _choose_adds(params: ChooseParams) -> tuple[str, ...]:
    return (params.into, f"{params.into}_probability", f"{params.into}_probabilities")


def _embed_task(params: EmbedParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    return {
        "text": rendered["text"],
        "normalize": params.normalize,
        "truncate": params.truncate,
    }


def _embed_shape(
    params: EmbedParams, rows: list[dict[str, Any]], sample: int
) -> list[dict[str, Any]]:
    return [{params.into: row["embedding"]} for row in rows]


def _embed_adds(params: EmbedParams) -> tuple[str, ...]:
    return (params.into,)


def _engine(params: GenerateParams | ChooseParams | EmbedParams) -> str:
    return f"transformers/{params.dtype}"


def _exact(params: Any) -> bool:
    return bool(params.dtype == "float32")


def _generate_amounts(task: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    return of_tokens(prompt_tokens(task), int(task["max_tokens"]), prompt_parts(task))


def _choose_amounts(task: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    choices = task["choices"]
    read = prompt_tokens(task) + estimated_tokens(*choices) + len(choices)
    return of_tokens(read, prompt=prompt_parts(task))


def _embed_amounts(task: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    return of_tokens(estimated_tokens(task["text"]))


GENERATE = Operator(
    name="generate",
    version=2,
    summary="Write text with a language model: chat or plain, one or several samples a row.",
    params=GenerateParams,
    inputs={"rows": _ROWS, "model": LANGUAGE_MODEL, "adapter": ADAPTER},
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.language_model:open_language_model",
    preload=PRELOAD,
    templated=("prompt", "messages", "system"),
    samples=_generate_samples,
    task=_generate_task,
    shape=_generate_shape,
    adds=_generate_adds,
    determinism=_generate_determinism,
    engine=_engine,
    exact=_exact,
    amounts=_generate_amounts,
    flops_per_parameter=READING_FLOPS,
    shares_prefixes=True,
    max_batch=32,
)

CHOOSE = Operator(
    name="choose",
    version=2,
    summary="Pick one of given answers by the probability a language model gives to each.",
    params=ChooseParams,
    inputs={"rows": _ROWS, "model": LANGUAGE_MODEL, "adapter": ADAPTER},
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.language_model:open_language_model",
    preload=PRELOAD,
    templated=("prompt", "messages", "system", "choices"),
    task=_choose_task,
    shape=_choose_shape,
    adds=_choose_adds,
    engine=_engine,
    exact=_exact,
    amounts=_choose_amounts,
    flops_per_parameter=READING_FLOPS,
    shares_prefixes=True,
    max_batch=32,
)

EMBED = Operator(
    name="embed",
    version=1,
    summary="Turn a text of each row into a vector, for search and comparison.",
    params=EmbedParams,
    inputs={
        "rows": Port("table", "one text for each row"),
        "model": Port("model", "an encoder: a directory with safetensors weights and pooling"),
    },
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.embedder:open_embedder",
    preload=(*PRELOAD, "transformers.models.bert.modeling_bert"),
    templated=("text",),
    task=_embed_task,
    shape=_embed_shape,
    adds=_embed_adds,
    engine=_engine,
    exact=_exact,
    amounts=_embed_amounts,
    flops_per_parameter=READING_FLOPS,
    max_batch=64,
)
