"""The submitted document: one model behind YAML, JSON and the Python builder.

What can be said about a document alone is checked here: names, types, limits. What its
steps mean to each other and to their operators is checked in `graph.py`.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from flowmesh.base.digest import Digest
from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Positions, read
from flowmesh.spec.messages import by_path, in_words, shown

LANGUAGE_VERSION = 1
STEPS_LIMIT = 1000
MATRIX_LIMIT = 1000
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"
NAME_RULE = (
    "a name starts with a letter and goes on with letters, digits, `_` and `-`, 63 in all at most"
)
#: Name of a model registered by `flowmesh models add`, or of a sharing domain.
REGISTERED_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Plain = StrictBool | StrictInt | float | StrictStr
Share = Literal["domain", "tenant", "run", "never"]
OnError = Literal["fail", "skip", "quarantine"]
ForPeople = Annotated[str, Field(description="For people.")]


class Part(BaseModel):
    """Base of every part of the document: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TableInput(Part):
    """A table from a JSONL, JSON, CSV or Parquet file; `file` is the one used by default."""

    type: Annotated[Literal["table"], Field(description="This is a table.")]
    file: Annotated[
        str | None,
        Field(
            description=(
                "JSONL, JSON, CSV, TSV or Parquet; relative to the document. Used unless"
                " `--input` gives another; needed if it does not."
            )
        ),
    ] = None
    columns: Annotated[
        tuple[str, ...] | None, Field(description="Columns that the table must have.")
    ] = None
    description: ForPeople = ""


class FileInput(Part):
    """Any file; `file` is the one used by default."""

    type: Annotated[Literal["file"], Field(description="This is a file.")]
    file: Annotated[
        str | None,
        Field(description="Relative to the document; used unless `--input` gives another."),
    ] = None
    description: ForPeople = ""


class PlainInput(Part):
    """A value; set by `--set name=value`, and needed where it has no default."""

    type: Annotated[Literal["string", "int", "float", "bool"], Field(description="Kind of value.")]
    default: Annotated[
        Plain | None,
        Field(description="Used unless `--set` gives another; without one the input is required."),
    ] = None
    min: Annotated[StrictInt | float | None, Field(description="Least value, of numbers.")] = None
    max: Annotated[StrictInt | float | None, Field(description="Greatest value, of numbers.")] = (
        None
    )
    choices: Annotated[
        Annotated[tuple[Plain, ...], Field(min_length=1)] | None,
        Field(description="The only values allowed."),
    ] = None
    description: ForPeople = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> "PlainInput":
        if self.type not in ("int", "float") and (self.min is not None or self.max is not None):
            raise ValueError(f"`min` and `max` are for numbers, not for type {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` {self.min} is greater than `max` {self.max}")
        for choice in self.choices or ():
            if wrong := self._wrong_type(choice):
                raise ValueError(f"choice: {wrong}")
        if self.default is not None and (wrong := self.refusal(self.default)):
            raise ValueError(f"default: {wrong}")
        return self

    def _wrong_type(self, value: Any) -> str:
        expected, right = {
            "string": ("text", isinstance(value, str) and _is_unicode(value)),
            "int": ("a whole number", isinstance(value, int) and not isinstance(value, bool)),
            "float": (
                "a number",
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value),
            ),
            "bool": ("true or false", isinstance(value, bool)),
        }[self.type]
        return "" if right else f"expected {expected}, found {shown(value)}"

    def refusal(self, value: Any) -> str:
        """Why this input does not take a value, or nothing if it does."""
        if wrong := self._wrong_type(value):
            return wrong
        if self.min is not None and value < self.min:
            return f"must be at least {self.min}, found {shown(value)}"
        if self.max is not None and value > self.max:
            return f"must be at most {self.max}, found {shown(value)}"
        if self.choices is not None and value not in self.choices:
            known = ", ".join(shown(choice) for choice in self.choices)
            return f"must be one of {known}, found {shown(value)}"
        return ""


def _is_unicode(text: str) -> bool:
    """A command line may hold bytes that are no text; Python passes them on as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Input = Annotated[TableInput | FileInput | PlainInput, Field(discriminator="type")]


class ModelSource(Part):
    """Where a model's files come from: exactly one source."""

    package: Annotated[
        str | None, Field(description="A Python package on this machine that holds the files.")
    ] = None
    path: Annotated[str | None, Field(description="A directory or GGUF file.")] = None
    hub: Annotated[str | None, Field(description="A name on the hub; needs `revision`.")] = None
    revision: Annotated[str | None, Field(description="Of `hub`: a commit, 40 hex digits.")] = None
    digest: Annotated[str | None, Field(description="A tree in the store.")] = None
    name: Annotated[str | None, Field(description="As in `flowmesh models`.")] = None

    @field_validator("revision")
    @classmethod
    def _is_pinned(cls, revision: str | None) -> str | None:
        if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(
                f"{shown(revision)} does not fix the weights; give a commit, 40 hex digits"
            )
        return revision

    @field_validator("digest")
    @classmethod
    def _is_a_digest(cls, digest: str | None) -> str | None:
        return None if digest is None else str(Digest.parse(digest))

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(REGISTERED_PATTERN, name):
            raise ValueError(f"{shown(name)} cannot be the name of a registered model")
        return name

    @model_validator(mode="after")
    def _has_one_source(self) -> "ModelSource":
        sources = ("package", "path", "hub", "digest", "name")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(sources)}; found {found}")
        if self.hub is not None and self.revision is None:
            raise ValueError("`hub` needs `revision`, the commit (40 hex digits) to use")
        if self.hub is None and self.revision is not None:
            raise ValueError(f"`revision` goes with `hub`, not with `{given[0]}`")
        return self


