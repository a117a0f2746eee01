"""Conditions on values, summaries, adapters, tagged names and what a step needs."""

from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.spec import conditions
from flowmesh.spec.action import Artifact, Result
from flowmesh.spec.assemble import assemble
from flowmesh.spec.conditions import Value
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.gates import Gate, due, facts
from flowmesh.spec.nodes import ModelRef, StepOutput
from flowmesh.spec.templates import RenderError
from flowmesh.spec.workflow import ModelSource, load
from spec_documents import FIRST, RENDER, WRITE, graph

WRITTEN = f"a: {{{WRITE}, prompt: x}}"
SCORED = f"{WRITTEN}\nb: {{op: score, rows: '${{steps.a}}', model: '${{models.chat}}'}}"
KNOWN = conditions.Known(["n"], ["t"], ["judge", "my-step"], ["round"])


# Conditions on values


@pytest.mark.parametrize(
    ("expression", "values"),
    [
        ("steps.judge.summary.mean > 0.5", [Value("judge", "summary", "mean")]),
        (
            "steps['my-step'].rows['a column'] == steps.judge.rows.info.score",
            [Value("my-step", "rows", "a column"), Value("judge", "rows", "info")],
        ),
        (
            "steps.judge.rows.text.startswith('x') and loop.round > 1",
            [Value("judge", "rows", "text")],
        ),
        (
            "steps.judge.count or steps.judge.rows.x or steps.judge.rows.x",
            [Value("judge", "rows", "x")],
        ),
    ],
)
def test_a_condition_tells_what_it_reads(expression: str, values: list[Value]) -> None:
    asked = conditions.check(expression, KNOWN)
    assert set(asked.values) == set(values)
    assert set(asked.steps) == {value.step for value in asked.values}


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("steps.judge.rows", "steps.judge.PORT.COLUMN"),
        ("steps.judge.count.x", "steps.judge.count.x is not known"),
        ("steps.judge.rows[inputs.n]", "steps.judge.PORT.COLUMN"),
        ("loop.rounds > 1", "cannot see loop.rounds; did you mean 'round'?"),
        ("loop", "cannot see 'loop' alone"),
    ],
)
def test_a_condition_on_half_a_value_is_refused(expression: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        conditions.check(expression, KNOWN)
    with pytest.raises(ValueError, match=r"cannot see loop\.round"):
        conditions.check("loop.round > 1", conditions.Known())


def read(gate: Gate, row: dict[str, Any] | None, count: int | None = 3) -> bool:
    return due((gate,), {"n": 2}, {"b": count}, lambda step, port: row)


def test_a_condition_reads_the_first_row() -> None:
    made = graph(f"{SCORED}\nc: {{{RENDER}, template: x, when: steps.b.summary.mean > 0.5}}")
    (gate,) = made.steps["c"].gates
    assert made.steps["c"].upstream == ("b",)
    assert read(gate, {"mean": 0.6})
    assert not read(gate, {"mean": 0.4})
    assert facts(gate, {}, {"b": 3}, lambda step, port: {"mean": f"{step}.{port}"})["steps"] == {
        "b": {"count": 3, "skipped": False, "summary": {"mean": "b.summary"}}
    }


@pytest.mark.parametrize(("row", "count"), [(None, 0), ({}, 3), ({"mean": None}, 3), (None, None)])
def test_what_is_not_there_is_none(row: dict[str, Any] | None, count: int | None) -> None:
    made = graph(f"{SCORED}\nc: {{{RENDER}, template: x, when: steps.b.summary.mean is none}}")
    assert read(made.steps["c"].gates[0], row, count)
    made = graph(f"{SCORED}\nc: {{{RENDER}, template: x, when: steps.b.summary.mean > 1}}")
    with pytest.raises(RenderError) as caught:
        read(made.steps["c"].gates[0], row, count)
    assert str(caught.value).startswith("condition 'steps.b.summary.mean > 1': '>' not supported")
    assert "steps.b.summary.mean has no value here" in str(caught.value)


def test_a_failure_with_another_cause_is_not_blamed_on_what_is_not_there() -> None:
    when = "steps.b.summary.mean is none and 1 / steps.b.count > 1"
    made = graph(f"{SCORED}\nc: {{{RENDER}, template: x, when: {when}}}")
    with pytest.raises(RenderError) as caught:
        read(made.steps["c"].gates[0], {}, 0)
    assert str(caught.value) == f"condition {when!r}: division by zero"


def test_a_name_is_never_taken_for_a_method() -> None:
    """`items`, `values` and the like are names as good as any."""
    values = (Value("items", "keys", "values"),)
    gate = Gate("steps.items.keys.values == inputs.get", {"items": ("items",)}, values)
    assert due((gate,), {"get": 7}, {"items": 1}, lambda step, port: {"values": 7})


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("steps.b.sumary.mean > 1", "'b' has no output 'sumary'; did you mean 'summary'?"),
        ("steps.b.summary.men > 1", "this table has no column 'men'; did you mean 'mean'?"),
        ("steps.b.rows.scor > 1", "this table has no column 'scor'; did you mean 'score'?"),
        ("steps.t.adapter.x > 1", "steps.t.adapter.x: this output is an adapter; a condition"),
        ("steps.w.weights.x > 1", "steps.w.weights.x: this output is a model; a condition"),
        ("steps.m.rows.text > 1", "'m' has 2 instances; a condition reads values of one"),
    ],
)
def test_what_a_condition_reads_is_checked_as_far_as_it_is_known(when: str, words: str) -> None:
    steps = f"""{SCORED}
t: {{op: tune, data: '${{steps.b}}', model: m}}
w: {{op: train, rows: '${{steps.b}}'}}
m: {{{WRITE}, prompt: x, matrix: {{k: [1, 2]}}}}
c: {{{RENDER}, template: x, when: "{when}"}}
"""
    with pytest.raises(SpecError) as caught:
        graph(steps)
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.line, problem.path) == (FIRST + 5, "steps.c.when")


