"""What the declarations of table operators promise before anything runs."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.base.digest import canonical
from flowmesh.operators.catalog import catalog
from flowmesh.spec.operator import Columns, ParamError

QUESTIONS = ("id", "question")
JUDGED = ("id", "verdict", "verdict_probability")


def columns(op: str, inputs: dict[str, Any], **params: Any) -> dict[str, Columns]:
    operator = catalog()[op]
    return dict(operator.columns(operator.params.model_validate(params), inputs))


def transform(sql: str, **tables: Columns) -> Columns:
    return columns("transform", {"tables": tables}, sql=sql)["rows"]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM q", ("id", "question")),
        ("SELECT q.*, verdict AS v FROM q JOIN j USING (id);", ("id", "question", "v")),
        ("WITH y AS (SELECT id FROM j WHERE verdict = 'yes') FROM y", ("id",)),
        ("SELECT id, count(*) AS n FROM j GROUP BY ALL HAVING n > 1", ("id", "n")),
        ("SELECT max(verdict_probability) - 0.5 AS m FROM j", ("m",)),
        ("SELECT question.nested.field AS f, question[1] AS g FROM q", ("f", "g")),
        ("SELECT upper(question) || '!' AS u, length(question) + id AS l FROM q", ("u", "l")),
        ("SELECT unnest(question) AS u FROM q", ("u",)),
        ("SELECT * EXCLUDE (id) REPLACE (lower(question) AS question) FROM q", ("question",)),
        ("SELECT id, row_number() OVER (PARTITION BY id) AS r FROM q QUALIFY r = 1", ("id", "r")),
    ],
)
def test_the_columns_of_a_query(sql: str, expected: Columns) -> None:
    assert transform(sql, q=QUESTIONS, j=JUDGED) == expected


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT quesion FROM q", 'column "quesion" not found in FROM clause! Candidate'),
        ("SELECT q.quesion FROM q", 'does not have a column named "quesion"'),
        ("SELECT x.question FROM q", 'table "x" not found'),
        ("SELECT * FROM answers", "no table is called 'answers'; known: j, q"),
        ("SELECT lenth(question) FROM q", "Function with name lenth does not exist"),
        ("SELECT question\nFROM q\nWHER id = 1", "syntax error"),
        ("SELECT id FROM q\nORDER BY nope", "(line 2 of the query)"),
        ("SELECT * FROM qq", "no table is called 'qq'; did you mean 'q'?"),
        ("SELECT * FROM read_text('/etc/hostname')", "file system operations are disabled"),
        ("SELECT 1; SELECT 2", "expected one SELECT statement"),
        ("DROP TABLE q", "found drop"),
        ("SELECT * FROM q JOIN j ON q.id = j.id", "'id' and 'id': rename"),
    ],
)
def test_a_wrong_query_is_refused_before_it_runs(sql: str, message: str) -> None:
    with pytest.raises(ParamError) as refused:
        transform(sql, q=QUESTIONS, j=JUDGED)
    assert refused.value.field == "sql"
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT date_trunc('day', question) AS d FROM q",
        "SELECT list_transform(question, lambda x: x + 1) AS y FROM q",
        "SELECT question->>'a' AS y FROM q",
    ],
)
def test_what_only_types_decide_is_not_refused(sql: str) -> None:
    assert transform(sql, q=QUESTIONS) in (None, ("d",), ("y",))


def test_with_unknown_columns_only_the_syntax_is_checked() -> None:
    assert transform("SELECT anything FROM q", q=None) is None
    with pytest.raises(ParamError, match="syntax error"):
        transform("SELEC anything FROM q", q=None)


def test_what_binding_would_compute_is_left_to_the_worker() -> None:
    assert transform("SELECT repeat(repeat('x', 1000000), 2000) || 'y' AS s", q=QUESTIONS) is None


def test_columns_that_sql_can_not_tell_apart() -> None:
    with pytest.raises(ParamError, match="table 'q' has two columns"):
        transform("SELECT 1 AS x FROM q", q=("Name", "name"))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM q", "pure"),
        ("SELECT 'random()' AS x, now AS y, uuid AS z FROM q -- now()", "pure"),
        ("SELECT random() AS x", "sampled"),
        ("SELECT RANDOM ( ) AS x", "sampled"),
        ("SELECT now() AS x", "sampled"),
        ("SELECT uuid() AS x", "sampled"),
        ("SELECT gen_random_uuid() AS x", "sampled"),
        ("SELECT CURRENT_TIMESTAMP AS x", "sampled"),
        ("SELECT current_date AS x", "sampled"),
        ("SELECT * FROM q USING SAMPLE 10", "sampled"),
        ("SELECT * FROM q TABLESAMPLE 10%", "sampled"),
        ("SELECT * FROM query('SELECT random()')", "sampled"),
    ],
)
def test_clocks_and_chance_are_noticed(sql: str, expected: str) -> None:
    operator = catalog()["transform"]
    assert operator.determinism(operator.params.model_validate({"sql": sql})) == expected


def test_columns_of_the_other_operators() -> None:
    assert columns("concat", {"tables": [("a", "b"), ("c", "a")]}) == {"rows": ("a", "b", "c")}
    assert columns("concat", {"tables": [("a",), None]}) == {"rows": None}
    parts = {"train": 0.9, "test": 0.1}
    assert columns("split", {"rows": ("a",)}, parts=parts) == {"train": ("a",), "test": ("a",)}
    assert columns("dedupe", {"rows": ("a",)}, by="a") == {"rows": ("a",)}
    assert columns("dedupe", {"rows": None}, by="a") == {"rows": None}


@pytest.mark.parametrize("op", ["split", "dedupe"])
def test_a_wrong_column_in_by_is_refused(op: str) -> None:
    params: dict[str, Any] = {"by": ["qestion"]}
    if op == "split":
        params["parts"] = {"a": "rest"}
    with pytest.raises(ParamError, match="did you mean 'question'") as refused:
        columns(op, {"rows": QUESTIONS}, **params)
    assert refused.value.field == "by"


def test_the_parts_are_the_outputs_of_split() -> None:
    operator = catalog()["split"]
    params = operator.params.model_validate({"parts": {"train": 0.9, "test": 0.1}})
    assert operator.outputs(params) == {"train": "table", "test": "table"}


@pytest.mark.parametrize(
    ("op", "params", "message"),
    [
        ("split", {"parts": {"a": 0.5, "b": 0.4}}, "shares sum to 0.9, not to 1"),
        ("split", {"parts": {"a": 0.5, "b": 10}}, "mixes counts and shares"),
        ("split", {"parts": {"a": "rest", "b": "rest"}}, "only one part can be `rest`"),
        ("split", {"parts": {"a": 0.5, "c": 0.5, "b": "rest"}}, "leaves nothing for `rest`"),
        ("split", {"parts": {"a": 0}}, "greater than or equal to 1"),
        ("split", {"parts": {"a": 1.0}}, "less than 1"),
        ("split", {"parts": {"a": -0.5, "b": 0.5}}, "greater than 0"),
        ("split", {"parts": {}}, "at least 1 item"),
        ("split", {"parts": {"no name": "rest"}}, "pattern"),
        ("dedupe", {"threshold": 1.5}, "less than or equal to 1"),
        ("dedupe", {"by": []}, "at least 1 item"),
        ("transform", {"sql": ""}, "at least 1 character"),
        ("concat", {"by": 1}, "Extra inputs are not permitted"),
        ("render", {}, "either `template` or `columns`"),
        ("render", {"template": "x", "columns": {"y": "z"}}, "not both"),
        ("render", {"columns": {"y": "z"}, "into": "w"}, "`into` goes with `template`"),
        ("render", {"columns": {"no name": "z"}}, "pattern"),
        ("http", {"url": "ftp://example.org"}, "must start with http:// or https://"),
        ("http", {"url": "https://example.org", "method": "BREW"}, "Input should be 'GET'"),
        ("python", {"function": "not a name"}, "pattern"),
        ("python", {"function": "f", "timeout_s": 0}, "greater than 0"),
    ],
)
def test_wrong_parameters_are_refused(op: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        catalog()[op].params.model_validate(params)
    assert message in str(refused.value)


def test_two_spellings_of_render_are_one_task() -> None:
    operator = catalog()["render"]
    one = operator.params.model_validate({"template": "{{ x }}", "into": "y"})
    other = operator.params.model_validate({"columns": {"y": "{{ x }}"}})
    first = operator.task(one, {"template": "1", "columns": None, "into": "y"}, 0)
    assert first == operator.task(other, {"columns": {"y": "1"}, "template": None}, 0)
    assert operator.adds(one) == operator.adds(other) == ("y",)


def test_where_an_answer_goes_is_no_part_of_a_request() -> None:
    operator = catalog()["http"]
    one, other = (
        operator.params.model_validate({"url": "https://example.org/", "into": into})
        for into in ("a", "b")
    )
    rendered = {"url": "https://example.org/", "headers": {}, "body": None}
    assert operator.task(one, rendered, 0) == operator.task(other, rendered, 0)
    shaped = operator.shape(other, [{"status": 200, "body": 7}], 0)
    assert shaped == [{"b": 7, "b_status": 200}]
    assert operator.adds(other) == ("b", "b_status")


@pytest.mark.parametrize(
    ("op", "params", "expected"),
    [
        ("http", {"url": "https://example.org"}, "sampled"),
        ("http", {"url": "https://example.org", "method": "POST"}, "effect"),
        ("http", {"url": "https://example.org", "method": "POST", "effect": "read"}, "sampled"),
        ("http", {"url": "https://example.org", "effect": "pure"}, "pure"),
        ("python", {"function": "f"}, "pure"),
        ("python_table", {"function": "f", "effect": "act"}, "effect"),
    ],
)
def test_determinism(op: str, params: dict[str, Any], expected: str) -> None:
    operator = catalog()[op]
    assert operator.determinism(operator.params.model_validate(params)) == expected


def test_a_python_task_holds_no_more_than_the_columns_it_sees() -> None:
    operator = catalog()["python"]
    some = operator.params.model_validate({"function": "f", "columns": ["x"]})
    every = operator.params.model_validate({"function": "f"})
    assert (operator.sees(some), operator.sees(every)) == (("x",), None)
    assert operator.task(some, {}, 0) == operator.task(every, {}, 0)


def test_a_size_means_the_same_after_canonical_json() -> None:
    operator = catalog()["split"]
    for parts in ({"a": 0.5, "b": 0.5}, {"a": 1, "b": "rest"}):
        params = operator.params.model_validate({"parts": parts})
        again = json.loads(canonical(params.model_dump(mode="json")))
        assert operator.params.model_validate(again) == params
