"""From a step to tasks and back to tables, by example; the laws are in `properties`."""

import json
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest

from flowmesh.base.digest import Digest, fingerprint
from flowmesh.spec.action import Action, Artifact, Bound, Result
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Expansion, Item, Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import StepNode
from flowmesh.spec.schema import json_schema
from flowmesh.spec.workflow import load
from spec_catalog import CATALOG

SCOPE = Scope("run-1", "ada", "lab")
TABLE = Artifact("table", str(Digest.of(b"rows")), 2, ("q",))
MODEL = Artifact("tree", str(Digest.of(b"model")))
SCRIPT = Artifact("file", str(Digest.of(b"def f(): ...")))
BOUND: dict[str, Bound] = {"rows": TABLE, "model": MODEL, "file": SCRIPT}


def node(step: str) -> StepNode:
    text = f"flowmesh: 1\ninputs: {{rows: {{type: table}}}}\nsteps: {{s: {{{dedent(step)}}}}}\n"
    workflow, positions = load(text)
    return build(workflow, positions, CATALOG, {}, {}).steps["s"]


def write(more: str = "prompt: 'Q: {{ q }}'") -> StepNode:
    return node(f"op: write, rows: '${{inputs.rows}}', model: m, {more}")


def expanded(step: StepNode, *rows: dict[str, Any], scope: Scope = SCOPE) -> Expansion:
    bound = {port: BOUND[port] for port in step.op.inputs if port in BOUND}
    return expand(step, bound, rows, scope)


def test_a_row_becomes_one_task_with_all_that_counts() -> None:
    made = expanded(write(), {"q": "why"}, {"q": "how", "other": 3}, {"q": "why", "other": 4})
    why, how = made.items[0].task, made.items[1].task
    assert made.items == (Item(0, 0, why), Item(1, 0, how), Item(2, 0, why))
    assert made.actions[why] == {
        "op": "write",
        "version": 1,
        "params": {"prompt": "Q: why", "messages": None, "max_tokens": 16, "temperature": 0.0},
        "inputs": {"model": {"kind": "tree", "digest": MODEL.digest}},
        "engine": "fake/float32",
        "salt": "domain:lab",
    }
    assert fingerprint(made.actions[why]) == why
    assert Action.of(made.actions[why]).document() == made.actions[why]
    assert made.batch_key == f"write@1/fake/float32/{MODEL.digest}"
    assert {task: one.work for task, one in made.amounts.items()} == {why: 16.0, how: 16.0}


def test_samples_are_items_in_order_and_greedy_ones_share_a_task() -> None:
    drawn = expanded(write("prompt: x, samples: 3, temperature: 1, seed: 7"), {}, {})
    assert [(item.row, item.sample) for item in drawn.items] == [
        (row, sample) for row in range(2) for sample in range(3)
    ]
    assert len(drawn.actions) == 3
    assert len(expanded(write("prompt: x, samples: 3"), {}, {}).actions) == 1


@pytest.mark.parametrize(
    ("more", "salt"),
    [
        ("share: domain", "domain:lab"),
        ("share: tenant", "tenant:ada"),
        ("share: run", "run:run-1"),
        ("share: never", "item:run-1/s/0/0"),
        ("temperature: 1", "run:run-1"),
        ("temperature: 1, share: never", "item:run-1/s/0/0"),
        ("temperature: 1, reuse: samples", "domain:lab"),
        ("temperature: 1, reuse: samples, share: tenant", "tenant:ada"),
        ("temperature: 1, seed: 3", "domain:lab"),
    ],
)
def test_the_salt_says_who_may_share(more: str, salt: str) -> None:
    made = expanded(write(f"prompt: x, {more}"), {})
    assert [action["salt"] for action in made.actions.values()] == [salt]


def test_an_effect_is_never_shared() -> None:
    made = expanded(node("op: call, rows: '${inputs.rows}', url: /, reuse: samples"), {}, {})
    assert [action["salt"] for action in made.actions.values()] == [
        "item:run-1/s/0/0",
        "item:run-1/s/1/0",
    ]


def test_a_row_that_a_template_refuses_fails_alone() -> None:
    made = expanded(write("prompt: '{{ q }}', samples: 2"), {"q": "x"}, {"p": "y"})
    assert [item.row for item in made.items] == [0, 0]
    words = "prompt: template '{{ q }}': 'q' is not in this row"
    assert made.failed == ((1, 0, words), (1, 1, words))


@pytest.mark.parametrize(
    ("columns", "row"), [("null", {"q": 1, "p": 2}), ("[p]", {"p": 2}), ("[]", None)]
)
def test_an_operator_sees_the_columns_it_asks_for(columns: str, row: dict[str, Any] | None) -> None:
    step = node(f"op: script, rows: '${{inputs.rows}}', file: f.py, columns: {columns}")
    made = expanded(step, {"q": 1, "p": 2})
    ((task, action),) = made.actions.items()
    assert (made.batch_key, made.amounts[task].work) == ("script@1", 1.0)
    assert action["params"] == (
        {} if row is None else {"row": json.dumps(row, separators=(",", ":"))}
    )
    assert action["inputs"] == {"file": {"kind": "file", "digest": SCRIPT.digest}}


def test_a_column_that_an_operator_needs_may_be_missing_in_a_row() -> None:
    step = node("op: script, rows: '${inputs.rows}', file: f.py, columns: [p]")
    assert expanded(step, {"q": 1}).failed == ((0, 0, "'p' is not in this row"),)


