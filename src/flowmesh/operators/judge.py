"""`judge`: a language model compares two answers of each row, or grades one.

What a judge reads is made on the worker from a `layout`, a template over the parts of the
question, so that a pair can be laid out in both orders. `evaluate` judges pairs by the same.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flowmesh.base.nearest import nearest
from flowmesh.operators import statistics
from flowmesh.operators.amounts import READING_FLOPS, reading
from flowmesh.operators.generate import (
    ADAPTER,
    COLUMN,
    DTYPE,
    LANGUAGE_MODEL,
    PRELOAD,
    NumericFormat,
)
from flowmesh.operators.scoring import PREFIX, Row, engine, exact, named
from flowmesh.spec.operator import Operator, ParamError, Params, Port
from flowmesh.spec.templates import columns_named

#: Most words of a scale.
_MOST_WORDS = 32
_NUMBERS = re.compile(r"(\d{1,6})-(\d{1,6})")

PAIRWISE_LAYOUT = """\
{% if question %}Question: {{ question }}

{% endif %}Answer {{ labels[0] }}: {{ first }}

Answer {{ labels[1] }}: {{ second }}

{{ criterion }} """
PAIRWISE_ENDS = {
    "choose": "Reply with {{ labels[0] }} or {{ labels[1] }} only.",
    "generate": 'Think briefly. End with a line "Verdict: {{ labels[0] }}", '
    '"Verdict: {{ labels[1] }}" or "Verdict: tie".',
}
CRITERION = "Which answer is more correct and more helpful?"
RUBRIC_LAYOUT = """\
{{ rubric }}

