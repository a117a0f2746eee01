"""Tables in Markdown, and JSON Schema said in words."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
}
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}",
           "exclusiveMaximum": "< {}", "minLength": "at least {} characters",
           "maxLength": "at most {} characters", "minItems": "at least {}",
           "maxItems": "at most {}", "minProperties": "at least {}",
           "maxProperties": "at most {}"}  # fmt: skip

Schema = Mapping[str, Any]


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    lines = [list(headers)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n"
        for line in lines
    )


# JSON Schema in words


def kind(schema: Schema, definitions: Schema) -> str:
    """What a value must be: `whole number, ≥ 1, ≤ 1024`."""
    if "$ref" in schema:
        return kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            given = (kind(one, definitions) for one in schema[key] if one.get("type") != "null")
            return " or ".join(dict.fromkeys(given))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{one}`" for one in schema["enum"])
    bounds = [form.format(_number(schema[key])) for key, form in _BOUNDS.items() if key in schema]
    words = ", ".join([_bare_kind(schema, definitions), *bounds])
    return re.sub(r"at least 1\b( characters)?", "not empty", words)


def _bare_kind(schema: Schema, definitions: Schema) -> str:
    match schema.get("type"):
        case "array":
            items = schema.get("items", {})
            return "list" if items in ({}, True) else f"list of {_inner(items, definitions)}"
        case "object" if "properties" in schema:
            fields = (
                f"`{name}`: {kind(one, definitions)}" for name, one in schema["properties"].items()
            )
            return "object with " + "; ".join(fields)
        case "object":
            patterns = list(schema.get("patternProperties", {}).values())
            values = patterns[0] if patterns else schema.get("additionalProperties", True)
            if values is True:
                return "map of names to values"
            return f"map of names to {_inner(values, definitions)}"
        case None:
            return "any value"
        case plain:
            return _WORDS[plain]


def _inner(schema: Schema, definitions: Schema) -> str:
    words = kind(schema, definitions)
    return words if words in _WORDS.values() or words.startswith("map") else f"({words})"


def _number(value: float) -> str:
    """Large limits are powers of two; the rest as they are."""
    if isinstance(value, int) and value > 10**9:
        return f"2^{value.bit_length()} - 1" if value & (value + 1) == 0 else f"{value:,}"
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def default(field: Schema, needed: bool) -> str:
    if needed:
        return "required"
    value = field.get("default")
    return "" if value is None or value in ("", [], {}) else f"`{json.dumps(value)}`"


def fields(schema: Schema, meaning: Callable[[str, Schema], str]) -> str:
    definitions, needed = schema.get("$defs", {}), schema.get("required", [])
    rows = [
        (f"`{name}`", kind(field, definitions), default(field, name in needed),
         meaning(name, field))
        for name, field in schema.get("properties", {}).items()
    ]  # fmt: skip
    return table(("key", "value", "default", "meaning"), rows)


def sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "`")) else f"{text}."
