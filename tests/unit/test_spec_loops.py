"""Loops: what they are unrolled into, what they carry and collect, when a round is skipped."""

from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.spec.gates import due
from flowmesh.spec.nodes import (
    Graph,
    InputTable,
    LastOf,
    ModelRef,
    StepOutput,
    remaining,
    sources_of,
)
from flowmesh.spec.templates import RenderError
from flowmesh.spec.workflow import Workflow, load, parse
from spec_documents import FIRST, HEAD, LOOP, RENDER, graph, indented


def names(made: Graph, round: int) -> set[str]:
    return {name for name in made.order if name.startswith(f"improve[{round}].")}


def test_rounds_become_ordinary_steps_in_order() -> None:
    made = graph(LOOP, n=3)
    body = ("answers", "scored", "tune", "more")
    assert made.order == (
        *(f"improve[{n}].{name}" for n in (1, 2, 3) for name in body),
        "after",
        "every",
    )
    node = made.steps["improve[2].tune"]
    assert node.path == ("steps", "improve", "loop", "steps", "tune")
    assert node.line == made.steps["improve[1].tune"].line == FIRST + 16
    assert [made.steps[f"improve[{n}].tune"].params.seed for n in (1, 2, 3)] == [1, 2, 3]


def test_a_round_sees_its_own_steps_and_what_the_ones_before_carried() -> None:
    made = graph(LOOP, n=3)
    first, third = made.steps["improve[1].answers"], made.steps["improve[3].answers"]
    assert first.inputs["rows"] == InputTable("rows")
    assert first.inputs["adapter"] == ModelRef("tuned")
    assert third.inputs["adapter"] == LastOf(
        (
            ModelRef("tuned"),
            StepOutput("improve[1].tune", "adapter"),
            StepOutput("improve[2].tune", "adapter"),
        )
    )
    assert made.steps["improve[3].scored"].inputs["rows"] == StepOutput(
        "improve[3].answers", "rows"
    )
    assert set(third.upstream) >= {"improve[1].tune", "improve[2].tune", "improve[2].more"}
    assert first.columns == {"rows": ("question", "topic", "text")}


def test_the_last_round_that_ran_is_what_is_carried() -> None:
    made = graph(LOOP, n=3)
    node = made.steps["improve[3].answers"]
    for skipped, step in (((), 2), (("improve[2].tune",), 1)):
        left = remaining(node, skipped)
        assert left is not None
        assert left["adapter"] == StepOutput(f"improve[{step}].tune", "adapter")
    left = remaining(node, {"improve[1].tune", "improve[2].tune"})
    assert left is not None
    assert left["adapter"] == ModelRef("tuned")
    after = made.steps["after"]
    assert remaining(after, names(made, 3) | names(made, 2)) == {
        "model": ModelRef("chat"),
        "adapter": StepOutput("improve[1].tune", "adapter"),
    }
    everything = names(made, 1) | names(made, 2) | names(made, 3)
    assert remaining(after, everything) is None
    every = made.steps["every"]
    assert remaining(every, names(made, 3)) == {
        "tables": [StepOutput(f"improve[{n}].scored", "summary") for n in (1, 2)]
    }
    assert remaining(every, everything) is None


def test_loops_wait_for_each_other_wherever_they_are_written() -> None:
    def loop(name: str, start: str) -> str:
        return f"""
{name}:
  loop:
    rounds: 2
    carry: {{p: {{start: "{start}", next: "${{steps.{name}T}}"}}}}
    collect: {{q: "${{steps.{name}T}}"}}
    steps:
      {name}T: {{op: concat, tables: "${{loop.p}}"}}
"""

    made = graph(
        'after: {op: concat, tables: ["${steps.b.p}", "${steps.b.q}"]}'
        + loop("b", "${steps.a.p}")
        + loop("a", "${steps.first}")
        + "first: {op: concat, tables: '${inputs.rows}'}"
    )
    a, b = (tuple(f"{name}[{n}].{name}T" for n in (1, 2)) for name in "ab")
    assert made.order == ("first", *a, *b, "after")
    assert made.steps[a[0]].upstream == ("first",)
    assert made.steps[a[1]].upstream == ("first", a[0])
    assert made.steps[b[0]].upstream == a
    assert made.steps[b[1]].upstream == (*a, b[0])
    assert made.steps["after"].upstream == b
    assert made.steps[b[1]].inputs["tables"] == [
        LastOf(tuple(StepOutput(step, "rows") for step in (*a, b[0])))
    ]