def test_a_whole_table_becomes_one_task() -> None:
    step = node("op: query, sql: SELECT 1 FROM t, tables: {t: '${inputs.rows}'}")
    made = expand(step, {"tables": {"t": TABLE}}, None, SCOPE)
    (action,) = made.actions.values()
    assert made.items == (Item(0, 0, fingerprint(action)),)
    assert action["params"] == {"sql": "SELECT 1 FROM t"}
    assert action["inputs"] == {
        "tables": {"named": {"t": {"kind": "table", "digest": TABLE.digest}}}
    }


def test_results_are_merged_into_their_rows_in_order() -> None:
    step = write("prompt: '{{ q }}', samples: 2, temperature: 1, seed: 1")
    rows = [{"q": "a"}, {"q": "b"}, {"q": "a"}]
    made = expanded(step, *rows)
    texts = {item.task: f"{rows[item.row]['q']}{item.sample}" for item in made.items}
    results = {task: Result(rows=[{"text": text}]) for task, text in texts.items()}
    done = assemble(step, rows, made.items[::-1], results, {})
    assert done.tables == {
        "rows": [
            {"q": q, "text": f"{q}{sample}", "sample": sample} for q in "aba" for sample in (0, 1)
        ]
    }
    assert done.origins == {
        "rows": [("rows", row, sample) for row in range(3) for sample in (0, 1)]
    }


def test_a_result_may_drop_its_row_or_multiply_it() -> None:
    step = node("op: script, rows: '${inputs.rows}', file: f.py")
    rows = [{"q": 1}, {"q": 2}]
    made = expanded(step, *rows)
    first, second = (item.task for item in made.items)
    results = {first: Result(rows=[]), second: Result(rows=[{"x": 1}, {"q": 3}])}
    done = assemble(step, rows, made.items, results, {})
    assert done.tables == {"rows": [{"q": 2, "x": 1}, {"q": 3}]}
    assert done.origins == {"rows": [("rows", 1, 0), ("rows", 1, 0)]}


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_failed_items_are_dropped_or_set_aside(on_error: str) -> None:
    step = write(f"prompt: '{{{{ q }}}}', on_error: {on_error}")
    rows = [{"q": "a"}, {"q": "b"}, {"p": "c"}]
    made = expanded(step, *rows)
    results = {made.items[1].task: Result(rows=[{"text": "B"}])}
    failures = {(row, sample): message for row, sample, message in made.failed}
    done = assemble(step, rows, made.items, results, failures | {(0, 0): "too long"})
    assert done.tables["rows"] == [{"q": "b", "text": "B", "sample": 0}]
    assert done.origins["rows"] == [("rows", 1, 0)]
    if on_error == "quarantine":
        assert done.tables["errors"] == [
            {"q": "a", "error": "too long"},
            {"p": "c", "error": made.failed[0].message},
        ]
        assert done.origins["errors"] == [("rows", 0, 0), ("rows", 2, 0)]
    else:
        assert set(done.tables) == {"rows"}


def test_the_schema_knows_each_operator() -> None:
    schema = json_schema(CATALOG)
    step = schema["$defs"]["Step"]
    assert step["properties"]["op"]["enum"] == sorted(CATALOG)
    variants = {one["if"]["properties"]["op"]["const"]: one["then"] for one in step["allOf"]}
    assert variants["write"] == {"$ref": "#/$defs/step-write"}
    write = schema["$defs"]["step-write"]
    assert write["required"] == ["rows", "model"]
    assert {"rows", "model", "prompt", "when", "matrix", "op"} <= set(write["properties"])
    assert write["additionalProperties"] is False
    assert "write.Turn" in schema["$defs"]
    assert schema["$defs"]["step-query"]["properties"]["tables"]["type"] == "object"


def test_the_schema_knows_loops() -> None:
    definitions = json_schema(CATALOG)["$defs"]
    steps = json_schema(CATALOG)["properties"]["steps"]["patternProperties"]
    (one,) = steps.values()
    assert one["oneOf"] == [{"$ref": "#/$defs/Step"}, {"$ref": "#/$defs/LoopStep"}]
    loop = definitions["Loop"]["properties"]
    assert set(loop) == {"rounds", "carry", "collect", "until", "steps"}
    (body,) = loop["steps"]["patternProperties"].values()
    assert body == {"$ref": "#/$defs/Step"}
    assert definitions["LoopStep"]["required"] == ["loop"]
    adapter = re.compile(definitions["step-answer"]["properties"]["adapter"]["pattern"])
    for fits in ("${loop.policy}", "${steps.tune.adapter}", "support-bot@prod"):
        assert adapter.search(fits)
    assert not adapter.search("a/b")


def test_every_reference_within_the_schema_leads_somewhere() -> None:
    schema = json_schema(CATALOG)

    def references(value: Any) -> Iterator[str]:
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in inner if isinstance(value, dict | list) else ():
            yield from references(one)

    found = list(references(schema))
    assert found
    for reference in found:
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_a_function_sees_numbers_as_they_were_written() -> None:
    step = node("op: script, rows: '${inputs.rows}', file: f.py")
    made = expanded(step, {"q": 1.0}, {"q": 1})
    (one, other) = (made.actions[item.task]["params"]["row"] for item in made.items)
    assert (one, other) == ('{"q":1.0}', '{"q":1}')