def test_unknown_columns_are_not_guessed_at() -> None:
    made = graph(
        f"""
        a: {{op: query, tables: {{t: "${{inputs.rows}}"}}, sql: FROM t}}
        c: {{{RENDER}, template: x, when: steps.a.rows.anything > 1}}
        """
    )
    assert made.steps["c"].gates[0].values == (Value("a", "rows", "anything"),)


# Summaries


def test_a_row_operator_with_an_aggregate_has_a_summary() -> None:
    made = graph(
        f"{SCORED}\nc: {{op: concat, tables: ['${{steps.b}}', '${{steps.b.summary}}']}}",
        "s: ${steps.b.summary}",
    )
    node = made.steps["b"]
    assert node.outputs == {"rows": "table", "summary": "table"}
    assert node.columns["summary"] == ("mean", "count")
    assert made.steps["c"].inputs["tables"] == [StepOutput("b", "rows"), StepOutput("b", "summary")]


def test_a_summary_is_of_the_rows_that_are_left() -> None:
    node = graph(f"{SCORED.rstrip('}')}, on_error: quarantine}}").steps["b"]
    assert node.outputs == {"rows": "table", "summary": "table", "errors": "table"}
    rows = [{"text": "x"}, {"text": "y"}, {}]
    expansion = expand(node, {}, rows, Scope("run", "tenant", "domain"))
    results = {item.task: Result(rows=[{"score": 1.0}]) for item in expansion.items}
    failures = {(row, sample): message for row, sample, message in expansion.failed}
    done = assemble(node, rows, expansion.items, results, {**failures, (1, 0): "too long"})
    assert done.tables["summary"] == [{"mean": 1.0, "count": 1}]
    assert len(done.tables["errors"]) == 2
    assert set(done.origins) == {"rows", "errors"}
    nothing = assemble(node, [], [], {}, {})
    assert nothing.tables == {"rows": [], "errors": [], "summary": [{"mean": None, "count": 0}]}


# Adapters and names