def test_a_loop_of_one_round_carries_what_that_round_made() -> None:
    made = graph(LOOP, "p: ${steps.improve.policy}", n=1)
    assert made.steps["after"].inputs["adapter"] == StepOutput("improve[1].tune", "adapter")
    assert made.steps["every"].inputs["tables"] == [StepOutput("improve[1].scored", "summary")]
    assert made.outputs == {"p": StepOutput("improve[1].tune", "adapter")}
    assert made.steps["improve[1].tune"].gates == ()


def test_what_is_carried_may_be_an_output_of_the_workflow() -> None:
    made = graph(LOOP, "p: ${steps.improve.policy}", n=2)
    assert made.outputs["p"] == LastOf(
        tuple(StepOutput(f"improve[{n}].tune", "adapter") for n in (1, 2))
    )


def test_without_a_start_a_port_is_unbound_in_round_1() -> None:
    steps = LOOP.replace('start: "${models.tuned}", ', "").replace(
        "{t: ", '{u: "${steps.answers}", t: '
    )
    steps = steps.replace('start: "${inputs.rows}", ', "").replace("FROM t", "FROM t JOIN u")
    steps = steps.replace("rows: ${loop.data}", "rows: ${inputs.rows}")
    made = graph(steps, n=2)
    first = made.steps["improve[1].answers"]
    assert "adapter" not in first.inputs
    assert made.steps["improve[1].tune"].columns == {"metrics": ("step", "loss")}
    assert made.steps["improve[2].answers"].inputs["adapter"] == StepOutput(
        "improve[1].tune", "adapter"
    )
    assert made.steps["improve[1].more"].inputs["tables"] == {
        "u": StepOutput("improve[1].answers", "rows")
    }


def test_a_list_leaves_out_what_the_first_round_does_not_have() -> None:
    made = graph(
        """
        grow:
          loop:
            rounds: 3
            carry: {all: {next: "${steps.both}"}}
            steps:
              new: {op: render, rows: "${inputs.rows}", template: "no ${loop.round}"}
              both: {op: concat, tables: ["${loop.all}", "${steps.new}"]}
        """
    )
    new = [StepOutput(f"grow[{n}].new", "rows") for n in (1, 2, 3)]
    both = [StepOutput(f"grow[{n}].both", "rows") for n in (1, 2, 3)]
    tables = [made.steps[f"grow[{n}].both"].inputs["tables"] for n in (1, 2, 3)]
    assert tables == [[new[0]], [both[0], new[1]], [LastOf((both[0], both[1])), new[2]]]
    assert list(sources_of(tables[2])) == [both[0], both[1], new[2]]


def test_steps_of_a_round_may_have_a_matrix_a_condition_and_a_name_from_outside() -> None:
    made = graph(
        f"""
        a: {{{RENDER}, template: outer}}
        b: {{{RENDER}, template: outer}}
        again:
          loop:
            rounds: 2
            collect: {{all: "${{steps.b}}"}}
            steps:
              b:
                op: render
                rows: ${{steps.a}}
                template: "${{matrix.k}} ${{loop.round}}"
                into: y
                matrix: {{k: [7, 8]}}
                when: steps.a.count > 1 and loop.round > matrix.k - 7
              c: {{op: concat, tables: "${{steps.b}}"}}
        d: {{op: concat, tables: ["${{steps.again}}", "${{steps.b}}"]}}
        """
    )
    assert [name for name in made.order if name.startswith("again[2]")] == [
        "again[2].b[k=7]",
        "again[2].b[k=8]",
        "again[2].c",
    ]
    node = made.steps["again[2].b[k=8]"]
    assert node.params.template == "8 2"
    assert node.inputs["rows"] == StepOutput("a", "rows")
    assert made.steps["again[1].c"].inputs["tables"] == [
        StepOutput(f"again[1].b[k={k}]", "rows") for k in (7, 8)
    ]
    every = [StepOutput(f"again[{n}].b[k={k}]", "rows") for n in (1, 2) for k in (7, 8)]
    assert made.steps["d"].inputs["tables"] == [*every, StepOutput("b", "rows")]

    def is_due(name: str, rows: int) -> bool:
        return due(made.steps[name].gates, {}, {"a": rows}, lambda step, port: None)

    assert is_due("again[2].b[k=8]", 2)
    assert not is_due("again[1].b[k=8]", 2)
    assert not is_due("again[2].b[k=8]", 1)


