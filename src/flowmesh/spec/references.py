"""`${...}` in a document: what it names, and the values that take its place.

`${inputs.x}`, `${steps.x}`, `${steps.x.port}`, `${models.x}`, `${matrix.x}`, `${loop.x}`. A
text that is one reference and nothing else takes the value with its type; within a longer
text the value is written out. `$${` stands for a plain `${`.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flowmesh.base.nearest import nearest

Kind = Literal["inputs", "steps", "models", "matrix", "loop"]
KINDS: tuple[str, ...] = get_args(Kind)

_MARK = re.compile(r"\$\$\{|\$\{")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class BadReference(ValueError):
    """A `${...}` that cannot be read, or names nothing; the message says what it could be."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`port` is empty where the text has none."""

    kind: str
    name: str
    port: str = ""

    def __str__(self) -> str:
        return "${" + ".".join(filter(None, (self.kind, self.name, self.port))) + "}"


Lookup = Callable[[Reference], Any]


def parse(text: str) -> list[str | Reference]:
    """Cut a text into plain pieces and references. Raises BadReference."""
    pieces: list[str | Reference] = []
    at = 0
    while found := _MARK.search(text, at):
        pieces.append(text[at : found.start()])
        if found[0] == "$${":
            pieces.append("${")
            at = found.end()
            continue
        end = text.find("}", found.end())
        if end < 0:
            raise BadReference(f"`${{` without `}}` in {text[found.start() :][:40]!r}; write $${{")
        pieces.append(_reference(text[found.end() : end].strip()))
        at = end + 1
    pieces.append(text[at:])
    return [piece for piece in pieces if piece != ""]


def _reference(inside: str) -> Reference:
    kind, *names = inside.split(".")
    if kind not in KINDS:
        raise BadReference(f"${{{inside[:60]}}} starts with {kind[:40]!r}{nearest(kind, KINDS)}")
    most = 2 if kind == "steps" else 1
    if not 1 <= len(names) <= most or not all(_NAME.fullmatch(name) for name in names):
        form = "${steps.NAME} or ${steps.NAME.PORT}" if most == 2 else f"${{{kind}.NAME}}"
        raise BadReference(f"${{{inside[:60]}}} cannot be read; expected {form}")
    return Reference(kind, *names)


def whole(value: Any) -> Reference | None:
    """The reference that a value is, if it is one and nothing else. Raises BadReference."""
    if not isinstance(value, str) or "${" not in value:
        return None
    pieces = parse(value)
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], Reference) else None


def substitute(value: Any, lookup: Lookup) -> Any:
    """A value with all references in it replaced, at any depth. Raises what `lookup` raises."""
    match value:
        case str() if "${" in value:
            if (reference := whole(value)) is not None:
                return lookup(reference)
            return "".join(
                piece if isinstance(piece, str) else written(lookup(piece))
                for piece in parse(value)
            )
        case list():
            return [substitute(one, lookup) for one in value]
        case dict():
            return {key: substitute(one, lookup) for key, one in value.items()}
        case _:
            return value


def written(value: Any) -> str:
    """A value within a longer text: text as it is, the rest as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in a value, with its path."""
    match value:
        case str():
            yield path, value
        case list() | tuple():
            for n, one in enumerate(value):
                yield from texts(one, (*path, str(n)))
        case dict():
            for key, one in value.items():
                yield from texts(one, (*path, str(key)))
