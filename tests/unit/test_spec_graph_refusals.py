"""What is refused of a document that the catalog does not bear out: where, with which hint."""

import pytest

from flowmesh.base.errors import SpecError
from spec_documents import FIRST, RENDER, WRITE, graph

#: steps, line from the first step (0 is its own line), and words of the message.
REFUSED = {
    "unknown operator": ("a: {op: wriet}", 0, "unknown operator 'wriet'; did you mean 'write'?"),
    "unknown parameter": (
        f"a:\n  {RENDER.replace(', ', chr(10) + '  ')}\n  tempalte: x\n  template: x",
        3,
        "unknown parameter 'tempalte' of render; did you mean 'template'?",
    ),
    "misspelt reserved key": (
        f"a: {{{RENDER}, template: x, matirx: {{}}}}",
        0,
        "did you mean 'matrix'?",
    ),
    "missing parameter": (f"a: {{{RENDER}}}", 0, "parameter 'template' is missing"),
    "wrong type": (
        f"a: {{{WRITE}, prompt: x,\n  max_tokens: many}}",
        1,
        'expected a whole number, found "many"',
    ),
    "wrong type of a union": (
        f"a: {{{WRITE}, prompt: x, stop: 3}}",
        0,
        "expected text or a list, found 3",
    ),
    "token limit out of range": (
        f"a: {{{WRITE}, prompt: x,\n\n  max_tokens: 4097}}",
        2,
        "must be at most 4096, found 4097",
    ),
    "seed out of range": (
        f"a: {{{WRITE}, prompt: x, seed: -1}}",
        0,
        "must be at least 0, found -1",
    ),
    "true for a number": (
        "a: {op: split, rows: '${inputs.rows}', seed: true, parts: {x: 1}}",
        0,
        "expected a whole number, found true",
    ),
    "text for a number": (
        "a: {op: split, rows: '${inputs.rows}', seed: '1', parts: {x: 1}}",
        0,
        'expected a whole number, found "1"',
    ),
    "no finite number": (
        "a: {op: split, rows: '${inputs.rows}', parts: {x: 1,\n  y: inf}}",
        1,
        'expected a number, found "inf"',
    ),
    "members of a union, one of the right type": (
        f"a: {{{WRITE}, prompt: x, keep: -1}}",
        0,
        "must be at least 1 or must be greater than 0.0 or 'all', found -1",
    ),
    "word of a union": (
        f"a: {{{WRITE}, prompt: x, keep: al}}",
        0,
        "expected 'all', found \"al\"; did you mean 'all'?",
    ),
    "one of a few": (
        f"a: {{{WRITE}, prompt: x, style: caht}}",
        0,
        "expected 'plain' or 'chat', found \"caht\"; did you mean 'chat'?",
    ),
    "the operator's own refusal": (f"a: {{{WRITE}}}", 0, "give either `prompt` or `messages`"),
    "nested key": (
        f"a: {{{WRITE}, messages: [\n  {{role: user, content: x, contents: x}}]}}",
        1,
        "unknown key 'contents'; did you mean 'content'?",
    ),
    "nested key without a near one": (
        f"a: {{{WRITE}, messages: [\n  {{role: user, content: x, from: x}}]}}",
        1,
        "unknown key 'from'; known: content, role",
    ),
    "parameter that refers to nothing": (
        f"a: {{{WRITE}, prompt: x,\n  samples: '${{inputs.m}}'}}",
        1,
        "${inputs.m} names no input",
    ),
    "reference of an unknown kind": (
        f"a: {{{RENDER}, template: '${{input.n}}'}}",
        0,
        "did you mean 'inputs'?",
    ),
    "reference without an end": (f"a: {{{RENDER}, template: '${{inputs.n'}}", 0, "without `}`"),
    "step in a parameter": (
        f"a: {{{RENDER}, template: '${{steps.a}}'}}",
        0,
        "it belongs on a port (ports: rows)",
    ),
    "table in a parameter": (
        f"a: {{{RENDER}, template: '${{inputs.rows}}'}}",
        0,
        "a value cannot hold ${inputs.rows}, a table",
    ),
    "missing port": ("a: {op: render, template: x}", 0, "port 'rows' of render is missing"),
    "port that refers to nothing": (
        "a: {op: render, template: x,\n  rows: '${steps.be}'}\n"
        "be2: {op: concat, tables: ['${inputs.rows}']}",
        1,
        "${steps.be} names no step; did you mean 'be2'?",
    ),
    "input that is not there": (
        "a: {op: render, template: x, rows: '${inputs.row}'}",
        0,
        "${inputs.row} names no input; did you mean 'rows'?",
    ),
    "output that a step lacks": (
        f"a: {{{RENDER}, template: x}}\n"
        "b: {op: render, template: x,\n  rows: '${steps.a.row}'}",
        2,
        "names no output of step 'a'; did you mean 'rows'?",
    ),
    "one of several outputs": (
        "a: {op: split, rows: '${inputs.rows}', parts: {x: 1, y: 2}}\n"
        "b: {op: concat, tables: ['${steps.a}']}",
        1,
        "name one of x, y",
    ),
    "bare word for a table": (
        "a: {op: render, template: x, rows: rows}",
        0,
        'expected a table: ${inputs.NAME} or ${steps.NAME}, found "rows"; did you mean',
    ),
    "number for a model": (
        "a: {op: write, prompt: x, rows: '${inputs.rows}', model: 3}",
        0,
        "expected a model",
    ),
    "table for a model": (
        "a: {op: write, prompt: x, rows: '${inputs.rows}', model: '${inputs.rows}'}",
        0,
        "${inputs.rows} is a table",
    ),
    "file for a table": ("a: {op: render, template: x, rows: '${inputs.code}'}", 0, "is a file"),
    "model that is not there": (
        "a: {op: write, prompt: x, rows: '${inputs.rows}', model: '${models.chta}'}",
        0,
        "${models.chta} names no model; did you mean 'chat'?",
    ),
    "alias without its reference": (
        "a: {op: write, prompt: x, rows: '${inputs.rows}', model: chat}",
        0,
        "write ${models.chat}",
    ),
    "path for a registered model": (
        "a: {op: write, prompt: x, rows: '${inputs.rows}', model: ./dir}",
        0,
        "give paths and hub names under `models:`",
    ),
    "list for a map": ("a: {op: query, sql: x, tables: []}", 0, "a mapping of names"),
    "nothing in a list": ("a: {op: concat, tables: []}", 0, "port 'tables' holds nothing"),
    "third entry of a list": (
        "a:\n  op: concat\n  tables:\n  - ${inputs.rows}\n  - ${inputs.rwos}",
        4,
        "did you mean 'rows'?",
    ),
    "template that cannot be read": (
        f"a: {{{RENDER},\n  template: '{{{{ x'}}",
        1,
        "template line 1",
    ),
    "unknown filter": (f"a: {{{RENDER}, template: '{{{{ topic | uper }}}}'}}", 0, "filter"),
    "missing column": (
        f"a: {{{RENDER},\n  template: 'Q: {{{{ qestion }}}}'}}",
        1,
        "the template names 'qestion', a column that the rows do not have; "
        "did you mean 'question'?",
    ),
    "missing column, nested": (
        f"a:\n  {WRITE.replace(', ', chr(10) + '  ')}\n  messages:\n"
        "  - {role: system, content: x}\n  - {role: user, content: '{{ tpic }}'}",
        6,
        "did you mean 'topic'?",
    ),
    "missing column, from a step": (
        f"a: {{{WRITE}, prompt: x}}\n"
        "b: {op: render, rows: '${steps.a}',\n  template: '{{ question }} {{ txt }}'}",
        2,
        "did you mean 'text'?",
    ),
    "missing column that a script reads": (
        "a: {op: script, rows: '${inputs.rows}', file: f.py, columns: [topc]}",
        0,
        "script reads column 'topc', which the rows do not have; did you mean 'topic'?",
    ),
    "column that is there already": (
        f"a: {{{WRITE}, prompt: x,\n  into: topic}}",
        1,
        "the rows already have a column 'topic', which write adds; give another name with `into`",
    ),
    "column that quarantine adds": (
        f"a: {{{WRITE}, prompt: x, into: error}}\n"
        "b: {op: render, rows: '${steps.a}', template: x,\n  on_error: quarantine}",
        2,
        "the rows already have a column 'error', which quarantine adds",
    ),
    "cycle": (
        "a: {op: render, template: x, rows: '${steps.c}'}\n"
        "b: {op: render, template: x, rows: '${steps.a}'}\n"
        "c: {op: concat, tables: ['${inputs.rows}', '${steps.b}']}",
        0,
        "the steps form a cycle: a -> b -> c -> a",
    ),
    "step that reads itself": (
        "a: {op: render, template: x, rows: '${steps.a}'}",
        0,
        "a -> a",
    ),
    "cycle through a condition": (
        f"a: {{{RENDER}, template: x, when: steps.b.count > 0}}\n"
        "b: {op: render, template: x, into: y, rows: '${steps.a}'}",
        0,
        "cycle: a -> b -> a",
    ),
    "condition on nothing": (
        f"a: {{{RENDER}, template: x,\n  when: inputs.m > 1}}",
        1,
        "a condition cannot see inputs.m",
    ),
    "condition on a wrong step": (
        f"ab: {{{RENDER}, template: x}}\nb: {{{RENDER}, template: x, when: steps.abc.count}}",
        1,
        "did you mean 'ab'?",
    ),
    "skip of a whole table": (
        "a: {op: concat, tables: ['${inputs.rows}'],\n  on_error: skip}",
        1,
        "works on whole tables",
    ),
    "matrix step on a single port": (
        f"a: {{{RENDER}, template: 'a ${{matrix.x}}', matrix: {{x: [1, 2]}}}}\n"
        "b: {op: render, template: x, rows: '${steps.a}', into: y}",
        1,
        "has 2 instances, and port 'rows' takes one here; join them with a `concat` step",
    ),
    "matrix step in a map": (
        f"a: {{{RENDER}, template: 'a ${{matrix.x}}', matrix: {{x: [1, 2]}}}}\n"
        "b: {op: query, sql: t, tables: {t: '${steps.a}'}}",
        1,
        "join them with a `concat` step",
    ),
    "matrix name that is not there": (
        f"a: {{{RENDER}, template: '${{matrix.y}}', matrix: {{x: [1, 2]}}}}",
        0,
        "${matrix.y} names nothing in this step's matrix",
    ),
    "refusal by the columns": (
        "a: {op: query, tables: {t: '${inputs.rows}'},\n  sql: SELECT 1}",
        1,
        "the query does not use table 't'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_step_is_refused_on_its_line(case: str) -> None:
    steps, line, words = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        graph(steps)
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.file, problem.line) == ("w.yaml", FIRST + line)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ("x: ${steps.b}", "${steps.b} names no step"),
        ("x: ${steps.a.row}", "did you mean 'rows'?"),
        ("x: ${inputs.rows}", "an output is a step's"),
        ("x: rows", "an output is a step's"),
        ("x: ${steps.m}", "has 2 instances; join them with a `concat` step"),
    ],
)
def test_a_bad_output_is_refused(outputs: str, words: str) -> None:
    steps = f"""
        a: {{{RENDER}, template: x}}
        m: {{{RENDER}, template: x, matrix: {{k: [1, 2]}}}}
    """
    with pytest.raises(SpecError) as caught:
        graph(steps, outputs)
    (problem,) = caught.value.problems
    assert words in problem.message
    assert (problem.path, problem.line) == ("outputs.x", FIRST + 3)


def test_all_problems_are_told_at_once_in_the_order_of_the_document() -> None:
    with pytest.raises(SpecError) as caught:
        graph(
            f"""
            a: {{{RENDER}, tempate: x}}
            b: {{op: wriet}}
            c: {{op: render, rows: '${{steps.a}}', template: '{{{{ any }}}}'}}
            d: {{{RENDER}, template: '{{{{ tpic }}}}'}}
            """,
            "o: ${steps.e}",
            m=3,
        )
    lines = [problem.line - FIRST for problem in caught.value.problems if problem.line]
    assert lines == [0, 0, 1, 3, 5]  # nothing about c: what it reads is not known
    assert "no plain input is called 'm'" in caught.value.problems[0].message
