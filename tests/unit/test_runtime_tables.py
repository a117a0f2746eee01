"""The operators on whole tables, run on real tables and a real DuckDB."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.tables import open_tables
from flowmesh.spec.action import Action, Artifact, Bound
from support.blobs import DirBlobs

Row = dict[str, Any]


@pytest.fixture
def blobs(tmp_path: Path) -> DirBlobs:
    return DirBlobs(tmp_path)


def run(blobs: DirBlobs, op: str, inputs: dict[str, Bound], **params: Any) -> Outcome:
    filled = catalog()[op].params.model_validate(params).model_dump()
    # Through the document, as a worker gets it.
    action = Action.of(json.loads(json.dumps(Action(op, 1, filled, inputs).document())))
    (outcome,) = open_tables(blobs, inputs, "").run([Work("task", action)])
    return outcome


def rows_of(blobs: DirBlobs, outcome: Outcome, port: str = "rows") -> list[Row]:
    assert isinstance(outcome, Done), outcome
    return blobs.rows(outcome.result.outputs[port])


def origins_of(blobs: DirBlobs, outcome: Outcome, port: str = "rows") -> list[Any]:
    assert isinstance(outcome, Done), outcome
    lines = blobs.path(outcome.result.origins[port].address).read_text().splitlines()
    return [json.loads(line) for line in lines]


def refusal(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind is FailureKind.INPUT, outcome
    return outcome.message


def query(blobs: DirBlobs, sql: str, *tables: list[Row], **params: Any) -> Outcome:
    named = {name: blobs.put_table(rows) for name, rows in zip("abc", tables, strict=False)}
    return run(blobs, "transform", {"tables": named}, sql=sql, **params)


def test_a_query_joins_tables(blobs: DirBlobs) -> None:
    outcome = query(
        blobs,
        "SELECT a.id, name, score FROM a JOIN b USING (id) ORDER BY score DESC",
        [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
        [{"id": 1, "score": 0.5}, {"id": 2, "score": 0.75}],
    )
    assert rows_of(blobs, outcome) == [
        {"id": 2, "name": "two", "score": 0.75},
        {"id": 1, "name": "one", "score": 0.5},
    ]
    assert isinstance(outcome, Done)
    assert outcome.result.outputs["rows"].columns == ("id", "name", "score")
    assert outcome.result.outputs["rows"].rows == 2


ROUND_TRIP = [
    {"whole": 1, "text": "2020-01-01", "flag": True, "list": [1, 2]},
    {"whole": -(2**63), "text": "2020-01-01T00:00:00Z", "flag": None, "list": []},
    {"whole": None, "text": "snow \u2603 \u0000 \u2028 'quote\"", "flag": False, "list": None},
]


def test_values_pass_through_as_they_are(blobs: DirBlobs) -> None:
    assert rows_of(blobs, query(blobs, "SELECT * FROM a", ROUND_TRIP)) == ROUND_TRIP


@pytest.mark.parametrize(
    "values",
    [
        [{"role": "user", "content": "hi"}, {"role": "system", "content": None}],
        [{"x": 1}, {"y": 2}],
        [{"x": 1, "X": 2}],
        [[{"token": "a", "logprob": -0.5}], []],
        [[1, "one"], [None]],
        ["text", 1, None, {"deep": [1]}],
        [2**80, 1],
        [2**200, 1],
        [1.5, 2],
        [{}],
        [{"odd \" ' name": 1}],
        [None],
        ["x" * 50_000],
    ],
)
def test_nested_and_mixed_values_pass_through(blobs: DirBlobs, values: list[Any]) -> None:
    table = [{"n": n, "value": value} for n, value in enumerate(values)]
    assert rows_of(blobs, query(blobs, "SELECT * FROM a", table)) == table


def test_a_missing_value_is_null(blobs: DirBlobs) -> None:
    outcome = query(blobs, "SELECT x, y FROM a", [{"x": 1}, {"y": 2}])
    assert rows_of(blobs, outcome) == [{"x": 1, "y": None}, {"x": None, "y": 2}]


def test_objects_are_structs(blobs: DirBlobs) -> None:
    table = [{"m": [{"role": "user", "content": "hi"}]}]
    assert rows_of(blobs, query(blobs, "SELECT m[1].content AS c FROM a", table)) == [{"c": "hi"}]


def test_sql_types_leave_as_text_and_numbers(blobs: DirBlobs) -> None:
    sql = """SELECT DATE '2020-01-31' AS d, TIMESTAMPTZ '2020-01-31 12:00:00+02' AS t,
             1.50::DECIMAL(9, 2) AS n, sum(x) AS s, INTERVAL 1 DAY AS i FROM a"""
    outcome = query(blobs, sql, [{"x": 1}, {"x": 2}])
    assert rows_of(blobs, outcome) == [
        {"d": "2020-01-31", "t": "2020-01-31 10:00:00+00", "n": 1.5, "s": 3, "i": "1 day"}
    ]


def test_the_order_of_rows_is_kept(blobs: DirBlobs) -> None:
    table = [{"n": (n * 7919) % 5003, "text": "x" * (n % 50)} for n in range(5000)]
    assert rows_of(blobs, query(blobs, "SELECT * FROM a", table)) == table
    ordered = rows_of(blobs, query(blobs, "SELECT n FROM a ORDER BY n DESC", table))
    assert ordered == [{"n": n} for n in sorted((row["n"] for row in table), reverse=True)]


def test_equal_queries_give_equal_bytes(blobs: DirBlobs) -> None:
    table = [{"k": n % 7, "v": n / 3} for n in range(3000)]
    sql = "SELECT k, avg(v) AS mean, list(v) AS all_v FROM a GROUP BY k"
    one, other = query(blobs, sql, table), query(blobs, sql, table)
    assert isinstance(one, Done) and isinstance(other, Done)
    assert one.result.outputs == other.result.outputs


def test_an_empty_table_keeps_its_columns(blobs: DirBlobs) -> None:
    none = query(blobs, "SELECT x, x + 1 AS y FROM a WHERE x > 5", [{"x": 1}])
    assert rows_of(blobs, none) == []
    assert isinstance(none, Done)
    empty = none.result.outputs["rows"]
    assert empty.columns == ("x", "y")
    after = run(
        blobs, "transform", {"tables": {"e": empty}}, sql="SELECT max(y) AS m FROM e WHERE x > 0"
    )
    assert rows_of(blobs, after) == [{"m": None}]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nope FROM a", 'column "nope" not found'),
        ("SELECT x\nFROM a\nWHERE nope = 1", "(line 3 of the query)"),
        ("-- why\n\nSELECT x\nFROM a\nWHERE nope = 1", "(line 5 of the query)"),
        ("SELECT x FROM nope", "Table with name nope does not exist"),
        ("SELEC x", "syntax error"),
        ("SELECT 1; SELECT 2", "expected one SELECT statement, found select and select"),
        ("CREATE TABLE t (x INT)", "expected one SELECT statement, found create"),
        ("COPY a TO 'out.csv'", "expected one SELECT statement, found copy"),
        ("SET threads = 8", "found set"),
        ("-- nothing", "found none"),
        ("SELECT CAST('one' AS INT) AS n", "Could not convert string 'one'"),
        ("SELECT 1 AS x, 2 AS X", "two columns that SQL can not tell apart, 'x' and 'X'"),
        ("SELECT 'nan'::DOUBLE AS x", "NaN"),
        ("SELECT -'inf'::DOUBLE AS x", "-Infinity"),
        ("SELECT error('stop here') AS x", "stop here"),
    ],
)
def test_a_wrong_query_says_why(blobs: DirBlobs, sql: str, message: str) -> None:
    said = refusal(query(blobs, sql, [{"x": 1}]))
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM '{file}'",
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM sniff_csv('{file}')",
        "SELECT * FROM read_json('https://example.org/x.json')",
        "SELECT getenv('HOME')",
        "SELECT * FROM secret",
    ],
)
def test_a_query_reaches_nothing_outside(blobs: DirBlobs, tmp_path: Path, sql: str) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("x\n1\n")
    secret = [{"x": 1}]
    assert refusal(query(blobs, sql.format(file=file), secret))


def test_an_endless_query_is_stopped(blobs: DirBlobs) -> None:
    sql = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"
    assert "took over `timeout_s`: 0.2 s" in refusal(query(blobs, sql, timeout_s=0.2))


def test_a_query_has_a_limit_of_memory(blobs: DirBlobs) -> None:
    outcome = query(blobs, "SELECT list(repeat('x', 50000000)) AS l FROM range(40)")
    assert isinstance(outcome, Failed)
    assert outcome.kind is FailureKind.MEMORY
    assert outcome.message == "the query needs more memory than 1GB"


def test_columns_that_differ_in_case_are_refused(blobs: DirBlobs) -> None:
    said = refusal(query(blobs, "SELECT 1 AS x FROM a", [{"Name": 1, "name": 2}]))
    assert said.startswith("table 'a' has two columns that SQL can not tell apart")


def test_concat_unites_columns_and_remembers(blobs: DirBlobs) -> None:
    tables: list[Artifact] = [blobs.put_table([{"x": 1}, {"x": 2}]), blobs.put_table([{"y": 3}])]
    outcome = run(blobs, "concat", {"tables": tables})
    assert rows_of(blobs, outcome) == [
        {"x": 1, "y": None},
        {"x": 2, "y": None},
        {"x": None, "y": 3},
    ]
    assert origins_of(blobs, outcome) == [["tables/0", 0], ["tables/0", 1], ["tables/1", 0]]


def split(blobs: DirBlobs, rows: list[Row], **params: Any) -> dict[str, list[Row]]:
    outcome = run(blobs, "split", {"rows": blobs.put_table(rows)}, **params)
    assert isinstance(outcome, Done), outcome
    for port in outcome.result.outputs:
        found = [rows[row] for name, row in origins_of(blobs, outcome, port) if name == "rows"]
        assert found == rows_of(blobs, outcome, port)
    return {port: rows_of(blobs, outcome, port) for port in outcome.result.outputs}


NUMBERS = [{"n": n} for n in range(100)]


def test_split_deals_every_row_once_and_keeps_the_order(blobs: DirBlobs) -> None:
    parts = split(blobs, NUMBERS, parts={"train": 0.9, "test": 0.1})
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 90, "test": 10}
    together = [row["n"] for rows in parts.values() for row in rows]
    assert sorted(together) == list(range(100))
    assert all(rows == sorted(rows, key=lambda row: row["n"]) for rows in parts.values())
    assert parts["test"] != NUMBERS[90:]


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ({"a": 30, "b": "rest"}, [30, 70]),
        ({"a": "rest", "b": 30}, [70, 30]),
        ({"a": 30, "b": 70}, [30, 70]),
        ({"a": 0.1, "b": 0.2, "c": 0.7}, [10, 20, 70]),
        ({"a": 0.005, "b": "rest"}, [1, 99]),
        ({"a": 100, "b": "rest"}, [100, 0]),
        ({"all": "rest"}, [100]),
    ],
)
def test_split_sizes(blobs: DirBlobs, parts: Row, sizes: list[int]) -> None:
    assert [len(rows) for rows in split(blobs, NUMBERS, parts=parts).values()] == sizes


def test_split_goes_by_seed_and_content(blobs: DirBlobs) -> None:
    parts = {"a": 0.5, "b": 0.5}
    one, again = (split(blobs, NUMBERS, parts=parts, seed=1) for _ in range(2))
    assert one == again
    assert one != split(blobs, NUMBERS, parts=parts, seed=2)
    more = split(blobs, [*NUMBERS, {"n": 100}], parts=parts, seed=1)
    moved = [row for row in one["a"] if row not in more["a"]]
    assert len(moved) <= 1


def test_split_keeps_groups_together(blobs: DirBlobs) -> None:
    rows = [{"user": n % 20, "n": n} for n in range(100)]
    parts = split(blobs, rows, parts={"a": 0.8, "b": 0.2}, by="user")
    users = [{row["user"] for row in part} for part in parts.values()]
    assert not users[0] & users[1]
    assert [len(part) for part in parts.values()] == [80, 20]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"parts": {"a": 60, "b": 60}}, "take 120 rows and the table has 100; lower the counts"),
        ({"parts": {"a": 60}}, "give one part `rest`"),
        ({"parts": {"a": "rest"}, "by": ["m"]}, "`by`: no column 'm'"),
    ],
)
def test_split_refuses(blobs: DirBlobs, params: Row, message: str) -> None:
    outcome = run(blobs, "split", {"rows": blobs.put_table(NUMBERS)}, **params)
    assert message in refusal(outcome)


def test_dedupe_keeps_the_first_of_equals(blobs: DirBlobs) -> None:
    rows = [{"q": "a", "n": 1}, {"q": "b", "n": 2}, {"n": 3, "q": "a"}, {"n": 1, "q": "a"}]
    table = {"rows": blobs.put_table(rows)}
    by_all = run(blobs, "dedupe", table)
    assert rows_of(blobs, by_all) == rows[:3]
    by_question = run(blobs, "dedupe", table, by="q")
    assert rows_of(blobs, by_question) == rows[:2]
    assert origins_of(blobs, by_question) == [["rows", 0], ["rows", 1]]
    assert "no column 'p'" in refusal(run(blobs, "dedupe", table, by=["p"]))


NEAR = [
    "What is the capital of France, and what is it known for?",
    "what is the capital of  France, and what is it known for",
    "Name three rivers in South America and their lengths.",
    "What is the capital of France, and what is it famous for?",
    "WHAT IS THE CAPITAL OF FRANCE, AND WHAT IS IT KNOWN FOR?",
    "Hi",
    "hi ",
    "",
]


def test_dedupe_drops_near_duplicates(blobs: DirBlobs) -> None:
    table = {"rows": blobs.put_table([{"q": text, "n": n} for n, text in enumerate(NEAR)])}

    def kept(threshold: float) -> list[int]:
        outcome = run(blobs, "dedupe", table, by=["q"], threshold=threshold)
        return [row["n"] for row in rows_of(blobs, outcome)]

    assert kept(0.6) == [0, 2, 5, 7]
    assert kept(0.9) == [0, 2, 3, 5, 7]
    assert kept(1.0) == [0, 1, 2, 3, 5, 7]


PROGRAM = """
import sys
from pathlib import Path
from support.blobs import DirBlobs
sys.path.insert(0, "tests/unit")
import test_runtime_tables as t
blobs = DirBlobs(Path(sys.argv[1]))
words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
rows = [{"q": " ".join(words[(n * k) % 10] for k in range(1, 9)), "n": n % 9} for n in range(60)]
table = {"rows": blobs.put_table(rows)}
for op, params in [
    ("dedupe", {"by": ["q"], "threshold": 0.6}),
    ("split", {"parts": {"a": 0.5, "b": 0.5}, "by": ["n"]}),
]:
    print(t.run(blobs, op, table, **params).result.encode())
"""


def test_results_are_equal_in_every_process(tmp_path: Path) -> None:
    def say(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "tests"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env=env,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first = say("1")
    assert first.count("sha256:") > 4
    assert say("2") == first


def test_one_bad_task_leaves_the_others_alone(blobs: DirBlobs) -> None:
    table = {"rows": blobs.put_table(NUMBERS)}
    good = Action("dedupe", 1, {"by": ["n"], "threshold": None}, table)
    bad = Action("dedupe", 1, {"by": ["m"], "threshold": None}, table)
    works = [Work("1", bad), Work("2", good)]
    outcomes = list(open_tables(blobs, {}, "").run(works))
    assert [type(outcome) for outcome in outcomes] == [Failed, Done]