class Step(Part):
    """One node: an operator, what all steps may say, and the operator's ports and parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    op: Annotated[str, Field(description="The operator.")]
    when: Annotated[
        str | None, Field(description="Condition; the step is skipped where it does not hold.")
    ] = None
    matrix: Annotated[
        dict[Name, Annotated[list[Plain], Field(min_length=1)]] | None,
        Field(min_length=1, description="One step for each combination of these values."),
    ] = None
    on_error: Annotated[OnError, Field(description="What a failed row does to the step.")] = "fail"
    share: Annotated[Share | None, Field(description="Who may share this step's work.")] = None
    reuse: Annotated[
        Literal["samples"] | None, Field(description="Accept samples drawn before.")
    ] = None
    numerics: Annotated[
        Literal["exact"] | None, Field(description="Only engines with exact results.")
    ] = None

    @field_validator("matrix")
    @classmethod
    def _is_small(cls, matrix: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        if matrix is None:
            return None
        combinations = math.prod(len(values) for values in matrix.values())
        if combinations > MATRIX_LIMIT:
            raise ValueError(f"has {combinations} combinations; the limit is {MATRIX_LIMIT}")
        for name, values in matrix.items():
            if len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f"{name!r} holds a value twice")
        return matrix

    @property
    def settings(self) -> dict[str, Any]:
        """Ports and parameters of the operator, as written."""
        return dict(self.model_extra or {})


#: Keys of a step that are not its operator's.
RESERVED = tuple(Step.model_fields)


class Workflow(Part):
    """A workflow: inputs, models, steps that name each other's outputs, and named outputs."""

    flowmesh: Annotated[Literal[1], Field(description="Version of the language.")]
    name: Annotated[Name, Field(description="Shown in listings.")] = "workflow"
    description: ForPeople = ""
    share: Annotated[
        Share, Field(description="Who may share this run's work, unless a step says otherwise.")
    ] = "domain"
    priority: Annotated[
        StrictInt,
        Field(
            ge=-100,
            le=100,
            description="Every 10 points double the worth of the run's work to the scheduler.",
        ),
    ] = 0
    domain: Annotated[
        str | None,
        Field(pattern=REGISTERED_PATTERN, description="Sharing domain; the server's by default."),
    ] = None
    inputs: Annotated[
        dict[Name, Input], Field(description="What changes from run to run, by name.")
    ] = {}
    models: Annotated[
        dict[Name, ModelSource], Field(description="Models, by the name that steps use.")
    ] = {}
    steps: Annotated[
        dict[Name, Step],
        Field(
            min_length=1,
            max_length=STEPS_LIMIT,
            description="The steps, by name, in any order.",
        ),
    ]
    outputs: Annotated[
        dict[Name, str],
        Field(description="Name to `${steps.STEP}` or `${steps.STEP.PORT}`: what the run is for."),
    ] = {}


def load(text: str | bytes, file: str = "") -> tuple[Workflow, Positions]:
    """Read a document. Raises SpecError with every problem found."""
    data, positions = read(text, file)
    return parse(data, positions), positions


def parse(data: Any, positions: Positions | None = None) -> Workflow:
    """Check plain data. Raises SpecError with every problem found."""
    positions = positions or Positions()
    if problem := _not_ours(data, positions):
        raise SpecError(problem)
    try:
        return Workflow.model_validate(data)
    except ValidationError as error:
        raise SpecError(*_problems(data, error, positions)) from None


def _not_ours(data: Any, positions: Positions) -> Problem | None:
    """Why this is no document of this version of the language, if it is not."""
    first = f"a workflow's first key is `flowmesh: {LANGUAGE_VERSION}`"
    if data is None:
        return positions.problem(f"the document is empty; {first}")
    if not isinstance(data, dict):
        return positions.problem(f"the document is not a mapping of keys to values; {first}")
    if "flowmesh" not in data:
        key = next(iter(data), "")
        return positions.problem(f"{first}, found {key!r}" if key else f"{first}, found nothing")
    version = data["flowmesh"]
    if version != LANGUAGE_VERSION or isinstance(version, bool | float):
        message = f"version {shown(version)} of the language is unknown; known: {LANGUAGE_VERSION}"
        return positions.problem(message, "flowmesh")
    if next(iter(data)) != "flowmesh":
        return positions.problem(f"{first}; move it to the top", "flowmesh")
    return None


def _problems(data: Any, error: ValidationError, positions: Positions) -> list[Problem]:
    found: list[Problem] = []
    for path, errors in by_path(data, error.errors(include_url=False)).items():
        found += (positions.problem(message, *path) for message in _messages(path, errors))
    return sorted(found, key=lambda problem: (problem.line, problem.column))


def _messages(path: tuple[str, ...], errors: list[ErrorDetails]) -> list[str]:
    kinds = {error["type"] for error in errors}
    if "[key]" in errors[0]["loc"]:
        return [f"{path[-1]!r} is not a name; {NAME_RULE}"]
    if "extra_forbidden" in kinds:
        known = _known_keys(path, errors[0])
        return [f"unknown key {path[-1]!r}{nearest(path[-1], known)}"]
    if "missing" in kinds:
        return [f"key {str(error['loc'][-1])!r} is missing" for error in errors]
    if "union_tag_not_found" in kinds:
        return ["key 'type' is missing: table, file, string, int, float or bool"]
    return [in_words(errors)]


def _known_keys(path: tuple[str, ...], error: ErrorDetails) -> list[str]:
    models: dict[str, type[Part]] = {"models": ModelSource, "table": TableInput, "file": FileInput}
    if len(path) == 1:
        return list(Workflow.model_fields)
    kind = str(error["loc"][2]) if path[0] == "inputs" else path[0]
    return list(models.get(kind, PlainInput).model_fields)
