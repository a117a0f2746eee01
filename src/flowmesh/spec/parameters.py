"""Plain inputs and their values; steps of a matrix; an operator's parameters, checked."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flowmesh.base.errors import Problem
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path, Positions
from flowmesh.spec.loops import OUTSIDE, Scope
from flowmesh.spec.messages import by_path, in_words
from flowmesh.spec.operator import Operator, ParamError
from flowmesh.spec.references import BadReference, Reference, substitute
from flowmesh.spec.workflow import RESERVED, PlainInput, Step, Workflow

_SIMPLE = re.compile(r"[A-Za-z0-9._+-]{1,24}")


class Unresolved(Exception):
    """A value is not known because of a problem that has been reported already."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A step, or one combination of a matrix step's values, in one round if it is in a loop.

    `name` and `base` are unique in the graph: `improve[1].judge[k=2]`, `improve[1].judge`.
    `path` is where the document has the step.
    """

    name: str
    base: str
    step: Step
    path: Path
    scope: Scope = OUTSIDE
    matrix: Mapping[str, Any] = field(default_factory=dict)


def from_text(declared: PlainInput, text: str) -> Any:
    """A value typed on a command line. Text that does not fit is returned as it is."""
    if declared.type == "string":
        return text
    try:
        value = json.loads(text.lower() if declared.type == "bool" else text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def resolve(
    workflow: Workflow, given: Mapping[str, Any], positions: Positions, problems: list[Problem]
) -> dict[str, Any]:
    """The value of each plain input: the given one, else the default. Adds to `problems`."""
    plain = {name: one for name, one in workflow.inputs.items() if isinstance(one, PlainInput)}
    for name in given:
        if name in workflow.inputs and name not in plain:
            message = f"{name!r} is a {workflow.inputs[name].type}: use --input {name}=FILE"
            problems.append(positions.problem(message, "inputs", name))
        elif name not in plain:
            problems.append(Problem(f"no plain input is called {name!r}{nearest(name, plain)}"))
    values: dict[str, Any] = {}
    for name, declared in plain.items():
        value = given.get(name, declared.default)
        if value is None:
            message = f"needs a value; use --set {name}=..., or give it a default"
            problems.append(positions.problem(message, "inputs", name))
        elif wrong := declared.refusal(value):
            problems.append(positions.problem(wrong, "inputs", name))
        else:
            values[name] = value
    return values


@dataclass(frozen=True, slots=True)
class PlainValues:
    """What `${inputs.x}`, `${matrix.x}` and `${loop.round}` stand for, seen from one step."""

    workflow: Workflow
    values: Mapping[str, Any]
    matrix: Mapping[str, Any]
    ports: tuple[str, ...] = ()
    scope: Scope = OUTSIDE

    def __call__(self, reference: Reference) -> Any:
        """Raises BadReference, or Unresolved for an input without a value."""
        name, inputs = reference.name, self.workflow.inputs
        if reference.kind == "matrix":
            if name not in self.matrix:
                raise BadReference(
                    f"{reference} names nothing in this step's matrix{nearest(name, self.matrix)}"
                )
            return self.matrix[name]
        if reference.kind == "loop" and self.scope.carries(reference) is None:
            return self.scope.round
        if reference.kind != "inputs":
            ports = f" (ports: {', '.join(self.ports)})" if self.ports else ""
            raise BadReference(f"a value cannot hold {reference}; it belongs on a port{ports}")
        if name not in inputs:
            raise BadReference(f"{reference} names no input{nearest(name, inputs)}")
        declared = inputs[name]
        if not isinstance(declared, PlainInput):
            raise BadReference(f"a value cannot hold {reference}, a {declared.type}")
        if name not in self.values:
            raise Unresolved
        return self.values[name]


def instances(name: str, step: Step, plain: PlainValues) -> Iterator[Instance]:
    """One instance, or one for each combination of the matrix. Raises BadReference, Unresolved.

    `name` is what its scope calls the step.
    """
    scope = plain.scope
    base, path = scope.full(name), scope.path(name)
    if step.matrix is None:
        yield Instance(base, base, step, path, scope)
        return
    matrix = {key: substitute(values, plain) for key, values in step.matrix.items()}
    labels = [_labels(values) for values in matrix.values()]
    for chosen in itertools.product(*(range(len(values)) for values in matrix.values())):
        picked = zip(matrix, labels, chosen, strict=True)
        text = ",".join(f"{key}={words[n]}" for key, words, n in picked)
        values = {key: matrix[key][n] for key, n in zip(matrix, chosen, strict=True)}
        yield Instance(f"{base}[{text}]", base, step, path, scope, values)


def _labels(values: list[Any]) -> list[str]:
    """A short distinct name for each value: itself, or its place from 1 as `#2`."""
    words = [value if isinstance(value, str) else json.dumps(value) for value in values]
    if len(set(words)) == len(words) and all(map(_SIMPLE.fullmatch, words)):
        return words
    return [f"#{n + 1}" for n in range(len(values))]


def validate(
    op: Operator,
    written: Mapping[str, Any],
    lookup: PlainValues,
    path: Path,
    positions: Positions,
) -> tuple[Any, list[Problem]]:
    """An operator's parameters from what the document writes; None with problems."""
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    unresolved = False
    for key, value in written.items():
        try:
            values[key] = substitute(value, lookup)
        except BadReference as error:
            problems.append(positions.problem(str(error), *path, key))
        except Unresolved:
            unresolved = True
    if problems or unresolved:
        return None, problems
    try:
        # As JSON, where strict takes a list for a tuple: `true` is no number, nor is "12".
        params = op.params.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        for place, errors in by_path(values, error.errors(include_url=False)).items():
            problems += _parameter_problems(op, place, errors, path, positions)
        return None, problems
    for place in _not_finite(params):
        problems.append(positions.problem("expected a finite number", *path, *place))
    return (None if problems else params), problems