{% if question %}Question: {{ question }}
{% endif %}Answer: {{ answer }}
"""
RUBRIC_ENDS = {
    "choose": "Grade ({{ words }}):",
    "generate": 'Think briefly. End with a line "Verdict: ...", one of {{ words }}.',
}
RUBRIC = "You grade answers."
#: Behind our rubric where only the grade is asked for.
ONE_WORD = " You reply with one word."
ONE_NUMBER = " You reply with one number, the higher the better."


class Versus(Params):
    """What comparing two answers of a row takes."""

    first: Annotated[str | None, Field(description="Template of the first answer.")] = None
    second: Annotated[str | None, Field(description="Template of the second answer.")] = None
    question: Annotated[
        str | None, Field(description="Template of what was asked; may be left out.")
    ] = None
    criterion: Annotated[
        str | None,
        Field(description=f"Template of what is asked of a pair: {CRITERION} if not given."),
    ] = None
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=40)]],
        Field(
            min_length=2,
            max_length=2,
            description="What the judge calls the two answers of a pair.",
        ),
    ] = ["A", "B"]  # noqa: RUF012 (pydantic copies it)
    layout: Annotated[
        str | None,
        Field(
            min_length=1,
            description=(
                "Template of all that the judge reads, in place of ours. Its names are not columns"
                " but `question`, `first`, `second`, `criterion` and `labels` for a pair, and"
                " `question`, `answer`, `rubric` and `words` for a rubric."
            ),
        ),
    ] = None
    method: Annotated[
        Literal["choose", "generate"],
        Field(
            description=(
                "`choose` compares the probabilities of the verdicts; `generate` has the model"
                " write, and reads its last line: `Verdict: ...`, or JSON with a key `verdict`."
            )
        ),
    ] = "choose"
    max_tokens: Annotated[
        int, Field(ge=1, le=32768, description="Most tokens to generate for an answer.")
    ] = 256
    invalid: Annotated[
        Literal["fail", "null"],
        Field(description="A verdict that can not be read fails its row, or is null."),
    ] = "fail"


class JudgeParams(Versus):
    """Have a language model compare two answers of each row, or grade one."""

    mode: Annotated[
        Literal["pairwise", "rubric"],
        Field(description="Compare `first` with `second`, or grade `answer` by `rubric`."),
    ]
    answer: Annotated[str | None, Field(description="Template of the answer to grade.")] = None
    rubric: Annotated[
        str | None,
        Field(
            description=(
                "Template of what the judge is told to look at, and what each grade means."
                f" If not given: {RUBRIC}{ONE_WORD}"
            )
        ),
    ] = None
    scale: Annotated[
        str | dict[str, float],
        Field(
            description=(
                "Grades: whole numbers as `1-5`; words from best (worth 1) to worst (worth 0) as"
                " `yes/no`; or a map of words to what they are worth."
            )
        ),
    ] = "Good/Bad"
    system: Annotated[str | None, Field(description="Template of the chat's system message.")] = (
        None
    )
    chat: Annotated[
        bool, Field(description="Apply the model's chat template; false continues the layout.")
    ] = True
    dtype: Annotated[NumericFormat, Field(description=DTYPE)] = "float32"
    into: Annotated[str | None, Field(pattern=COLUMN, description=PREFIX)] = None

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        needed, foreign = _OF_MODE[self.mode]
        for field in needed:
            if getattr(self, field) is None:
                raise ParamError(field, f"is missing: `mode: {self.mode}` needs it")
        for field in foreign:
            if field in self.model_fields_set:
                raise ParamError(field, f"has no meaning in `mode: {self.mode}`; remove it")
        if self.system is not None and not self.chat:
            raise ParamError("system", "`system` needs a chat; remove it or `chat: false`")
        if self.mode == "pairwise":
            check_pair(self)
        else:
            check_method(self)
            words = [word for word, _ in scale_of(self.scale)]
            check_words("scale", words, self.method)
            check_layout(self.layout, ("question", "answer", "rubric", "words"), ("answer",))
        return self


_OF_MODE = {
    "pairwise": (("first", "second"), ("answer", "rubric", "scale")),
    "rubric": (("answer",), ("first", "second", "criterion", "labels")),
}


def check_pair(params: Versus) -> None:
    """Raise ParamError for settings by which no pair can be judged."""
    check_method(params)
    check_words("labels", params.labels, params.method)
    names = ("question", "first", "second", "criterion", "labels")
    check_layout(params.layout, names, ("first", "second"))


def check_method(params: Versus) -> None:
    """Raise ParamError for settings of writing where nothing is written."""
    for field in ("max_tokens", "invalid"):
        if params.method == "choose" and field in params.model_fields_set:
            raise ParamError(field, "has no meaning for `method: choose`; remove it")


def check_words(field: str, words: Sequence[str], method: str) -> None:
    """Raise ParamError for words between which a verdict can not decide."""
    folded = [word.casefold() for word in words]
    for number, word in enumerate(folded):
        if word in folded[:number]:
            raise ParamError(field, f"{words[number]!r} is there twice")
        longer = [other for other in folded if other != word and other.startswith(word)]
        if longer and method == "choose":
            raise ParamError(
                field,
                f"{words[number]!r} begins {longer[0]!r} too, so their probabilities can not be"
                " compared; take other words, or `method: generate`",
            )


def check_layout(layout: str | None, names: Sequence[str], needed: Sequence[str]) -> None:
    """Raise ParamError for a layout that can not be read, or that leaves out what is judged."""
    if layout is None:
        return
    try:
        used = columns_named(layout)
    except ValueError as error:
        raise ParamError("layout", str(error)) from None
    for name in sorted(used - set(names)):
        raise ParamError("layout", f"names {name!r}, which it is not given{nearest(name, names)}")
    for name in needed:
        if name not in used:
            raise ParamError("layout", f"does not show what is judged: it lacks {{{{ {name} }}}}")


def scale_of(scale: str | Mapping[str, float]) -> list[tuple[str, float]]:
    """The words of a scale with what each is worth. Raises ParamError."""
    if not isinstance(scale, str):
        found = [(word, float(value)) for word, value in scale.items()]
    elif numbers := _NUMBERS.fullmatch(scale):
        low, high = int(numbers[1]), int(numbers[2])
        found = [(str(n), float(n)) for n in range(low, min(high, low + _MOST_WORDS) + 1)]
    else:
        words = [word.strip() for word in scale.split("/")]
        last = max(1, len(words) - 1)
        found = [(word, 1 - n / last) for n, word in enumerate(words)]
    if not 2 <= len(found) <= _MOST_WORDS or not all(word for word, _ in found):
        raise ParamError(
            "scale", f"takes 2 to {_MOST_WORDS} grades, as '1-5' or 'yes/no'; found {scale!r:.60}"
        )
    return found


def pair_task(params: Versus, rendered: Mapping[str, Any]) -> dict[str, Any]:
    """What a task of a judged pair holds beside system, chat and mode."""
    layout = params.layout or PAIRWISE_LAYOUT + PAIRWISE_ENDS[params.method]
    return _verdict_task(params) | {
        "layout": layout,
        "question": rendered["question"] or "",
        "first": rendered["first"],
        "second": rendered["second"],
        "criterion": CRITERION if params.criterion is None else rendered["criterion"],
        "labels": list(params.labels),
    }


def _verdict_task(params: Versus) -> dict[str, Any]:
    if params.method == "choose":
        return {"method": "choose"}
    return {"method": "generate", "max_tokens": params.max_tokens, "invalid": params.invalid}


def _rubric_task(params: JudgeParams, rendered: Mapping[str, Any]) -> dict[str, Any]:
    scale = scale_of(params.scale)
    numbers = all(word.isdigit() for word, _ in scale)
    ours = RUBRIC + (ONE_NUMBER if numbers else ONE_WORD) * (params.method == "choose")
    return _verdict_task(params) | {
        "layout": params.layout or RUBRIC_LAYOUT + RUBRIC_ENDS[params.method],
        "question": rendered["question"] or "",
        "answer": rendered["answer"],
        "rubric": ours if params.rubric is None else rendered["rubric"],
        "scale": [[word, value] for word, value in scale],
    }


def _judge_task(params: JudgeParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    parts = pair_task if params.mode == "pairwise" else _rubric_task
    return {
        "kind": params.mode,
        "chat": params.chat,
        "system": rendered["system"] if params.chat else None,
        **parts(params, rendered),
    }


def _judge_columns(params: JudgeParams) -> tuple[str, ...]:
    """What the engine's rows hold, in the order of the table's new columns."""
    written = ("reasoning",) if params.method == "generate" else ()
    if params.mode == "pairwise":
        return ("winner", "preference", "consistent", *written)
    return ("score", "verdict", *(written or ("probabilities",)))


def _judge_shape(params: JudgeParams, rows: list[Row], sample: int) -> list[Row]:
    columns = _judge_columns(params)
    return [{named(params.into, column): row[column] for column in columns} for row in rows]


def _judge_adds(params: JudgeParams) -> tuple[str, ...]:
    return tuple(named(params.into, column) for column in _judge_columns(params))


def judged_pairs(winners: Sequence[str | None]) -> statistics.Estimate:
    """How often the first of a pair wins; a tie is half a win, a null verdict is left out."""
    valid = [winner for winner in winners if winner is not None]
    return statistics.rate(valid.count("first") + valid.count("tie") / 2, len(valid))


def _judge_aggregate(params: JudgeParams, rows: list[Row]) -> list[Row]:
    def column(name: str) -> list[Any]:
        return [row[named(params.into, name)] for row in rows]

    if params.mode == "rubric":
        scores = [score for score in column("score") if score is not None]
        found = statistics.mean(scores)
        return [
            {"n": found.n, "score": found.value, "ci_low": found.low, "ci_high": found.high}
            | {"method": found.method, "invalid": len(rows) - found.n}
        ]
    winners = column("winner")
    found = judged_pairs(winners)
    agreed = [one for one in column("consistent") if one is not None]
    share = statistics.rounded(sum(agreed) / len(agreed)) if agreed else None
    counts = {name: winners.count(value) for name, value in _COUNTED.items()}
    return [
        {"n": found.n, "win_rate": found.value, "ci_low": found.low, "ci_high": found.high}
        | {"method": found.method, **counts, "consistency": share}
    ]


_COUNTED = {"wins": "first", "losses": "second", "ties": "tie", "invalid": None}


JUDGE = Operator(
    name="judge",
    version=2,
    summary="Have a language model compare two answers in both orders, or grade one by a rubric.",
    params=JudgeParams,
    inputs={
        "rows": Port("table", "one pair or one answer for each row"),
        "model": LANGUAGE_MODEL,
        "adapter": ADAPTER,
    },
    grain="row",
    runtime="transformers",
    entry="flowmesh.runtimes.scorer:open_scorer",
    preload=PRELOAD,
    templated=("first", "second", "question", "criterion", "answer", "rubric", "system"),
    task=_judge_task,
    shape=_judge_shape,
    adds=_judge_adds,
    aggregate=_judge_aggregate,
    engine=engine,
    exact=exact,
    amounts=reading,
    flops_per_parameter=READING_FLOPS,
    max_batch=32,
)