def test_a_step_of_a_round_may_be_called_like_a_loop() -> None:
    made = graph(
        f"""
        a: {{{RENDER}, template: outer}}
        again:
          loop:
            rounds: 2
            collect: {{all: "${{steps.again}}"}}
            until: steps.again.count > 3
            steps:
              again: {{{RENDER}, template: inner, into: y}}
              c: {{op: render, rows: "${{steps.again}}", template: z, into: w}}
              d: {{op: concat, tables: "${{steps.c}}", when: steps.again.count > 1}}
        every: {{op: concat, tables: "${{steps.again}}"}}
        """
    )
    inner = [StepOutput(f"again[{n}].again", "rows") for n in (1, 2)]
    assert made.steps["again[2].c"].inputs["rows"] == inner[1]
    assert made.steps["every"].inputs["tables"] == inner
    [gate] = made.steps["again[2].again"].gates
    assert gate.ends == ("again[1].again",)


def is_due(made: Graph, name: str, counts: dict[str, int | None], **mean: Any) -> bool:
    """Whether a step is due after a round whose mean score was `mean`."""
    node = made.steps[name]
    rows = {"improve[1].scored": mean.get("first"), "improve[2].scored": mean.get("second")}
    return due(node.gates, made.parameters, counts, lambda step, port: rows[step])


def test_until_ends_a_loop_after_the_round_in_which_it_holds() -> None:
    made = graph(LOOP, n=3)
    for name in names(made, 2):  # `more` depends on nothing of the round before but data
        counts: dict[str, int | None] = {"improve[1].scored": 4}
        assert "improve[1].scored" in made.steps[name].upstream
        assert is_due(made, name, counts, first={"mean": 0.5})
        assert not is_due(made, name, counts, first={"mean": 0.95})
        assert not is_due(made, name, {"improve[1].scored": None})
    assert not is_due(made, "improve[3].more", {"improve[2].scored": None})
    assert all(made.steps[name].gates == () for name in names(made, 1))


def test_a_comparison_with_nothing_names_its_condition_and_the_value() -> None:
    made = graph(LOOP, n=2)
    with pytest.raises(RenderError) as caught:
        is_due(made, "improve[2].tune", {"improve[1].scored": 0}, first={"mean": None})
    assert "condition 'steps.scored.summary.mean >= 0.9'" in str(caught.value)
    assert "steps.scored.summary.mean has no value here" in str(caught.value)
    assert "Ask first: `steps.scored.summary.mean is not none and ...`" in str(caught.value)


def test_a_condition_on_a_loop_holds_for_all_of_its_steps() -> None:
    steps = LOOP.replace("improve:", "improve:\n  when: steps.probe.summary.mean < 0.5", 1)
    probe = (
        f"a: {{{RENDER}, template: x, into: text}}\n"
        "probe: {op: score, rows: '${steps.a}', model: m}\n"
    )
    made = graph(probe + steps, n=2)
    for number in (1, 2):
        for name in names(made, number):
            gate = made.steps[name].gates[0]
            assert "probe" in made.steps[name].upstream
            assert due((gate,), {}, {"probe": 3}, lambda step, port: {"mean": 0.1})
            assert not due((gate,), {}, {"probe": 3}, lambda step, port: {"mean": 0.7})
    assert made.steps["after"].gates == ()


def test_a_loop_survives_its_dump() -> None:
    workflow, _ = load(HEAD + indented(LOOP))
    assert parse(workflow.model_dump(mode="json", exclude_unset=True)) == workflow
    assert isinstance(workflow, Workflow)


