"""The submitted document: one model behind YAML, JSON and the Python builder.

What can be said about a document alone is checked here: names, types, limits. What its
steps mean to each other and to their operators is checked in `graph.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, ValidationError
from pydantic_core import ErrorDetails

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Positions, read
from flowmesh.spec.inputs import (
    NAME_PATTERN,
    NAME_RULE,
    FileInput,
    ForPeople,
    Input,
    ModelSource,
    Name,
    Part,
    PlainInput,
    TableInput,
)
from flowmesh.spec.limits import BudgetUsd, Deadline, Objective
from flowmesh.spec.messages import by_path, in_words, shown
from flowmesh.spec.steps import (
    MATRIX_LIMIT,
    RESERVED,
    ROUNDS_LIMIT,
    STEPS_LIMIT,
    AnyStep,
    Carry,
    Loop,
    LoopStep,
    Needs,
    OnError,
    Share,
    Step,
)

__all__ = [
    "LANGUAGE_VERSION",
    "MATRIX_LIMIT",
    "NAME_PATTERN",
    "NAME_RULE",
    "REGISTERED_PATTERN",
    "RESERVED",
    "ROUNDS_LIMIT",
    "STEPS_LIMIT",
    "Carry",
    "FileInput",
    "Loop",
    "LoopStep",
    "ModelSource",
    "Needs",
    "OnError",
    "PlainInput",
    "Share",
    "Step",
    "TableInput",
    "Workflow",
    "load",
    "parse",
]

LANGUAGE_VERSION = 1
#: Name of a registered model, without its tag, or of a sharing domain.
REGISTERED_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


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
    deadline: Annotated[
        Deadline | None,
        Field(description="When a run should have settled: so long after it was submitted."),
    ] = None
    budget_usd: Annotated[
        BudgetUsd | None,
        Field(description="The most that a run may spend; it is stopped before it spends more."),
    ] = None
    objective: Annotated[
        Objective | None,
        Field(description="What its placement weighs most; the server's choice by default."),
    ] = None
    domain: Annotated[
        str | None,
        Field(pattern=REGISTERED_PATTERN, description="Sharing domain; the server's by default."),
    ] = None
    inputs: Annotated[
        dict[Name, Input],
        Field(default_factory=dict, description="What changes from run to run, by name."),
    ]
    models: Annotated[
        dict[Name, ModelSource],
        Field(default_factory=dict, description="Models, by the name that steps use."),
    ]
    steps: Annotated[
        dict[Name, AnyStep],
        Field(
            min_length=1,
            max_length=STEPS_LIMIT,
            description="The steps, by name, in any order.",
        ),
    ]
    outputs: Annotated[
        dict[Name, str],
        Field(
            default_factory=dict,
            description="Name to `${steps.STEP}` or `${steps.STEP.PORT}`: what the run is for.",
        ),
    ]


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
        if path[0] == "steps" and len(path) == 3 and path[-1] in RESERVED:
            return [f"{path[-1]!r} does not go with `loop`; it belongs to the steps within"]
        known = _known_keys(path, errors[0])
        return [f"unknown key {path[-1]!r}{nearest(path[-1], known)}"]
    if "missing" in kinds:
        return [f"key {str(error['loc'][-1])!r} is missing" for error in errors]
    if "union_tag_not_found" in kinds:
        return ["key 'type' is missing: table, file, string, int, float or bool"]
    return [in_words(errors)]


def _known_keys(path: tuple[str, ...], error: ErrorDetails) -> list[str]:
    if len(path) == 1:
        return list(Workflow.model_fields)
    if path[0] == "steps":
        return list(_part_of_step(path).model_fields)
    models: dict[str, type[Part]] = {"models": ModelSource, "table": TableInput, "file": FileInput}
    kind = str(error["loc"][2]) if path[0] == "inputs" else path[0]
    return list(models.get(kind, PlainInput).model_fields)


def _part_of_step(path: tuple[str, ...]) -> type[Part]:
    """What the key at the end of a path would have to be a key of."""
    if "needs" in path[2:-1]:
        return Needs
    if "carry" in path[2:-1]:
        return Carry
    return Loop if path[2] == "loop" else LoopStep
