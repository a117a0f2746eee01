"""Canonical JSON: our own definition, held against RFC 8785 where the two overlap."""

import hashlib
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.digest import Digest, canonical, fingerprint

finite = st.floats(allow_nan=False, allow_infinity=False)
#: RFC 8785 sorts keys by UTF-16 unit, we by code point: they agree below U+D800.
plain_text = st.text(st.characters(max_codepoint=0xD7FF))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | finite | plain_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_agrees_with_rfc_8785(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**60, "1152921504606846976"),
        (1.0, "1"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (1e-7, "1e-7"),
        (0.1 + 0.2, "0.30000000000000004"),
        ({"b": 1, "a": [True, None]}, '{"a":[true,null],"b":1}'),
        ({"\U00010000": 1, "\ue000": 2}, '{"\ue000":2,"\U00010000":1}'),
    ],
)
def test_is_defined_where_rfc_8785_is_not(value: object, text: str) -> None:
    assert canonical(value).decode() == text


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, b"x", {"a": object()}])
def test_refuses_what_json_cannot_hold(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"no place|string keys"):
        canonical(value)


def test_a_string_and_a_number_never_meet() -> None:
    assert fingerprint({"x": 0.5}) != fingerprint({"x": "0.5"})


def test_a_digest_reads_what_it_writes() -> None:
    digest = Digest.of(b"abc")
    assert Digest.parse(str(digest)) == digest
    assert digest.hash == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(ValueError, match="is not a digest"):
        Digest.parse(digest.hash)
