"""Tables as bytes, and what is refused of them."""

from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.spec.table import DEPTH_LIMIT, check_rows, columns_of, decode_rows, encode_rows


def test_a_table_is_one_compact_object_a_line() -> None:
    rows: list[dict[str, Any]] = [{"b": "é\n\u2028", "a": 1.5}, {"a": None, "c": [{"x": True}]}]
    data = '{"b":"é\\n\u2028","a":1.5}\n{"a":null,"c":[{"x":true}]}\n'.encode()
    assert encode_rows(rows) == data
    assert decode_rows(data) == rows
    assert list(decode_rows(data)[0]) == ["b", "a"]
    assert columns_of(rows) == ("b", "a", "c")


def test_blank_lines_and_carriage_returns_are_passed_over() -> None:
    assert decode_rows(b'{"a":1}\r\n\n  \n{"a":2}') == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        encode_rows([{"a": value}])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": 1', "is not JSON: expecting"),
        (b"hello", "is not JSON: expecting value"),
        (b'{"a": NaN}', "is not JSON: NaN is not JSON"),
        (b'{"a": "\xff"}', "is not JSON: not UTF-8"),
        (b'{"a": "\\ud800"}', "is not JSON: not UTF-8"),
        (b'{"a": 1, "a": 2}', "is not JSON: key 'a' is written twice"),
        (b'{"a": ' + b"9" * 9000 + b"}", "a number has thousands of digits"),
        ('{"a": 1}'.encode("utf-16-le"), "is not JSON"),
        (b"[1, 2]", "is a list; expected an object with column names"),
        (b"null", "is null; expected an object"),
        (b'{"a": ' + b"[" * 100_000, "is not JSON: nested too deep"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than the limit of 64 levels"),
    ],
)
def test_line_17_is_named(line: bytes, words: str) -> None:
    data = b'{"a":1}\n' * 15 + b"\n" + line + b'\n{"a":1}\n'
    with pytest.raises(SpecError) as caught:
        decode_rows(data, "rows.jsonl")
    (problem,) = caught.value.problems
    assert problem.message.startswith("line 17 ")
    assert words in problem.message
    assert (problem.file, problem.line) == ("rows.jsonl", 17)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(SpecError, match=r"rows\.csv: the table has no rows"):
        check_rows([], "rows.csv")


@pytest.mark.parametrize(
    "values", [[1, 2.5, None], ["a", None], [True, False], [[1], ["a"]], [{"a": 1}, {}], [None]]
)
def test_columns_of_one_type_are_taken(values: list[Any]) -> None:
    check_rows([{"a": value} for value in values])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, "x"], "row 2 holds text, row 1 a number"),
        ([None, True, 1], "row 3 holds a number, row 2 true or false"),
        ([[1], {"a": 1}], "row 2 holds an object, row 1 a list"),
    ],
)
def test_a_column_of_two_types_is_refused(values: list[Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_rows([{"a": value} for value in values], "rows.csv", first_line=2)
    (problem,) = caught.value.problems
    assert problem.message == f"column 'a' mixes types: {words}"
    assert (problem.file, problem.line) == ("rows.csv", len(values) + 1)


def test_every_bad_column_is_told_once() -> None:
    with pytest.raises(SpecError) as caught:
        check_rows([{"a": 1, "b": 1}, {"a": "", "b": ""}, {"a": "", "b": ""}])
    assert [problem.line for problem in caught.value.problems] == [0, 0]


def test_what_could_not_be_read_again_is_not_written() -> None:
    value: list[Any] = []
    for _ in range(DEPTH_LIMIT + 1):
        value = [value]
    with pytest.raises(ValueError, match="nested deeper"):
        encode_rows([{"x": value}])
