"""Lineage drawn as a tree."""

from collections.abc import Iterator

from flowmesh.cli.output import plain
from flowmesh.wire import LineageNode

_FACT_LIMIT = 60


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
        again = key in seen and bool(node.children)
        seen.add(key)
        yield before + _described(node) + (" (as above)" if again else "")
        if again:
            continue
        branches = []
        for n, child in enumerate(node.children, 1):
            is_last = n == len(node.children)
            fork, beside = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            branches.append((child, below + fork, below + beside))
        waiting += reversed(branches)


def _described(node: LineageNode) -> str:
    words = [plain(node.label), f"[{node.kind}]"]
    if node.digest:
        words.append(node.digest.partition("/")[0][: len("sha256:") + 12])
    facts = [
        f"{name}={plain(str(value))}"
        for name, value in node.facts.items()
        if not isinstance(value, dict | list) and len(str(value)) <= _FACT_LIMIT
    ]
    if node.task:
        facts.append(f"task={node.task[:12]}")
    if facts:
        words.append(" ".join(facts))
    if node.cut:
        words.append("(cut here)")
    return "  ".join(words)
