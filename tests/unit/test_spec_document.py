"""Reading text: what it means, where things stand, and what is refused on which line."""

import json

import pytest

from flowmesh.base.errors import Problem, SpecError
from flowmesh.spec.document import DEPTH_LIMIT, SIZE_LIMIT_BYTES, VALUES_LIMIT, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[yes, no, on, off, Yes, n]", ["yes", "no", "on", "off", "Yes", "n"]),
        ("[true, false, True, FALSE]", [True, False, True, False]),
        ("[null, ~, '', 'null']", [None, None, "", "null"]),
        ("[1, -2, +3, 0]", [1, -2, 3, 0]),
        ("[1e-5, 1.5, .5, 2., 1E3]", [1e-5, 1.5, 0.5, 2.0, 1000.0]),
        ("[2026-01-31, 12:30, 007, 0x10, 1_000]", ["2026-01-31", "12:30", "007", "0x10", "1_000"]),
        ("['1', \"true\"]", ["1", "true"]),
        ("{on: 1, 2: x}", {"on": 1, "2": "x"}),
        ("a: &x {b: [1]}\nc: *x\n", {"a": {"b": [1]}, "c": {"b": [1]}}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("\ufeffa: 1", {"a": 1}),
        ("", None),
    ],
)
def test_text_means_what_yaml_1_2_says(text: str, value: object) -> None:
    data, _ = read(text)
    assert data == value
    assert repr(data) == repr(value)  # 1 is not True


@pytest.mark.parametrize("indent", [None, 2, "\t"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_is_read_as_json(indent: int | str | None, ascii_only: bool) -> None:
    value = {"a": ["\U0001f600 é \\ud83d \\", 1e-7, None, True, {"b/c": "\n\t\"'"}], "yes": "no"}
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(text)[0] == value


def test_everything_has_a_place() -> None:
    _, positions = read("a:\n  b: [1,\n     {c: 2}]\nd: 3\n", "w.yaml")
    assert positions.places == {
        (): (1, 1),
        ("a",): (1, 1),
        ("a", "b"): (2, 3),
        ("a", "b", "0"): (2, 7),
        ("a", "b", "1"): (3, 6),
        ("a", "b", "1", "c"): (3, 7),
        ("d",): (4, 1),
    }
    assert positions.problem("wrong", "a", "b", 1, "x") == Problem(
        "wrong", "w.yaml", 3, 6, "a.b.1.x"
    )


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [1, 2\nb: 3", 2, "malformed YAML: did not find expected ',' or ']'"),
        ("a: 1\nb: x: y", 2, "quote text that holds a colon"),
        ("a:\n\tb: 1", 2, "indent with spaces, not with tabs"),
        ("a: 'x", 1, "malformed YAML: found unexpected end of stream"),
        ("a: 1\nb: 2\n\na: 3", 4, "key 'a' is written twice, first on line 1"),
        ("[" * (DEPTH_LIMIT + 1), 1, "nested deeper than the limit of 32 levels"),
        ("a: &x [*x]", 1, "alias *x has no finished anchor"),
        ("a: *y", 1, "alias *y has no finished anchor"),
        ("a: !!python/name:os.system x", 1, "is not part of the language"),
        ("a: !!binary [x]", 1, "is not part of the language"),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("&k a: 1\n*k : 2", 2, "alias *k has no finished anchor"),
        ("--- {}\n--- {}", 2, "a second document starts here"),
        ("a: 1e999", 1, "number 1e999 is out of range"),
        ("a:\n - \x00", 2, "character U+0000 cannot stand"),
        (b"a: 1\nb: \xff", 2, "is not UTF-8"),
        ("a: \ud800", 1, "character U+D800 cannot stand"),
    ],
)
def test_unsound_text_is_refused_on_its_line(text: str | bytes, line: int, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(text, "w.yaml")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.file, problem.line) == ("w.yaml", line)


def test_every_duplicate_key_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        read("a: 1\na: 2\nb: {c: 1,\n c: 2}\n")
    assert [problem.path for problem in caught.value.problems] == ["a", "b.c"]


def test_a_large_document_is_refused_by_the_name_of_its_limit() -> None:
    read(" " * SIZE_LIMIT_BYTES)
    with pytest.raises(SpecError, match="has 1,000,001 bytes; the limit is 1,000,000"):
        read(" " * (SIZE_LIMIT_BYTES + 1))


def test_aliases_cannot_multiply_without_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SpecError, match=f"the limit of {VALUES_LIMIT:,}, aliases counted"):
        read("\n".join(lines))
