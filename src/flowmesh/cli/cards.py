"""Models and adapters as people read them: in a list, one by one, side by side."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowmesh.cli.output import size, table

if TYPE_CHECKING:
    from flowmesh.cards import ModelCard
    from flowmesh.sdk.compare import Line
    from flowmesh.wire import ModelEntry, ModelView

#: Hex digits of a digest that people are shown.
_SHORT = len("sha256:") + 12
_CELL_LIMIT = 50


def listing(found: "Sequence[ModelView]") -> str:
    """One line a tag."""
    headers = ("model", "tag", "kind", "size", "at", "from", "digest")
    rows = [
        (
            one.name + (" (shared)" if one.shared else ""),
            one.tag,
            one.kind,
            size(one.size_bytes) if one.size_bytes else "",
            _at(one.added_ms),
            one.source,
            short(one.artifact.digest),
        )
        for one in found
    ]
    return table(headers, rows)


def told(card: "ModelCard") -> str:
    """A card in paragraphs; what is not known has none."""
    return "\n\n".join("\n".join(part) for part in _paragraphs(card) if part)


def _paragraphs(card: "ModelCard") -> Iterator[list[str]]:
    known = f", {size(card.size_bytes)}" if card.size_bytes else ""
    first = [f"{card.what}: {card.kind}{known}", card.digest]
    if card.names:
        first.append(f"called {', '.join(card.names)}")
    if card.run:
        first.append(f"made by {card.op}, step {card.step} of run {card.run} (port {card.port})")
    elif card.source:
        first.append(f"from {card.source}")
    yield first
    if card.params:
        yield ["parameters:", *_values(card.params)]
    if card.parents:
        rows = [
            ("  " * one.level + one.used_as, one.kind, short(one.digest), _made(one.run, one.step),
             ", ".join(one.names))
            for one in card.parents
        ]  # fmt: skip
        yield ["made from:", table(("  as", "kind", "digest", "step", "called"), rows)]
    if card.data:
        data = [
            (f"  {one.used_as}", one.rows if one.rows >= 0 else "", one.source, short(one.digest))
            for one in card.data
        ]
        yield ["data:", table(("  as", "rows", "from", "digest"), data)]
    if card.training:
        yield ["training:", *_values(card.training)]
    for one in card.evaluations:
        yield [f"measured by {one.op}, step {one.step}:", *_values(one.values)]
    if card.history:
        yield [past(card.history)]


def _values(values: Mapping[str, Any]) -> list[str]:
    from flowmesh.sdk.compare import flat

    return [f"  {name}: {cell(value)}" for name, value in flat(values).items() if value is not None]


def past(entries: "Sequence[ModelEntry]") -> str:
    """The history of a name."""
    rows = [
        (
            f"  {one.tag}" + (" (shared)" if one.shared else ""),
            _at(one.at_ms),
            one.by,
            one.source if one.digest else "removed",
            short(one.digest),
        )
        for one in entries
    ]
    told = table(("  tag", "at", "by", "from", "digest"), rows)
    return f"history, the newest first:\n{told}"


def side_by_side(a: str, b: str, lines: "Sequence[Line]") -> str:
    """A table of two columns; `=` in the second where both are equal."""
    if a == b:
        a, b = f"{a} (1)", f"{b} (2)"
    rows: list[tuple[object, ...]] = []
    before = ""
    for line in lines:
        about = line.about if line.about != before else ""
        before = line.about
        rows.append((about, line.what, cell(line.a), "=" if line.is_equal else cell(line.b)))
    return table(("", "", a, b), rows)


def cell(value: Any) -> str:
    """A value in few characters: a digest shortened, a number to six digits."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case [] | {}:
            return "none"
        case str() if value.startswith("sha256:"):
            return short(value)
    text = str(value)
    return text if len(text) <= _CELL_LIMIT else f"{text[: _CELL_LIMIT - 3]}..."


def short(digest: str) -> str:
    return digest.partition("/")[0][:_SHORT]


def _made(run: str, step: str) -> str:
    return f"{run}:{step}" if run else ""


def _at(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))
