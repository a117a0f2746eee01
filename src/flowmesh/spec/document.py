"""Text to plain data, with the line and column of everything in it.

The text is YAML 1.2 as far as people rely on it, so JSON too: only `true` and `false` are
booleans (`yes`, `no`, `on`, `off` are words), only `null` and `~` are null, numbers are
numbers as in JSON, dates are words. Tags are refused; anchors are allowed within limits.
The parser's events are read one by one, so that no document can exhaust the stack.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from flowmesh.base.errors import Problem, SpecError

SIZE_LIMIT_BYTES = 1_000_000
DEPTH_LIMIT = 32
#: Values in a document after its aliases are expanded.
VALUES_LIMIT = 100_000

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False}
_BOOLEAN["FALSE"] = False
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})")
_REAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_CONTROL = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATES = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where each value of a document stands: of a mapping's entry, the place of its key.

    Lines and columns count from 1. A workflow that was not read from text has none.
    """

    file: str = ""
    places: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem at a path, on the line of the nearest part of it that is in the text."""
        keys = tuple(str(key) for key in path)
        line, column = next(
            (self.places[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.places),
            (0, 0),
        )
        return Problem(message, self.file, line, column, ".".join(keys))


def read(text: str | bytes, file: str = "") -> tuple[Any, Positions]:
    """Plain data and positions. Raises SpecError for text that is not one sound document."""
    source = _clean(text, file)
    builder = _Builder(file)
    try:
        builder.read(yaml.parse(source, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        raise SpecError(_malformed(error, source, file)) from None
    except yaml.YAMLError as error:
        raise SpecError(Problem(f"malformed YAML: {error}", file)) from None
    if builder.problems:
        raise SpecError(*builder.problems)
    return builder.root, Positions(file, builder.places)


def _clean(text: str | bytes, file: str) -> str:
    size_bytes = len(text) if isinstance(text, bytes) else len(text.encode(errors="replace"))
    if size_bytes > SIZE_LIMIT_BYTES:
        message = f"the document has {size_bytes:,} bytes; the limit is {SIZE_LIMIT_BYTES:,}"
        raise SpecError(Problem(message, file))
    text = (_decoded(text, file) if isinstance(text, bytes) else text).removeprefix("\ufeff")
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        message = f"character U+{ord(found[0]):04X} cannot stand in a document"
        raise SpecError(Problem(message, file, line, column))
    # JSON writes characters beyond U+FFFF as two escapes, YAML as one.
    return _SURROGATES.sub(_one_escape, text) if text.lstrip().startswith("{") else text


def _decoded(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise SpecError(Problem(message, file, line)) from None


def _one_escape(found: re.Match[str]) -> str:
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}\\U{0x10000 + (high - 0xD800) * 0x400 + (low - 0xDC00):08x}"


def _malformed(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
    message = f"malformed YAML: {error.problem or error.context}"
    if error.context and error.problem:
        message += f" {error.context}"
        if error.context_mark and error.context_mark.line + 1 != line:
            message += f" that starts on line {error.context_mark.line + 1}"
    lines = text.split("\n")
    if 0 < line <= len(lines) and re.match(r"[ ]*\t", lines[line - 1]):
        message += "; indent with spaces, not with tabs"
    elif "mapping values are not allowed" in message:
        message += "; quote text that holds a colon"
    return Problem(message, file, line, column)


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been read yet."""

    value: Any
    path: Path
    anchor: str | None
    first: int  #: number of values before this one, to know its size at the end
    key: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


