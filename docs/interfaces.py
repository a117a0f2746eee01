"""The outside of FlowMesh as Markdown: error codes, commands, routes and their bodies."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from in_words import Schema, default, kind, sentence, table

from flowmesh.base import errors
from flowmesh.cli.main import cli
from flowmesh.server.app import ServerSettings, create_app
from flowmesh.wire import ErrorBody


def error_codes() -> str:
    """The tree of `base/errors.py`."""
    rows = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"\s+[+-] (\w+)\s+(.*)", line):
            error = getattr(errors, found[1])
            status = (str(error.http_status), str(error.exit_code))
            rows.append((f"`{error.code}`", *status, sentence(found[2].split(" (exit")[0])))
    rows.append(("`invalid_request`", "422", "2", "The body or a parameter has the wrong form."))
    rows.append(("`internal`", "500", "1", "An error of the server's own; its log has details."))
    return table(("code", "HTTP status", "exit status", "meaning"), rows)


def commands() -> str:
    """Every command with its options."""
    return "\n".join(_commands(cli, "flowmesh"))


def _commands(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        if path != "flowmesh":
            yield _command(command, path)
        for name in command.commands:
            yield from _commands(command.commands[name], f"{path} {name}")
    else:
        yield _command(command, path)


def _command(command: click.Command, path: str) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    text = f"## {path}\n\n```sh\n{path} {usage}\n```\n\n{_help(command)}"
    options = list(_options(command))
    own = [option for option in options if option.help not in _shared()]
    if own:
        text += f"\n{_option_table(own)}"
    if shared := [f"`{option.opts[0]}`" for option in options if option not in own]:
        text += f"\n{'Also' if own else 'Options:'} {', '.join(shared)}.\n"
    return text


def shared_options() -> str:
    """Options that mean the same wherever they occur."""
    return _option_table(_shared().values())


def _shared() -> Mapping[str | None, click.Option]:
    names = ("--json", "--server", "--token", "--tenant", "--home")
    return {one.help: one for one in _options(cli.commands["run"]) if one.opts[0] in names}


def _options(command: click.Command) -> Iterator[click.Option]:
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            yield option


def _option_table(options: Iterable[click.Option]) -> str:
    rows = [
        (
            ", ".join(f"`{name}{_value(one)}`" for name in (*one.opts, *one.secondary_opts)),
            _option_default(one),
            _escaped(one.help or ""),
        )
        for one in options
    ]
    return table(("option", "default", "meaning"), rows)


def _value(option: click.Option) -> str:
    return "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"


def _help(command: click.Command) -> str:
    """Its help text; examples and blocks that must not be wrapped as code."""
    parts: list[str] = []
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        words = " ".join(part.removeprefix("\b\n").split())
        if words.startswith("Example: "):
            words = f"```sh\n{words.removeprefix('Example: ')}\n```"
        parts.append(words)
    return _escaped("\n\n".join(parts)) + "\n"


def _escaped(text: str) -> str:
    """`<home>` is a tag to Markdown, but within code."""
    return "`".join(
        part if number % 2 else part.replace("<", "&lt;")
        for number, part in enumerate(text.split("`"))
    )


def _option_default(option: click.Option) -> str:
    variable = f"`${option.envvar}`" if option.envvar else ""
    value = option.get_default(click.Context(cli), call=False)
    told = option.show_default and value is not None and not option.multiple
    if isinstance(value, bool) and option.secondary_opts:
        value = (option.opts if value else option.secondary_opts)[0]
    return ", else ".join(filter(None, (variable, f"`{value}`" if told else "")))


def routes() -> str:
    """Every route of the server, from its OpenAPI description."""
    api = _openapi()
    text = ""
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            title = f"{method.upper()} {path}"
            text += f"### {title}\n\n{sentence(route['description'])}\n{_route(route)}\n"
    return text


def _openapi() -> dict[str, Any]:
    return create_app(ServerSettings(home=Path("unused"))).openapi()


def _route(route: Schema) -> str:
    text = ""
    asked = route.get("parameters", [])
    if asked:
        rows = [
            (f"`{one['name']}`", one["in"], kind(one["schema"], {}),
             default(one["schema"], one.get("required", False)))
            for one in asked
        ]  # fmt: skip
        text += "\n" + table(("parameter", "in", "value", "default"), rows)
    if "requestBody" in route:
        text += f"\nBody: {_body(route['requestBody'])}.\n"
    for status, answer in route["responses"].items():
        if status.startswith("2"):
            text += f"\nAnswers {status}: {_body(answer)}.\n"
    return text


def _body(described: Schema) -> str:
    ((media, content),) = described.get("content", {"bytes": {}}).items()
    schema = content.get("schema", {})
    if "$ref" in schema:
        return _link(schema["$ref"])
    if schema.get("type") == "array":
        return f"list of {_link(schema['items']['$ref'])}"
    return "a stream" if media == "bytes" else "JSON"


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return f"[`{name}`](#{name.lower()})"


def bodies() -> str:
    """Every JSON body of the HTTP interface."""
    text = ""
    schemas = _openapi()["components"]["schemas"]
    problem = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"ErrorBody": problem}
    for name, schema in sorted(schemas.items()):
        if name in ("HTTPValidationError", "ValidationError"):
            continue  # FastAPI's; ours are problem details
        rows = [
            (f"`{key}`", _linked(field, schemas), default(field, key in schema["required"])
             if "required" in schema else default(field, False))
            for key, field in schema["properties"].items()
        ]  # fmt: skip
        text += f"### {name}\n\n{schema.get('description', '')}\n\n".replace("\n\n\n\n", "\n\n")
        text += table(("field", "value", "default"), rows) + "\n"
    return text


def _linked(field: Schema, schemas: Schema) -> str:
    if "$ref" in field:
        return _link(field["$ref"])
    for key in ("items", "additionalProperties"):
        if isinstance(field.get(key), dict) and "$ref" in field[key]:
            many = "list of" if key == "items" else "map of names to"
            return f"{many} {_link(field[key]['$ref'])}"
    return kind(field, schemas)
