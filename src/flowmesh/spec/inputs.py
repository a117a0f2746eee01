"""What a document is given: tables, files, plain values and models."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from flowmesh.base.digest import Digest
from flowmesh.base.names import name_and_tag
from flowmesh.spec.messages import shown

NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"
NAME_RULE = (
    "a name starts with a letter and goes on with letters, digits, `_` and `-`, 63 in all at most"
)

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Plain = StrictBool | StrictInt | float | StrictStr
ForPeople = Annotated[str, Field(description="For people.")]


class Part(BaseModel):
    """Base of every part of the document: frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TableInput(Part):
    """A table from a JSONL, JSON, CSV or Parquet file; `file` is the one used by default."""

    type: Annotated[Literal["table"], Field(description="This is a table.")]
    file: Annotated[
        str | None,
        Field(
            description=(
                "JSONL, JSON, CSV, TSV or Parquet; relative to the document. Used unless"
                " `--input` gives another; needed if it does not."
            )
        ),
    ] = None
    columns: Annotated[
        tuple[str, ...] | None, Field(description="Columns that the table must have.")
    ] = None
    description: ForPeople = ""


class FileInput(Part):
    """Any file; `file` is the one used by default."""

    type: Annotated[Literal["file"], Field(description="This is a file.")]
    file: Annotated[
        str | None,
        Field(description="Relative to the document; used unless `--input` gives another."),
    ] = None
    description: ForPeople = ""


class PlainInput(Part):
    """A value; set by `--set name=value`, and needed where it has no default."""

    type: Annotated[Literal["string", "int", "float", "bool"], Field(description="Kind of value.")]
    default: Annotated[
        Plain | None,
        Field(description="Used unless `--set` gives another; without one the input is required."),
    ] = None
    min: Annotated[StrictInt | float | None, Field(description="Least value, of numbers.")] = None
    max: Annotated[StrictInt | float | None, Field(description="Greatest value, of numbers.")] = (
        None
    )
    choices: Annotated[
        Annotated[tuple[Plain, ...], Field(min_length=1)] | None,
        Field(description="The only values allowed."),
    ] = None
    description: ForPeople = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> "PlainInput":
        if self.type not in ("int", "float") and (self.min is not None or self.max is not None):
            raise ValueError(f"`min` and `max` are for numbers, not for type {self.type}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` {self.min} is greater than `max` {self.max}")
        for choice in self.choices or ():
            if wrong := self._wrong_type(choice):
                raise ValueError(f"choice: {wrong}")
        if self.default is not None and (wrong := self.refusal(self.default)):
            raise ValueError(f"default: {wrong}")
        return self

    def _wrong_type(self, value: Any) -> str:
        expected, right = {
            "string": ("text", isinstance(value, str) and _is_unicode(value)),
            "int": ("a whole number", isinstance(value, int) and not isinstance(value, bool)),
            "float": (
                "a number",
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value),
            ),
            "bool": ("true or false", isinstance(value, bool)),
        }[self.type]
        return "" if right else f"expected {expected}, found {shown(value)}"

    def refusal(self, value: Any) -> str:
        """Why this input does not take a value, or nothing if it does."""
        if wrong := self._wrong_type(value):
            return wrong
        if self.min is not None and value < self.min:
            return f"must be at least {self.min}, found {shown(value)}"
        if self.max is not None and value > self.max:
            return f"must be at most {self.max}, found {shown(value)}"
        if self.choices is not None and value not in self.choices:
            known = ", ".join(shown(choice) for choice in self.choices)
            return f"must be one of {known}, found {shown(value)}"
        return ""


def _is_unicode(text: str) -> bool:
    """A command line may hold bytes that are no text; Python passes them on as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Input = Annotated[TableInput | FileInput | PlainInput, Field(discriminator="type")]


class ModelSource(Part):
    """Where a model's files come from: exactly one source."""

    package: Annotated[
        str | None, Field(description="A Python package on this machine that holds the files.")
    ] = None
    path: Annotated[str | None, Field(description="A directory or GGUF file.")] = None
    hub: Annotated[str | None, Field(description="A name on the hub; needs `revision`.")] = None
    revision: Annotated[str | None, Field(description="Of `hub`: a commit, 40 hex digits.")] = None
    digest: Annotated[str | None, Field(description="A tree in the store.")] = None
    name: Annotated[
        str | None, Field(description="As in `flowmesh models`, alone or as `NAME@TAG`.")
    ] = None

    @field_validator("revision")
    @classmethod
    def _is_pinned(cls, revision: str | None) -> str | None:
        if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(
                f"{shown(revision)} does not fix the weights; give a commit, 40 hex digits"
            )
        return revision

    @field_validator("digest")
    @classmethod
    def _is_a_digest(cls, digest: str | None) -> str | None:
        return None if digest is None else str(Digest.parse(digest))

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None:
            name_and_tag(name)
        return name

    @model_validator(mode="after")
    def _has_one_source(self) -> "ModelSource":
        sources = ("package", "path", "hub", "digest", "name")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(sources)}; found {found}")
        if self.hub is not None and self.revision is None:
            raise ValueError("`hub` needs `revision`, the commit (40 hex digits) to use")
        if self.hub is None and self.revision is not None:
            raise ValueError(f"`revision` goes with `hub`, not with `{given[0]}`")
        return self