def _not_finite(params: BaseModel) -> list[Path]:
    """Places of `nan` and infinities: no action can hold them."""

    def odd(value: Any, path: Path) -> Iterator[Path]:
        if isinstance(value, float) and not math.isfinite(value):
            yield path
        elif isinstance(value, Mapping):
            for key, one in value.items():
                yield from odd(one, (*path, str(key)))
        elif isinstance(value, list | tuple):
            for n, one in enumerate(value):
                yield from odd(one, (*path, str(n)))

    return list(odd(params.model_dump(), ()))


def refusal(error: ParamError, path: Path, positions: Positions) -> Problem:
    return positions.problem(str(error), *path, error.field)


def _parameter_problems(
    op: Operator, place: Path, errors: list[Any], path: Path, positions: Positions
) -> Iterator[Problem]:
    for error in errors:
        if isinstance(cause := error.get("ctx", {}).get("error"), ParamError):
            yield refusal(cause, path, positions)
            return
    kinds = {error["type"] for error in errors}
    if "missing" in kinds:
        what = "key" if place else "parameter"
        for error in errors:
            message = f"{what} {str(error['loc'][-1])!r} is missing"
            yield positions.problem(message, *path, *place)
    elif "extra_forbidden" in kinds:
        key = place[-1]
        if len(place) == 1:
            known = [*parameter_names(op), *op.inputs, *RESERVED]
            message = f"unknown parameter {key!r} of {op.name}{nearest(key, known)}"
        else:
            message = f"unknown key {key!r}{nearest(key, _nested_keys(op, place[:-1]))}"
        yield positions.problem(message, *path, *place)
    else:
        yield positions.problem(in_words(errors), *path, *place)


def _nested_keys(op: Operator, place: Path) -> set[str]:
    """The keys that an object at `place` within the parameters may have."""
    types: list[Any] = [op.params]
    for key in place:
        types = [
            model.model_fields[key].annotation if key in model.model_fields else model
            for model in _models_in(types)
        ]
    return {name for model in _models_in(types) for name in model.model_fields}


def _models_in(types: Iterable[Any]) -> Iterator[type[BaseModel]]:
    """The objects that these annotations are made of: unions, lists and maps looked into."""
    for one in types:
        if isinstance(one, type) and issubclass(one, BaseModel):
            yield one
        else:
            yield from _models_in(get_args(one))


def parameter_names(op: Operator) -> list[str]:
    return [field.alias or name for name, field in op.params.model_fields.items()]
