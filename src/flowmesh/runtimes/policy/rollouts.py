"""Roll-outs on their way in: what `generate` wrote and somebody judged, row by row, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowmesh.runtimes.rows import Row, Table, TableError


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt.

    Attributes:
        prompt, completion: token ids; the completion's end token is one of them.
        signal: its advantage or its reward.
        logprobs: of each token of the completion when it was drawn, if they are known.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    signal: float
    logprobs: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the model can read: token ids below `vocabulary`, at most `context` tokens."""

    vocabulary: int
    context: int


def read_rollouts(
    table: Table, needed: Mapping[str, str], signal: str, bounds: Bounds
) -> list[Rollout]:
    """Check every row. Raises TableError, which names the row at fault.

    Args:
        needed: columns that must be there, with where they come from.
        signal: the one of them that holds the advantage or the reward.
    """
    if not table.rows:
        raise TableError("there are no roll-outs to learn from: the table has no rows")
    for name, hint in needed.items():
        if name not in table.columns:
            raise TableError(f"the roll-outs have no column {name!r}: {hint}")
    signals = numbers(table, signal)
    found = []
    for number, (row, reward_or_advantage) in enumerate(zip(table.rows, signals, strict=True), 1):
        prompt = _tokens(row, number, "prompt_tokens", bounds)
        completion = _tokens(row, number, "completion_tokens", bounds)
        length = len(prompt) + len(completion)
        if length > bounds.context:
            raise TableError(
                f"row {number} has {length} tokens but the model's context holds "
                f"{bounds.context}; leave it out, or draw with fewer `max_tokens`"
            )
        logprobs = _logprobs(row, number, len(completion))
        found.append(Rollout(prompt, completion, reward_or_advantage, logprobs))
    return found


def numbers(table: Table, column: str) -> list[float]:
    """A column of finite numbers. Raises TableError."""
    found = []
    for number, row in enumerate(table.rows, 1):
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise TableError(
                f"row {number}: {column!r} is {value!r:.40}, and a finite number is expected"
            )
        found.append(float(value))
    return found


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _tokens(row: Row, number: int, column: str, bounds: Bounds) -> tuple[int, ...]:
    tokens = row.get(column)
    if not isinstance(tokens, list) or not tokens:
        raise TableError(
            f"row {number}: {column!r} is {tokens!r:.40}, and a list of token ids is expected"
        )
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise TableError(f"row {number}: {column!r} holds {token!r:.40}, which is no token id")
        if not 0 <= token < bounds.vocabulary:
            raise TableError(
                f"row {number}: {column!r} holds the token {token}, but the model's vocabulary "
                f"has {bounds.vocabulary}; were the roll-outs drawn with another model?"
            )
    return tuple(tokens)


def _logprobs(row: Row, number: int, length: int) -> tuple[float, ...] | None:
    """The column `logprobs`, as `generate` writes it: None where a row has none."""
    written: Any = row.get("logprobs")
    if written is None:
        return None
    values = written.get("logprobs") if isinstance(written, Mapping) else None
    if not isinstance(values, Sequence) or isinstance(values, str) or not _plain(values):
        raise TableError(
            f"row {number}: 'logprobs' is {written!r:.40}, and an object with `tokens` and "
            "`logprobs` is expected, as `generate` with `logprobs: true` writes it"
        )
    if len(values) != length:
        raise TableError(
            f"row {number}: 'completion_tokens' has {length} tokens and 'logprobs' has "
            f"{len(values)} values; they must be of one completion"
        )
    return tuple(float(value) for value in values)


def _plain(values: Sequence[Any]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
        for value in values
    )
