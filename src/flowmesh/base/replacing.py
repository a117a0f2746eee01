"""Frozen records made quickly: `replace` as of `dataclasses`, and `maker`, a constructor.

The control plane makes a few records for each task, and little else takes as long. A frozen
dataclass sets each field by a call; here a record is filled while it is still of a twin class
that is not frozen and has the same slots, and then becomes what it is.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, ParamSpec, TypeVar

Record = TypeVar("Record")
Given = ParamSpec("Given")

#: By class: what makes a draft of a record.
_COPIES: dict[type, Callable[[Any], Any]] = {}


def replace(record: Record, /, **changes: Any) -> Record:
    """A record with some fields changed. Its class is frozen, with slots and without bases.

    Raises AttributeError if there is no such field.
    """
    kind = type(record)
    copy = _COPIES.get(kind)
    if copy is None:
        copy = _COPIES[kind] = _copy(kind)
    new = copy(record)
    for name, value in changes.items():
        setattr(new, name, value)
    new.__class__ = kind
    return new  # type: ignore[no-any-return]


def maker(kind: Callable[Given, Record]) -> Callable[Given, Record]:
    """Does what calling a class does, which is frozen, with slots and without bases."""
    given = _fields(kind)
    defaults = {f"_{one.name}": one.default for one in given if one.default is not MISSING}
    names = [f"{one.name}=_{one.name}" if one.default is not MISSING else one.name for one in given]
    body = [f"new.{one.name} = {one.name}" for one in given]
    made: Callable[Given, Record] = _compiled(
        ", ".join(names), [*body, "new.__class__ = kind"], {**defaults, "kind": kind}, given
    )
    return made


def _copy(kind: type) -> Callable[[Any], Any]:
    given = _fields(kind)
    return _compiled("old", [f"new.{one.name} = old.{one.name}" for one in given], {}, given)


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    given = fields(kind)
    assert all(one.init and one.default_factory is MISSING for one in given), kind
    assert not hasattr(kind, "__post_init__"), kind
    return given


def _compiled(
    arguments: str, body: list[str], known: dict[str, Any], given: tuple[Field[Any], ...]
) -> Callable[..., Any]:
    """A function that makes a draft and fills it; code written out is what makes it quick."""
    known["draft"] = type("Draft", (), {"__slots__": tuple(one.name for one in given)})
    lines = [f"def made({arguments}):", "new = draft()", *body, "return new"]
    exec("\n    ".join(lines), known)  # the same as `dataclasses` does for the class
    return known["made"]  # type: ignore[no-any-return]
