"""The language as a JSON Schema, for editors: made from the models and the catalog."""

from collections.abc import Mapping
from typing import Any

from flowmesh.spec.operator import Operator, Port
from flowmesh.spec.workflow import RESERVED, Workflow

_TEXT_WITH_REFERENCE = {"type": "string", "pattern": r"\$\{"}
_REFERENCE: Mapping[str, str] = {
    "table": r"^\$\{(inputs|steps|loop)\.[^}]+\}$",
    **dict.fromkeys(
        ("model", "adapter"),
        r"^(\$\{[^}]+\}|[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[A-Za-z0-9][A-Za-z0-9._-]{0,62})?)$",
    ),
    "file": r".",
}


def json_schema(catalog: Mapping[str, Operator]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a workflow; each operator's step knows its own keys."""
    schema = Workflow.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "FlowMesh workflow"
    definitions = schema["$defs"]
    step = definitions["Step"]
    step["properties"]["op"]["enum"] = sorted(catalog)
    step["additionalProperties"] = True  # what else is allowed follows from `op`
    step["allOf"] = [
        {
            "if": {"properties": {"op": {"const": name}}, "required": ["op"]},
            "then": {"$ref": f"#/$defs/step-{name}"},
        }
        for name in sorted(catalog)
    ]
    for name, operator in sorted(catalog.items()):
        definitions[f"step-{name}"] = _variant(operator, definitions)
    return schema


def _variant(operator: Operator, definitions: dict[str, Any]) -> dict[str, Any]:
    params = operator.params.model_json_schema(ref_template=f"#/$defs/{operator.name}.{{model}}")
    for name, definition in params.pop("$defs", {}).items():
        definitions[f"{operator.name}.{name}"] = definition
    parameters = {
        name: {"anyOf": [one, _TEXT_WITH_REFERENCE], **_documentation(one)}
        for name, one in params.get("properties", {}).items()
    }
    ports = {name: _port(port) for name, port in operator.inputs.items()}
    needed = [name for name, port in operator.inputs.items() if port.required]
    return {
        "type": "object",
        "description": operator.summary,
        "properties": {**dict.fromkeys(RESERVED, True), **parameters, **ports},
        "required": [*needed, *params.get("required", [])],
        "additionalProperties": False,
    }


def _documentation(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """What editors show; they do not look for it within `anyOf`."""
    return {key: parameter[key] for key in ("description", "default") if key in parameter}


def _port(port: Port) -> dict[str, Any]:
    one = {"type": "string", "pattern": _REFERENCE[port.kind]}
    match port.arity:
        case "one":
            return {**one, "description": port.doc}
        case "list":
            several = {"type": "array", "items": one, "minItems": 1}
            return {"anyOf": [several, one], "description": port.doc}
        case "map":
            return {
                "type": "object",
                "additionalProperties": one,
                "minProperties": 1,
                "description": port.doc,
            }
