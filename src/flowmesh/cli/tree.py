"""Lineage drawn as a tree."""

from collections.abc import Iterator, Mapping
from typing import Any

from flowmesh.cli.figures import money
from flowmesh.cli.output import plain
from flowmesh.wire import LineageNode

#: Characters of the parameters of a step.
_PARAMS_LIMIT = 120


def drawn(root: LineageNode) -> str:
    """One line a node; an artifact that comes again is drawn once and named afterwards."""
    return "\n".join(_lines(root))


def _lines(root: LineageNode) -> Iterator[str]:
    seen: set[tuple[object, ...]] = set()
    # (node, what its line starts with, what those of its children start with)
    waiting = [(root, "", "")]
    while waiting:
        node, before, below = waiting.pop()
        key = (node.label, node.digest, node.run, node.row)
        again = node.again or (key in seen and bool(node.children))
        where = f" (as {'above' if key in seen else 'below'})" if again else ""
        if not again:
            seen.add(key)
        yield before + _described(node) + where
        if again:
            continue
        branches = []
        for n, child in enumerate(node.children, 1):
            is_last = n == len(node.children)
            fork, beside = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            branches.append((child, below + fork, below + beside))
        waiting += reversed(branches)


def _described(node: LineageNode) -> str:
    words = [node.label if node.kind in node.label else f"{node.label} ({node.kind})"]
    if node.used_as not in ("", "rows"):
        words[0] = f"{node.used_as}: {words[0]}"
    if node.digest:
        words.append(node.digest.partition("/")[0][: len("sha256:") + 12])
    words += _facts(node)
    if node.cut:
        words.append("(cut here)")
    return plain("  ".join(words))


def _params(params: Mapping[str, Any]) -> str:
    """The parameters that were chosen, in one line."""
    told = ", ".join(f"{name} {value}" for name, value in params.items())
    return told if len(told) <= _PARAMS_LIMIT else f"{told[: _PARAMS_LIMIT - 3]}..."


def _facts(node: LineageNode) -> Iterator[str]:
    """What people ask first; `--json` has all of it."""
    facts = node.facts
    if name := facts.get("name"):
        yield f"called {name}"
    if (rows := facts.get("rows")) is not None:
        yield f"{rows} rows"
    if operator := facts.get("operator"):
        yield f"by {operator}"
    if params := facts.get("params"):
        yield f"with {_params(params)}"
    if worker := facts.get("worker"):
        yield f"on {worker}"
    if (seconds := facts.get("seconds")) is not None:
        yield f"{seconds:.3g} s"
    if tokens := (facts.get("prompt_tokens") or 0) + (facts.get("generated_tokens") or 0):
        yield f"{tokens} tokens"
    if cost_usd := facts.get("cost_usd"):
        yield money(cost_usd)
    if (run := facts.get("computed_by_run")) and run != node.run:
        yield f"computed by {run}"
    if node.task:
        yield f"task {node.task[:12]}"
