"""What prompts of one step have in common, found in their texts; in one pass over what they share.

A prefix is named by its content, the batch key and the adapters: whatever step, run or tenant
has the same, it may be read once for all of them in a batch.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowmesh.base.digest import fingerprint
from flowmesh.spec.operator import Amounts

#: English text has about four characters to a token: near enough for an estimate.
CHARS_PER_TOKEN = 4
#: A shorter beginning is not worth a name.
LEAST_TOKENS = 64


class Prefix(NamedTuple):
    """The beginning of a task's prompt: `tokens`, an estimate, of it."""

    name: str
    tokens: int


def estimated_tokens(*texts: str) -> int:
    return -(-sum(map(len, texts)) // CHARS_PER_TOKEN)


class _Group:
    """Tasks whose prompts begin alike for `depth` parts, and the groups that do for longer."""

    __slots__ = ("depth", "longer", "saved", "tasks", "tokens", "whole")

    def __init__(self, depth: int, tokens: int, tasks: list[str]) -> None:
        self.depth = depth
        self.tokens = tokens
        self.tasks = tasks
        self.longer: list[_Group] = []
        #: Tokens that need not be read, and whether by one name for all of the tasks.
        self.saved = 0
        self.whole = True


def common_beginnings(amounts: Mapping[str, Amounts], scope: str) -> dict[str, Prefix]:
    """The prefix of each task, so chosen that they save the most; a task has one or none.

    Tasks that all begin alike, and some of them alike for longer, go together either as a whole
    or by the longer beginnings, whichever leaves less to read.

    Args:
        scope: what must be equal besides: the batch key and the adapters.
    """
    groups = [_Group(0, 0, [task for task, one in amounts.items() if one.prompt])]
    for group in groups:  # grows meanwhile
        longer = _split(group, amounts)
        while len(longer) == 1 and len(longer[0].tasks) == len(group.tasks):
            group.depth, group.tokens = longer[0].depth, longer[0].tokens
            longer = _split(group, amounts)
        group.longer = longer
        groups += longer
    for group in reversed(groups):  # Longer ones were made after.
        saved = sum(longer.saved for longer in group.longer)
        own = (len(group.tasks) - 1) * group.tokens if group.tokens >= LEAST_TOKENS else 0
        group.whole = own > 0 and own >= saved
        group.saved = max(own, saved)
    return _named(groups[0], amounts, scope)


def _split(group: _Group, amounts: Mapping[str, Amounts]) -> list[_Group]:
    """Tasks by the next part of their prompts, where several have the same."""
    by_part: dict[str, list[str]] = {}
    for task in group.tasks:
        parts: Sequence[str] = amounts[task].prompt
        if len(parts) > group.depth:
            by_part.setdefault(parts[group.depth], []).append(task)
    return [
        _Group(group.depth + 1, group.tokens + estimated_tokens(part), tasks)
        for part, tasks in by_part.items()
        if len(tasks) > 1
    ]


def _named(root: _Group, amounts: Mapping[str, Amounts], scope: str) -> dict[str, Prefix]:
    found: dict[str, Prefix] = {}
    waiting = [root]
    while waiting:
        group = waiting.pop()
        if not group.whole:
            waiting += group.longer
            continue
        text = "".join(amounts[group.tasks[0]].prompt[: group.depth])
        prefix = Prefix(fingerprint({"scope": scope, "prompt": text}), group.tokens)
        found |= dict.fromkeys(group.tasks, prefix)
    return found
