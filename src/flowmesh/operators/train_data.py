"""The tables that training operators take: which columns make a data set, and which do not.

The formats are those that TRL documents for its trainers. A text is plain; a list of
messages is conversational, and the model's chat template turns it into text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowmesh.base.nearest import nearest
from flowmesh.spec.operator import Columns, ParamError


@dataclass(frozen=True, slots=True)
class DataFormat:
    """Columns that a row must have, and those that it may have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.optional, *self.required)


_PREFERENCE = (DataFormat(("chosen", "rejected"), ("prompt",)),)
_PROMPTS = (DataFormat(("prompt",)),)
#: Formats by operator. Where a table fits several, the first of them is meant.
FORMATS: Mapping[str, tuple[DataFormat, ...]] = {
    "sft": (
        DataFormat(("prompt", "completion")),
        DataFormat(("messages",)),
        DataFormat(("text",)),
    ),
    "dpo": _PREFERENCE,
    "kto": (DataFormat(("prompt", "completion", "label")),),
    "reward_model": _PREFERENCE,
    "grpo": _PROMPTS,
    "rloo": _PROMPTS,
}


def format_of(op: str, columns: Sequence[str]) -> DataFormat | str:
    """The format that a table with these columns has, or what is wrong with it, in words."""
    formats = FORMATS[op]
    for one in formats:
        if set(one.required) <= set(columns):
            return one
    nearly = max(formats, key=lambda one: len(set(one.required) & set(columns)))
    missing = next(name for name in nearly.required if name not in columns)
    wanted = ", or ".join(_in_words(one) for one in formats)
    return f"{op} takes {wanted}; there is no column {missing!r}{nearest(missing, columns)}"


def check_columns(op: str, tables: Mapping[str, Columns]) -> None:
    """Raises ParamError, under the name of the port, for a table of no format of `op`."""
    for port in ("data", "eval_data"):
        columns = tables.get(port)
        fault = format_of(op, columns) if columns is not None else None
        if isinstance(fault, str):
            raise ParamError(port, fault)


def _in_words(one: DataFormat) -> str:
    names = [f"`{name}`" for name in one.required]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if one.optional:
        text += f" (and perhaps `{'`, `'.join(one.optional)}`)"
    return text
