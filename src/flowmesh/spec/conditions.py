"""`when:` conditions, and what a skipped step means for those after it.

A condition is one Jinja2 expression over `inputs.<plain input>`, `matrix.<name>`,
`steps.<step>.count` (rows of its `rows` output, 0 if skipped) and `steps.<step>.skipped`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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
_ROOTS = ("inputs", "matrix", "steps")


@dataclass(frozen=True, slots=True)
class Known:
    """Names that a condition may use."""

    inputs: Collection[str] = ()
    matrix: Collection[str] = ()
    steps: Collection[str] = ()


def check(expression: str, known: Known) -> tuple[str, ...]:
    """The steps that a condition asks about. Raises ValueError for one that cannot hold."""
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
        steps = [step for chain in _chains(tree) for step in _step_of(chain, known)]
    except TemplateSyntaxError as error:
        raise ValueError(f"condition cannot be read: {error.message}") from None
    except TemplateError as error:
        raise ValueError(f"condition: {error.message}") from None
    except TOO_DEEP:
        raise ValueError("condition: nested too deep") from None
    return tuple(dict.fromkeys(steps))


def holds(expression: str, facts: Mapping[str, Any]) -> bool:
    """Whether a checked condition holds. Raises RenderError where its values do not fit it."""
    try:
        return bool(ENVIRONMENT.compile_expression(expression, undefined_to_none=False)(**facts))
    except Exception as error:  # an expression may call anything that its facts' values offer
        raise RenderError(f"condition {shortened(expression)!r}: {cause(error)}") from None


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


def _step_of(chain: list[str], known: Known) -> Iterator[str]:
    root, *names = chain
    if root not in _ROOTS:
        raise ValueError(f"a condition cannot see {root!r}{nearest(root, _ROOTS)}")
    named: Collection[str] = getattr(known, root)
    if not names or names[0] not in named:
        name = names[0] if names else ""
        what = f"{root}.{name}" if name else f"{root!r} alone"
        raise ValueError(f"a condition cannot see {what}{nearest(name, named)}")
    if root == "steps":
        fact = names[1] if len(names) > 1 else ""
        if fact not in STEP_FACTS or len(names) > 2:
            place = ".".join(chain)
            raise ValueError(
                f"{place} is not known to a condition; "
                f"expected steps.{names[0]}.count or steps.{names[0]}.skipped"
            )
        yield names[0]
