"""Local tables become rows, or a message that says where they went wrong."""

import datetime
import math
import os
from pathlib import Path
from typing import Any

import duckdb
import pytest

from flowmesh.base.errors import SpecError
from flowmesh.sdk.tables import encoded, read_table, rows_in_memory

pandas = pytest.importorskip("pandas")

ROWS = [{"q": "a", "n": 1}, {"q": "ü", "n": 2}]


def read(folder: Path, name: str, content: bytes | str) -> list[dict[str, Any]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"q":"a","n":1}\n{"q":"ü","n":2}\n'),
        ("t.ndjson", '\ufeff{"q":"a","n":1}\r\n\r\n{"q":"ü","n":2}'),
        ("t.JSON", '[{"q":"a","n":1},{"q":"ü","n":2}]'),
        ("t.csv", "q,n\na,1\nü,2\n"),
        ("t.tsv", "q\tn\na\t1\nü\t2\n"),
        ("odd [1]*?.csv", "q,n\na,1\nü,2\n"),
    ],
)
def test_one_table_in_every_format(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, name, content) == ROWS


def test_parquet_with_times_decimals_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    duckdb.execute(
        "COPY (SELECT 'a' AS q, DATE '2026-01-02' AS day, 1.5::DECIMAL(4,2) AS price,"
        f" [1, 2] AS ids, {{'x': 1}} AS box, NULL AS nothing) TO '{path}' (FORMAT parquet)"
    )
    (row,) = read_table(path, "t.parquet")
    assert row == {
        "q": "a",
        "day": "2026-01-02",
        "price": 1.5,
        "ids": [1, 2],
        "box": {"x": 1},
        "nothing": None,
    }


def test_types_of_a_csv_file_are_those_of_whole_columns(tmp_path: Path) -> None:
    content = 'day;code;n;x;ok;text\n2026-1-2;007;1;1.5;TRUE;"a;\nb"\n2026-1-3;008;;2;false;\n'
    first = {"day": "2026-1-2", "code": "007", "n": 1, "x": 1.5, "ok": True, "text": "a;\nb"}
    second = {"day": "2026-1-3", "code": "008", "n": None, "x": 2.0, "ok": False, "text": None}
    assert read(tmp_path, "t.csv", content) == [first, second]


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("t.jsonl", '{"a":1}\n' * 16 + "{oops\n", 17, "line 17 is not JSON"),
        ("t.jsonl", '{"a":1}\n[1]\n', 2, "expected an object"),
        ("t.jsonl", '{"a":1}\n{"a":"x"}\n', 2, "column 'a' mixes types"),
        ("t.jsonl", '{"a":NaN}\n', 1, "NaN is not JSON"),
        ("t.jsonl", "\n\n", 0, "no rows"),
        ("t.jsonl", "", 0, "the file is empty"),
        ("t.json", '[{"a":1},\n{"a":}]', 2, "not JSON"),
        ("t.json", '{"a":1}', 0, "expected a list of objects"),
        ("t.json", "[1]", 0, "row 1 is not an object"),
        ("t.json", "[]", 0, "no rows"),
        ("t.json", '[{"a": 1, "a": 2}]', 0, "key 'a' is written twice"),
        ("t.json", "[]".encode("utf-16"), 0, "not UTF-8"),
        ("t.csv", "a,b\n", 0, "no rows"),
        ("t.csv", "a,b\n1,2\n1,2,3,4\n", 3, "4 cells, where the first line names 2"),
        ("t.csv", 'a,b\n1,"x\ny"\n3,"z', 4, "not a sound CSV file"),
        ("t.csv", "a,a\n1,2\n", 1, "two columns are called 'a'"),
        ("t.csv", "a,\n1,2\n", 1, "column 2 has no name"),
        ("t.csv", b"a,b\n1,\xff\n", 2, "not UTF-8"),
        ("t.parquet", "no parquet", 0, "not a sound Parquet file"),
        ("t.jsnl", "{}", 0, "did you mean '.jsonl'"),
    ],
)
def test_what_is_wrong_and_where(
    tmp_path: Path, name: str, content: str | bytes, line: int, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, name, content)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (name, line)
    assert words in problem.message
    assert str(tmp_path) not in str(problem)


def test_a_file_that_is_not_there_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    with pytest.raises(SpecError, match=r"no such file; did you mean 'prompts.jsonl'"):
        read_table(tmp_path / "promts.jsonl", "promts.jsonl")
    with pytest.raises(SpecError, match="no directory"):
        read_table(tmp_path / "no" / "promts.jsonl", "no/promts.jsonl")
    with pytest.raises(SpecError, match="is a directory"):
        read_table(tmp_path, "here")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.jsonl")
    with pytest.raises(SpecError, match="is a device or a pipe; expected a file"):
        read_table(tmp_path / "t.jsonl", "t.jsonl")


def test_the_nearest_file_is_like_more_than_in_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "bigint.jsonl").write_text('{"a":1}\n')
    with pytest.raises(SpecError) as caught:
        read_table(tmp_path / "missing.jsonl", "missing.jsonl")
    assert str(caught.value) == "missing.jsonl: there is no such file"


def test_a_data_frame_and_a_list_give_the_same_rows() -> None:
    day = datetime.datetime(2026, 1, 2, 3)
    frame = pandas.DataFrame({"a": [1.5, math.nan], "t": [pandas.Timestamp(day), pandas.NaT]})
    expected = [{"a": 1.5, "t": "2026-01-02T03:00:00"}, {"a": None, "t": None}]
    assert rows_in_memory(frame, "input") == expected
    assert rows_in_memory([{"a": 1.5, "t": day}, {"a": None, "t": None}], "input") == expected


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([{"a": math.inf}], "row 1, column 'a': inf has no place"),
        ([{"a": object()}], "of type object"),
        ([1], "row 1 is of type int"),
        (7, "found int"),
        ([], "no rows"),
    ],
)
def test_rows_in_memory_that_are_no_table(table: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        rows_in_memory(table, "input 'prompts'")


def test_a_row_that_json_cannot_hold_is_named() -> None:
    with pytest.raises(SpecError, match="row 2 cannot be kept as JSON"):
        encoded([{"a": "fine"}, {"a": "\ud800"}], "t.jsonl")
