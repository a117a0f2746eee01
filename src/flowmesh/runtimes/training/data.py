"""From tables to rows that a trainer can learn from; whatever it would stumble over is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from flowmesh.base.digest import canonical
from flowmesh.operators.train_data import DataFormat, format_of
from flowmesh.runtimes.base import Blobs
from flowmesh.runtimes.rows import Row, read_table
from flowmesh.runtimes.training.refused import Refused
from flowmesh.spec.action import Action, Artifact

_MESSAGE_KEYS = ("role", "content")
_LEAST_ROWS = 2
#: Columns that say by their name whether they hold messages; others may hold either.
_IS_CHAT = {"messages": True, "text": False}


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one port in the shape that the trainer wants, which all of them share.

    Attributes:
        rows: their columns are those of the format.
        extras: for each row, the columns that are no part of the format.
        conversational: the columns hold messages, not texts.
    """

    port: str
    rows: list[Row]
    extras: list[Row]
    format: DataFormat
    conversational: bool

    def pick(self, chosen: Sequence[int]) -> "Rows":
        rows, extras = [self.rows[n] for n in chosen], [self.extras[n] for n in chosen]
        return Rows(self.port, rows, extras, self.format, self.conversational)


def read_rows(blobs: Blobs, action: Action, port: str) -> Rows | None:
    """The checked rows of a port, None if nothing is bound to it. Raises Refused."""
    bound = action.inputs.get(port)
    if bound is None:
        return None
    assert isinstance(bound, Artifact), bound
    table = read_table(blobs, bound)
    if not table.rows:
        raise Refused(f"`{port}` has no rows; a training needs some to learn from")
    form = format_of(action.op, table.columns)
    if isinstance(form, str):
        raise Refused(f"`{port}`: {form}")
    if port == "data" and len(table.rows) < _LEAST_ROWS:
        raise Refused(f"`{port}` has one row; a training needs at least {_LEAST_ROWS}")
    return _checked(table.rows, form, port)


def _checked(table: Sequence[Row], form: DataFormat, port: str) -> Rows:
    first = form.required[0]
    conversational = _IS_CHAT.get(first, isinstance(table[0].get(first), list))
    used = [name for name in form.columns if any(row.get(name) is not None for row in table)]
    used += [name for name in form.required if name not in used]
    rows = []
    for number, row in enumerate(table):
        place = f"`{port}`, row {number + 1}, column"
        made: Row = {}
        for name in used:
            value = row.get(name)
            if name == "label":
                if not isinstance(value, bool):
                    raise Refused(f"{place} `{name}`: expected true or false, found {_kind(value)}")
                made[name] = value
            else:
                made[name] = _content(value, f"{place} `{name}`", conversational=conversational)
        rows.append(made)
    if "chosen" in form.required:
        _refuse_equal_pairs(rows, port)
    return Rows(port, rows, _extras(table, form), form, conversational)


def _extras(table: Sequence[Row], form: DataFormat) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in form.columns} for row in table]


def _content(value: Any, place: str, *, conversational: bool) -> Any:
    """A text or messages, as the first row has it. Raises Refused."""
    if not conversational:
        if not isinstance(value, str):
            raise Refused(f"{place}: expected text, found {_kind(value)}")
        if not value:
            raise Refused(f"{place}: the text is empty")
        return value
    if not isinstance(value, list):
        raise Refused(f"{place}: expected a list of messages, found {_kind(value)}")
    if not value:
        raise Refused(f"{place}: the list of messages is empty")
    return [_message(one, f"{place}, message {n}") for n, one in enumerate(value, 1)]


def _message(message: Any, place: str) -> Row:
    if not isinstance(message, dict):
        raise Refused(f"{place}: expected an object with role and content, found {_kind(message)}")
    for key in _MESSAGE_KEYS:
        if not isinstance(message.get(key), str):
            found = _kind(message.get(key)) if key in message else "no such key"
            raise Refused(f"{place}: expected a text under `{key}`, found {found}")
    for key in message:
        if key not in _MESSAGE_KEYS:
            raise Refused(f"{place}: has the key {key!r}; a message has `role` and `content`")
    return {key: message[key] for key in _MESSAGE_KEYS}


def _refuse_equal_pairs(rows: Sequence[Row], port: str) -> None:
    equal = [n for n, row in enumerate(rows) if row["chosen"] == row["rejected"]]
    if equal:
        raise Refused(
            f"`{port}`: {len(equal)} of {len(rows)} pairs have equal `chosen` and `rejected`, the"
            f" first in row {equal[0] + 1}; nothing can be learnt from them: leave them out"
        )


def check_losses(params: Any, rows: Rows) -> None:
    """Refuse losses that the rows have no part for. Raises Refused."""
    if getattr(params, "completion_only_loss", None) and "prompt" not in rows.format.required:
        raise Refused(f"`completion_only_loss` needs `{rows.port}` with `prompt` and `completion`")
    if not getattr(params, "assistant_only_loss", False):
        return
    if not rows.conversational:
        raise Refused(
            f"`assistant_only_loss` is about chats, and `{rows.port}` holds plain texts; give"
            " messages, or leave it out"
        )
    learnt = rows.format.required[-1]
    for number, row in enumerate(rows.rows, 1):
        if not any(message["role"] == "assistant" for message in row[learnt]):
            raise Refused(
                f"`{rows.port}`, row {number}, column `{learnt}`: there is no message of the"
                " assistant, of which `assistant_only_loss` could learn; leave the row out"
            )


def split(data: Rows, share: float, seed: int) -> tuple[Rows, Rows | None]:
    """Rows to learn from, and rows held out. Who goes where is fixed by content and seed."""
    if not share:
        return data, None
    held = round(share * len(data.rows))
    if not 0 < held < len(data.rows):
        raise Refused(
            f"`eval_split` {share:g} holds out {held} of {len(data.rows)} rows; both parts need"
            " at least one"
        )

    def draw(number: int) -> tuple[bytes, int]:
        return sha256(canonical([seed, data.rows[number]])).digest(), number

    order = sorted(range(len(data.rows)), key=draw)
    return data.pick(sorted(order[held:])), data.pick(sorted(order[:held]))


def _kind(value: Any) -> str:
    names: Mapping[type, str] = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number",
        str: "text", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)
