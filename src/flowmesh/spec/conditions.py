"""`when:` conditions, and what a skipped step means for those after it.

A condition is one Jinja2 expression over `inputs.<plain input>`, `matrix.<name>`,
`loop.round`, `steps.<step>.count` (rows of its `rows` output, 0 if skipped),
`steps.<step>.skipped` and `steps.<step>.<port>.<column>`: the value in the first row of that
output table, None if it has no rows or the step was skipped.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.parser import Parser

from flowmesh.base.nearest import nearest
from flowmesh.spec.templates import (
    CONDITION_LIMIT,
    ENVIRONMENT,
    TOO_DEEP,
    RenderError,
    cause,
    shortened,
)

STEP_FACTS = ("count", "skipped")
_ROOTS = ("inputs", "matrix", "loop", "steps")


@dataclass(frozen=True, slots=True)
class Known:
    """Names that a condition may use; `hidden` has steps that it may not, and what they are."""

    inputs: Collection[str] = ()
    matrix: Collection[str] = ()
    steps: Collection[str] = ()
    loop: Collection[str] = ()
    hidden: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """`steps.<step>.<port>.<column>`."""

    step: str
    port: str
    column: str

    def __str__(self) -> str:
        return f"steps.{self.step}.{self.port}.{self.column}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a condition asks about: steps, and values in their outputs."""

    steps: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()


class _Names:
    """Names that an expression may look up: nothing of a dict's own is in their way."""

    def __init__(self, values: Mapping[str, Any], depth: int) -> None:
        self._values = {
            name: _Names(one, depth - 1) if depth > 1 and isinstance(one, Mapping) else one
            for name, one in values.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


#: Levels of names below each root; what is below these is a value.
_DEPTHS = {"inputs": 1, "matrix": 1, "loop": 1, "steps": 3}


def check(expression: str, known: Known) -> Asked:
    """What a condition asks about. Raises ValueError for one that cannot hold."""
    if len(expression) > CONDITION_LIMIT:
        raise ValueError(f"a condition may have at most {CONDITION_LIMIT:,} characters")
    if "${" in expression or "{{" in expression:
        raise ValueError("a condition names things directly, as `inputs.x`, without ${} or {{ }}")
    try:
        parser = Parser(ENVIRONMENT, expression, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            raise ValueError(
                f"a condition is one expression, and goes on at {parser.stream.current.value!r}"
            )
        ENVIRONMENT.compile_expression(expression)
        found = [one for chain in _chains(tree) for one in _step_of(chain, known)]
    except TemplateSyntaxError as error:
        raise ValueError(f"condition cannot be read: {error.message}") from None
    except TemplateError as error:
        raise ValueError(f"condition: {error.message}") from None
    except TOO_DEEP:
        raise ValueError("condition: nested too deep") from None
    return Asked(
        tuple(dict.fromkeys(one.step if isinstance(one, Value) else one for one in found)),
        tuple(dict.fromkeys(one for one in found if isinstance(one, Value))),
    )


def holds(expression: str, facts: Mapping[str, Any]) -> bool:
    """Whether a checked condition holds. Raises RenderError where its values do not fit it."""
    seen = {root: _Names(values, _DEPTHS[root]) for root, values in facts.items()}
    try:
        return bool(ENVIRONMENT.compile_expression(expression, undefined_to_none=False)(**seen))
    except Exception as error:  # an expression may call anything that its facts' values offer
        why = cause(error)
        if isinstance(error, TypeError) and (missing := _without_value(facts)):
            why += (
                f"; {' and '.join(missing)} has no value here: the step was skipped, or its table"
                f" has no rows or no such column. Ask first: `{missing[0]} is not none and ...`"
            )
        raise RenderError(f"condition {shortened(expression)!r}: {why}") from None


def _without_value(facts: Mapping[str, Any]) -> list[str]:
    """The values of outputs that are None."""
    return [
        f"steps.{step}.{port}.{column}"
        for step, known in facts.get("steps", {}).items()
        for port, columns in known.items()
        if isinstance(columns, Mapping)
        for column, value in columns.items()
        if value is None
    ]


def _chains(tree: nodes.Node) -> Iterator[list[str]]:
    """`a.b["c"].d` as [a, b, c, d], for every name in an expression."""
    chain: list[str] = []
    node = tree
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        if isinstance(node, nodes.Getattr):
            chain.append(node.attr)
        elif isinstance(node.arg, nodes.Const):
            chain.append(str(node.arg.value))
        else:
            chain.clear()  # a computed key: what follows it is not known now
            yield from _chains(node.arg)
        node = node.node
    if isinstance(node, nodes.Name):
        yield [node.name, *reversed(chain)]
        return
    for child in node.iter_child_nodes():
        yield from _chains(child)


def _step_of(chain: list[str], known: Known) -> Iterator[str | Value]:
    """The step that a chain of names asks about, or the value; none for another root."""
    root, *names = chain
    if root not in _ROOTS:
        raise ValueError(f"a condition cannot see {root!r}{nearest(root, _ROOTS)}")
    named: Collection[str] = getattr(known, root)
    if not names or names[0] not in named:
        name = names[0] if names else ""
        if root == "steps" and name in known.hidden:
            raise ValueError(f"a condition here cannot see steps.{name}, {known.hidden[name]}")
        what = f"{root}.{name}" if name else f"{root!r} alone"
        raise ValueError(f"a condition cannot see {what}{nearest(name, named)}")
    if root != "steps":
        return
    step, *rest = names
    if len(rest) == 1 and rest[0] in STEP_FACTS:
        yield step
    elif len(rest) > 1 and rest[0] not in STEP_FACTS:
        yield Value(step, rest[0], rest[1])
    else:
        raise ValueError(
            f"{'.'.join(chain)} is not known to a condition; expected steps.{step}.count, "
            f"steps.{step}.skipped or steps.{step}.PORT.COLUMN"
        )
