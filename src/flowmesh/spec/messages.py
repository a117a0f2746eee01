"""pydantic's errors in our words: what was expected, what was found, the nearest right name."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from flowmesh.base.nearest import nearest

#: What a value of a wrong type should have been; joined by `or` where several would do.
_EXPECTED = {
    "string_type": "text",
    "string_unicode": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "none_required": "null",
}

#: What a value of the right type should have been.
_LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda ctx: f"must be greater than {ctx['gt']}",
    "greater_than_equal": lambda ctx: f"must be at least {ctx['ge']}",
    "less_than": lambda ctx: f"must be less than {ctx['lt']}",
    "less_than_equal": lambda ctx: f"must be at most {ctx['le']}",
    "multiple_of": lambda ctx: f"must be a multiple of {ctx['multiple_of']}",
    "string_too_short": lambda ctx: f"must have at least {ctx['min_length']} characters",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "string_pattern_mismatch": lambda ctx: f"must match {ctx['pattern']}",
    "too_short": lambda ctx: f"must hold at least {ctx['min_length']} of them",
    "too_long": lambda ctx: f"must hold at most {ctx['max_length']} of them",
    "literal_error": lambda ctx: f"expected {ctx['expected']}",
    "enum": lambda ctx: f"expected {ctx['expected']}",
}


def shown(value: Any) -> str:
    """A value as the user wrote it, short enough for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def in_words(errors: Iterable[ErrorDetails]) -> str:
    """One message for all that pydantic says about one value (one error for each union member)."""
    listed = list(errors)
    if any(error["type"] not in _EXPECTED for error in listed):
        # A member of the union had the right type: what it says is what matters.
        listed = [error for error in listed if error["type"] not in _EXPECTED]
    known = [error for error in listed if error["type"] in _EXPECTED or error["type"] in _LIMITS]
    if len(known) < len(listed):
        return "; ".join(dict.fromkeys(map(_sentence, listed)))
    wants = " or ".join(dict.fromkeys(map(_want, known))).replace(" or expected", " or")
    found = known[0]["input"]
    names = [name for error in known for name in _literals(error)]
    return f"{wants}, found {shown(found)}" + _guess(found, names)


def _want(error: ErrorDetails) -> str:
    if error["type"] in _EXPECTED:
        return f"expected {_EXPECTED[error['type']]}"
    return _LIMITS[error["type"]](error.get("ctx", {}))


def _sentence(error: ErrorDetails) -> str:
    kind, ctx, found = error["type"], error.get("ctx", {}), error["input"]
    if kind in _LIMITS:
        return f"{_want(error)}, found {shown(found)}"
    if kind == "union_tag_invalid":
        names = [name.strip("'") for name in str(ctx["expected_tags"]).split(", ")]
        return f"unknown type {shown(ctx['tag'])}" + nearest(str(ctx["tag"]), names)
    if kind in ("value_error", "assertion_error"):
        return str(ctx["error"])
    message = error["msg"]
    return message[:1].lower() + message[1:]


def _literals(error: ErrorDetails) -> list[str]:
    if error["type"] not in ("literal_error", "enum"):
        return []
    expected = str(error.get("ctx", {})["expected"])
    return [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]


def _guess(found: Any, names: list[str]) -> str:
    guess = nearest(found, names) if isinstance(found, str) else ""
    return guess if guess.startswith("; did you mean") else ""


def path_in(value: Any, loc: Sequence[str | int]) -> tuple[str, ...]:
    """The part of a pydantic location that is in the document: without names of union members."""
    path: list[str] = []
    for key in loc:
        in_mapping = isinstance(value, Mapping) and key in value
        if in_mapping or (isinstance(value, list) and isinstance(key, int) and key < len(value)):
            value = value[key]
            path.append(str(key))
    return tuple(path)


def by_path(
    value: Any, errors: Iterable[ErrorDetails]
) -> dict[tuple[str, ...], list[ErrorDetails]]:
    """Errors grouped by the place in the document that they are about."""
    grouped: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for error in errors:
        grouped.setdefault(path_in(value, error["loc"]), []).append(error)
    return grouped
