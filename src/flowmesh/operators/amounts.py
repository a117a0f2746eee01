"""How much work an action is: tokens to read and to write, told from its texts by their length.

Tokens are counted in characters, about four to a token: the server has no tokenizers. What a
token costs is learnt from batches that told what they really read and wrote.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowmesh.spec.action import Artifact, Bound, artifacts_of
from flowmesh.spec.operator import Amounts
from flowmesh.spec.prefixes import CHARS_PER_TOKEN, estimated_tokens

#: What a chat template puts around a turn.
_TURN_TOKENS = 5
#: A token that is read costs less than one that is generated: a prompt is read all at once.
_READ_COST = 0.4
#: For each parameter and token: forwards; and with twice as much backwards.
READING_FLOPS, TRAINING_FLOPS = 2.0, 6.0
#: A table of so many bytes is a unit of work.
_UNIT_BYTES = 1_000_000
#: Rows of a table that is not known to have a number of them.
UNKNOWN_ROWS = 100
#: Tokens of a row of such a table.
UNKNOWN_ROW_TOKENS = 250


def of_tokens(read: int, most_written: int = 0, prompt: tuple[str, ...] = ()) -> Amounts:
    """Of a task that reads and writes so many tokens."""
    return Amounts(1 + _READ_COST * read + most_written, read, most_written, prompt)


def prompt_tokens(task: Mapping[str, Any]) -> int:
    """Of the one prompt of a task, a chat's or a plain one."""
    if "messages" not in task:
        return estimated_tokens(task["prompt"])
    turns = task["messages"]
    return estimated_tokens(*(turn["content"] for turn in turns)) + _TURN_TOKENS * len(turns)


def prompt_parts(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompt in the parts that engines remember: turns of a chat, or the whole of a text."""
    if "messages" not in task:
        return (task["prompt"],)
    return tuple(f"{turn['role']}\n{turn['content']}\n" for turn in task["messages"])


def reading(task: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    """Of a task that reads its texts, and perhaps writes an answer behind them.

    A pair is read in both orders.
    """
    texts = [text for text in task.values() if isinstance(text, str)]
    texts += [turn["content"] for turn in task.get("messages", ())]
    times = 2 if task.get("kind") == "pairwise" else 1
    return of_tokens(times * estimated_tokens(*texts), times * int(task.get("max_tokens", 0)))


def whole_tables(task: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    """Of a task that goes through all of its tables, by their bytes."""
    size_bytes = sum(table.address.size_bytes for table in _tables(inputs))
    return Amounts(work=1 + size_bytes / _UNIT_BYTES)


def rows_and_tokens(table: Bound | None) -> tuple[int, int]:
    """Rows of a table, and estimated tokens of one; guesses where they are not known."""
    if not isinstance(table, Artifact) or table.rows < 0:
        return UNKNOWN_ROWS, UNKNOWN_ROW_TOKENS
    tokens = -(-table.address.size_bytes // (CHARS_PER_TOKEN * max(1, table.rows)))
    return table.rows, max(1, tokens)


def _tables(inputs: Mapping[str, Bound]) -> Iterator[Artifact]:
    for bound in inputs.values():
        yield from (one for one in artifacts_of(bound) if one.kind == "table")