class _Builder:
    """Builds data from the parser's events, with a stack of its own."""

    def __init__(self, file: str) -> None:
        self.root: Any = None
        self.places: dict[Path, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0
        self._documents = 0

    def read(self, events: Iterator[yaml.Event]) -> None:
        actions: dict[type[yaml.Event], Callable[[Any], None]] = {
            yaml.DocumentStartEvent: self._document,
            yaml.ScalarEvent: self._scalar,
            yaml.AliasEvent: self._alias,
            yaml.MappingStartEvent: lambda event: self._open(event, {}),
            yaml.SequenceStartEvent: lambda event: self._open(event, []),
            yaml.MappingEndEvent: self._close,
            yaml.SequenceEndEvent: self._close,
        }
        for event in events:
            if action := actions.get(type(event)):
                action(event)

    def _document(self, event: yaml.DocumentStartEvent) -> None:
        self._documents += 1
        if self._documents > 1:
            self._refuse("a second document starts here; one file holds one workflow", event)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if self._expects_key():
            self._key(event)
            return
        if event.tag not in (None, "!"):
            self._refuse(f"tag {event.tag!r} is not part of the language", event)
        plain = event.implicit[0] and not event.style
        value = self._plain(event) if plain else event.value
        if event.anchor:
            self._anchors[event.anchor] = (value, 1)
        self._count(1, event)
        self._add(value, event)

    def _plain(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _REAL.fullmatch(text) and not _is_padded(text):
            number = float(text)
            if not math.isfinite(number):
                self._refuse(f"number {text[:40]} is out of range", event)
            return number
        return text

    def _key(self, event: yaml.ScalarEvent) -> None:
        top = self._stack[-1]
        key, (line, column) = event.value, _place(event)
        if key in top.lines:
            path = (*top.path, key)
            message = f"key {key!r} is written twice, first on line {top.lines[key]}"
            self.problems.append(Problem(message, self._file, line, column, ".".join(path)))
        top.lines.setdefault(key, line)
        top.key = key
        self.places.setdefault((*top.path, key), (line, column))

    def _alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor is None or event.anchor not in self._anchors:
            self._refuse(f"alias *{event.anchor} has no finished anchor before it", event)
        value, size = self._anchors[event.anchor]
        if self._expects_key():
            self._refuse("a key cannot be an alias", event)
        self._count(size, event)
        self._add(value, event)

    def _open(self, event: Any, value: Any) -> None:
        if self._expects_key():
            self._refuse("a key must be a word, not a list or a mapping", event)
        if event.tag not in (None, "!"):
            self._refuse(f"tag {event.tag!r} is not part of the language", event)
        if len(self._stack) >= DEPTH_LIMIT:
            self._refuse(f"nested deeper than the limit of {DEPTH_LIMIT} levels", event)
        path = self._add(value, event)
        self._stack.append(_Open(value, path, event.anchor, self._values))
        self._count(1, event)

    def _close(self, event: yaml.Event) -> None:
        done = self._stack.pop()
        if done.anchor:
            self._anchors[done.anchor] = (done.value, self._values - done.first)

    def _expects_key(self) -> bool:
        return (
            bool(self._stack)
            and isinstance(self._stack[-1].value, dict)
            and (self._stack[-1].key is None)
        )

    def _add(self, value: Any, event: yaml.Event) -> Path:
        """Put a value where it belongs; its path."""
        if not self._stack:
            self.root = value
            self.places[()] = _place(event)
            return ()
        top = self._stack[-1]
        if isinstance(top.value, list):
            path = (*top.path, str(len(top.value)))
            self.places[path] = _place(event)
            top.value.append(value)
            return path
        assert top.key is not None
        path, key, top.key = (*top.path, top.key), top.key, None
        top.value.setdefault(key, value)
        return path

    def _count(self, values: int, event: yaml.Event) -> None:
        self._values += values
        if self._values > VALUES_LIMIT:
            self._refuse(f"more values than the limit of {VALUES_LIMIT:,}, aliases counted", event)

    def _refuse(self, message: str, event: yaml.Event) -> NoReturn:
        raise SpecError(*self.problems, Problem(message, self._file, *_place(event)))


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _is_padded(text: str) -> bool:
    """Whether a number has leading zeros: `007` is a name, not a number."""
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
