"""Digests and canonical JSON: the one way FlowMesh names content.

Canonical JSON is defined here and nowhere else: object keys sorted by code point,
UTF-8 without escapes beyond those JSON requires, no white space, integers plain,
every other number as the shortest decimal that reads back to the same double, in
the notation of ECMAScript (so `1.0` is `1` and `1e3` is `1000`). Where RFC 8785
defines the same value, the two agree; integers beyond 2**53 it refuses, we do not.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

_TEXT = re.compile(r"sha256:([0-9a-f]{64})/(\d{1,18})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """SHA-256 of some bytes, with their length. Written `sha256:<64 hex>/<bytes>`."""

    hash: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote. Raises ValueError for anything else."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:100]!r} is not a digest; expected sha256:<64 hex>/<bytes>")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"sha256:{self.hash}/{self.size_bytes}"

    @property
    def short(self) -> str:
        """The first 12 hex digits: for people, never for look-up."""
        return self.hash[:12]


def canonical(value: object) -> bytes:
    """Encode plain JSON data so that equal values give equal bytes.

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts).encode()


def fingerprint(action: Mapping[str, object]) -> str:
    """The id of a task: the SHA-256 of its canonical action document, in hex."""
    return hashlib.sha256(canonical(action)).hexdigest()


def _write(value: object, parts: list[str]) -> None:
    match value:
        case None | bool() | str():
            parts.append(json.dumps(value, ensure_ascii=False))
        case int():
            parts.append(str(value))
        case float():
            parts.append(_decimal(value))
        case Mapping():
            parts.append("{")
            for n, key in enumerate(sorted(value)):
                parts.append("," if n else "")
                parts.append(json.dumps(_text(key), ensure_ascii=False))
                parts.append(":")
                _write(value[key], parts)
            parts.append("}")
        case Sequence() if not isinstance(value, bytes | bytearray):
            parts.append("[")
            for n, item in enumerate(value):
                parts.append("," if n else "")
                _write(item, parts)
            parts.append("]")
        case _:
            raise TypeError(f"{type(value).__name__} has no place in canonical JSON: {value!r:.80}")


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"canonical JSON has string keys only, found {key!r:.80}")
    return key


def _decimal(value: float) -> str:
    """Number to text as ECMAScript does it (ECMA-262, Number::toString)."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in canonical JSON")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        text = padded[:point] + ("." + padded[point:] if len(padded) > point else "")
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        tail = "." + digits[1:] if len(digits) > 1 else ""
        text = f"{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + text