#: What is changed in LOOP, into what, and every problem: line from the first step, its words.
FAULTS: dict[str, tuple[str, str, list[tuple[int, str]]]] = {
    "no number of rounds": ("${inputs.n}", "three", [(2, 'from 1 to 100, found "three"')]),
    "an input that is not there": ("${inputs.n}", "${inputs.m}", [(2, "names no input")]),
    "a table of rounds": ("${inputs.n}", "${inputs.rows}", [(2, "a table")]),
    "an unknown thing carried": (
        "rows: ${loop.data}",
        "rows: ${loop.dta}",
        [(11, "${loop.dta} names nothing that the loop carries; did you mean 'data'?")],
    ),
    "an unknown column, told once": (
        "{{ question }}",
        "{{ qestion }}",
        [(14, "the template names 'qestion'")],
    ),
    "an unknown operator, told once": ("op: tune", "op: tnue", [(17, "unknown operator 'tnue'")]),
    "a number that grows too large, told once": ("${inputs.n}", "60", [(21, "found 51")]),
    "next that no step makes": (
        "${steps.tune.adapter}",
        "${steps.tune.adaptr}",
        [(4, "names no output of step 'tune'; did you mean 'adapter'?")],
    ),
    "next from outside": (
        "${steps.tune.adapter}",
        "${models.chat}",
        [(4, "expected an output of a step of the loop, as ${steps.NAME.PORT}; found")],
    ),
    "next of another kind": (
        'rows: "${steps.answers}", model: "${models.chat}"',
        'rows: "${steps.answers}", model: "${loop.policy}"',
        [(15, "${loop.policy} is, from round 2 on, an adapter")],
    ),
    "start of another kind": (
        "rows: ${loop.data}",
        "rows: ${loop.policy}",
        [(11, "${loop.policy} starts as ${models.tuned}: expected a table")],
    ),
    "start that is not there": (
        "${models.tuned}",
        "${models.tund}",
        [(4, "${models.tund} names no model; did you mean 'tuned'?")],
    ),
    "start within the loop": (
        "${models.tuned}",
        "${loop.data}",
        [(4, "${loop.data} has a meaning within a loop only")],
    ),
    "no start for what is needed": (
        'start: "${inputs.rows}", ',
        "",
        [(11, "port 'rows' needs something"), (22, "port 'tables' needs something")],
    ),
    "next of a matrix": (
        "op: query",
        "matrix: {k: [1, 2]}, op: query",
        [(5, "${steps.more} has 2 instances")],
    ),
    "until about nothing of the loop": (
        "steps.scored.summary.mean >= 0.9",
        "inputs.n > 2",
        [(7, "`until` must name a step of the loop")],
    ),
    "until about what is not there": (
        "steps.scored.summary.mean >= 0.9",
        "steps.scored.summry.mean > steps.scored.summary.men or steps.tune.adapter.x",
        [
            (7, "steps.scored.summry.mean: 'scored' has no output 'summry'; did you mean 'summa"),
            (7, "this table has no column 'men'; did you mean 'mean'?"),
            (7, "steps.tune.adapter.x: this output is an adapter; a condition reads tables"),
        ],
    ),
    "until that reads a matrix": (
        "scored: {op: score",
        "scored: {matrix: {k: [1, 2]}, op: score",
        [(7, "'scored' has 2 instances"), (18, "join them with a `concat` step")],
    ),
    "its own output within": (
        "data: ${steps.scored}",
        "data: ${steps.improve.data}",
        [(18, "within it, ${loop.NAME} is what the round before carried on")],
    ),
    "a cycle within a round": (
        'rows: "${steps.answers}"',
        'rows: "${steps.tune.metrics}"',
        [(15, "the steps form a cycle: improve[1].scored -> improve[1].tune -> improve[1].sco")],
    ),
    "carried artifact for a value": (
        "seed: ${loop.round}",
        "seed: ${loop.policy}",
        [(21, "a value cannot hold ${loop.policy}; it belongs on a port")],
    ),
    "collected list on a single port": (
        '{t: "${loop.data}"}',
        '{t: "${steps.improve.scores}"}',
        [(22, "${steps.improve.scores} is there when the loop has ended")],
    ),
    "collected list in a map": (
        'op: concat, tables: "${steps.improve.scores}"',
        'op: query, sql: t, tables: {t: "${steps.improve.scores}"}',
        [(24, "is the list of what every round made, and port 'tables' takes one")],
    ),
    "a step of the body from outside": (
        'tables: "${steps.improve.scores}"',
        'tables: "${steps.scored.summary}"',
        [(24, "'scored' is a step within the loop 'improve', done in every round: let the loop")],
    ),
    "a step of the body as an output of the loop": (
        'tables: "${steps.improve.scores}"',
        'tables: "${steps.improve.scored}"',
        [(24, "${steps.improve.scored} names a step within the loop: let the loop `carry` or")],
    ),
    "a misspelt output of the loop": (
        'tables: "${steps.improve.scores}"',
        'tables: "${steps.improve.scors}"',
        [(24, "did you mean 'scores'?")],
    ),
    "one of several outputs": (
        'tables: "${steps.improve.scores}"',
        'tables: "${steps.improve}"',
        [(24, "has several outputs; name one of policy, data, scores")],
    ),
    "a condition on a loop": (
        "every: {",
        "every: {when: steps.improve.count > 1, ",
        [(24, "a condition here cannot see steps.improve, a loop")],
    ),
    "a condition on a step of the body": (
        "every: {",
        "every: {when: steps.scored.count > 1, ",
        [(24, "a condition here cannot see steps.scored, a step within the loop 'improve'")],
    ),
    "a number of the round outside": (
        "every: {",
        "every: {tag: '${loop.round}', ",
        [(24, "${loop.round} has a meaning within a loop only")],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_wrong_with_a_loop_is_told_once_on_its_line(case: str) -> None:
    old, new, expected = FAULTS[case]
    assert old in LOOP
    with pytest.raises(SpecError) as caught:
        graph(LOOP.replace(old, new, 1), n=4)
    problems = caught.value.problems
    assert [problem.line - FIRST for problem in problems] == [line for line, _ in expected]
    for problem, (_, words) in zip(problems, expected, strict=True):
        assert words in problem.message


def test_problems_of_a_loop_are_told_with_all_others() -> None:
    steps = LOOP.replace("{{ question }}", "{{ qestion }}").replace("op: merge", "op: mrge")
    with pytest.raises(SpecError) as caught:
        graph(steps, "x: ${steps.improve.scores}\ny: ${loop.data}", n=5)
    assert [problem.path for problem in caught.value.problems] == [
        "steps.improve.loop.steps.answers.prompt",
        "steps.after.op",
        "outputs.x",
        "outputs.y",
    ]


def test_rounds_count_towards_the_limit_of_steps() -> None:
    steps = LOOP.replace("op: query", "matrix: {k: [1, 2, 3, 4, 5, 6, 7, 8]}, op: query")
    with pytest.raises(SpecError, match="1102 steps after matrices are expanded and loops unrolle"):
        graph(steps.replace("${inputs.n}", "100"))


BODY = "rounds: 2, steps: {a: {op: x}}"
REFUSED = {
    "a loop in a loop": (
        "{loop: {rounds: 2, steps: {\n  b: {loop: {rounds: 2, steps: {}}}}}}",
        1,
        "a loop cannot stand within a loop",
    ),
    "no rounds": ("{loop: {steps: {a: {op: x}}}}", 0, "key 'rounds' is missing"),
    "rounds of none": ("{loop: {rounds: 0, steps: {a: {op: x}}}}", 0, "must be at least 1"),
    "too many rounds": ("{loop: {rounds: 101, steps: {a: {op: x}}}}", 0, "must be at most 100"),
    "no steps": ("{loop: {rounds: 1, steps: {}}}", 0, "must hold at least 1"),
    "an operator beside it": (
        f"{{loop: {{{BODY}}},\n  op: x}}",
        1,
        "'op' does not go with `loop`; it belongs to the steps within",
    ),
    "a misspelt key": (f"{{loop: {{{BODY},\n  untl: x}}}}", 1, "did you mean 'until'?"),
    "a misspelt key beside it": (f"{{loop: {{{BODY}}},\n  whn: x}}", 1, "did you mean 'when'?"),
    "a misspelt key of what is carried": (
        f"{{loop: {{{BODY}, carry: {{p: {{next: x,\n  strt: x}}}}}}}}",
        1,
        "did you mean 'start'?",
    ),
    "nothing to carry on": (
        f"{{loop: {{{BODY}, carry: {{\n  p: {{start: x}}}}}}}}",
        1,
        "key 'next' is missing",
    ),
    "the round's own name": (
        f"{{loop: {{{BODY},\n  carry: {{round: {{next: x}}}}}}}}",
        1,
        "${loop.round} is the number of the round",
    ),
    "one name for two things": (
        f"{{loop: {{{BODY}, carry: {{p: {{next: x}}}}, collect: {{p: x}}}}}}",
        0,
        "'p' is both carried and collected",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_loop_is_refused_on_its_line(case: str) -> None:
    step, line, words = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        load(f"flowmesh: 1\nsteps:\n  l: {step}\n", "w.yaml")
    assert words in caught.value.problems[0].message
    assert caught.value.problems[0].line == 3 + line