def test_adapters_are_wired_to_ports_for_adapters() -> None:
    made = graph(
        """
        t: {op: tune, data: "${inputs.rows}", model: "${models.chat}"}
        a:
          {op: answer, rows: "${inputs.rows}", prompt: x, model: bot@prod,
           adapter: "${steps.t.adapter}"}
        b: {op: answer, rows: "${inputs.rows}", model: bot, adapter: "${models.tuned}", prompt: x}
        m: {op: merge, model: "${models.chat}", adapter: lora.1@v-2}
        c: {op: answer, rows: "${inputs.rows}", model: "${steps.m}", prompt: x}
        """
    )
    assert made.steps["t"].outputs == {"adapter": "adapter", "metrics": "table"}
    assert made.steps["m"].outputs == {"model": "model"}
    assert made.steps["a"].inputs["adapter"] == StepOutput("t", "adapter")
    assert made.steps["b"].inputs["adapter"] == ModelRef("tuned")
    assert made.steps["c"].inputs["model"] == StepOutput("m", "model")
    names = ("bot@prod", "bot", "lora.1@v-2")
    assert {name: made.models[name] for name in names} == {
        name: ModelSource(name=name) for name in names
    }


def test_an_adapter_is_no_part_of_a_batch_but_of_the_work() -> None:
    node = graph("a: {op: answer, rows: '${inputs.rows}', model: m, adapter: n, prompt: x}").steps[
        "a"
    ]
    model, one, other = (Artifact("tree", f"sha256:{n:064x}/1") for n in range(3))
    scope = Scope("run", "tenant", "domain")
    made = [
        expand(node, {"model": model, "adapter": adapter}, [{}], scope) for adapter in (one, other)
    ]
    tasks = [expansion.items[0].task for expansion in made]
    assert tasks[0] != tasks[1]
    key = f"answer@1/fake/float32/{model.digest}"
    assert [expansion.batch_key for expansion in made] == [key, key]


@pytest.mark.parametrize(
    ("model", "adapter", "words"),
    [
        ("${steps.t.adapter}", "n", "expected a model: ${models.NAME}, ${steps.NAME.PORT} or"),
        ("m", "${steps.w}", "expected an adapter: ${models.NAME}, ${steps.NAME.PORT} or the name"),
        ("m", "${steps.w}", "${steps.w} is a model"),
        ("${steps.t.adapter}", "n", "${steps.t.adapter} is an adapter"),
        ("m", "a/b", '"a/b" is not the name of a registered adapter, as NAME or NAME@TAG'),
        ("m@", "n", '"m@" is not the name of a registered model, as NAME or NAME@TAG'),
        ("m", f"n@{'t' * 64}", "is not the name of a registered adapter"),
        ("m", "tuned", "write ${models.tuned}"),
    ],
)
def test_what_is_no_adapter_or_no_name_is_refused(model: str, adapter: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        graph(
            f"""
            t: {{op: tune, data: "${{inputs.rows}}", model: m}}
            w: {{op: train, rows: "${{inputs.rows}}"}}
            a:
              {{op: answer, rows: "${{inputs.rows}}", prompt: x,
                model: "{model}", adapter: "{adapter}"}}
            """
        )
    (problem,) = caught.value.problems
    assert words in problem.message
    assert FIRST + 2 <= problem.line <= FIRST + 4


# Needs


def test_needs_are_kept_and_are_no_part_of_the_work() -> None:
    made = graph(
        f"""
        a: {{{WRITE}, prompt: x, needs: {{memory_gb: 2.5}}}}
        b: {{{WRITE}, prompt: x}}
        """
    )
    a, b = made.steps["a"], made.steps["b"]
    assert (a.memory_bytes, b.memory_bytes) == (2_500_000_000, 0)
    model = Artifact("tree", f"sha256:{0:064x}/1")
    scope = Scope("run", "tenant", "domain")
    assert expand(a, {"model": model}, [{}], scope) == expand(b, {"model": model}, [{}], scope)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("{memory_gb: 0}", "must be greater than 0"),
        ("{memory_gb: 100001}", "must be at most 100000"),
        ("{memory_gb: true}", "expected a number, found true"),
        ("{memory_gb: '8'}", "expected a number"),
        ("{memory: 8}", "key 'memory_gb' is missing"),
        ("{memory_gb: 8, memmory: 8}", "unknown key 'memmory'; did you mean 'memory_gb'?"),
        ("8", "expected a mapping"),
    ],
)
def test_bad_needs_are_refused(needs: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(f"flowmesh: 1\nsteps:\n  a:\n    op: x\n    needs: {needs}\n", "w.yaml")
    assert words in str(caught.value)
    assert caught.value.problems[0].line == 5
