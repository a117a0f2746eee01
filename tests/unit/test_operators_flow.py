"""From a document to rows through every light operator, without a server or a worker."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Work
from flowmesh.spec.action import Action, Artifact, Bound, Result
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import Graph, build
from flowmesh.spec.workflow import load
from support.blobs import DirBlobs

DOCUMENT = """\
flowmesh: 1
name: light
inputs:
  prompts: {type: table, file: prompts.jsonl}
  code: {type: file, file: code.py}
steps:
  unique: {op: dedupe, rows: "${inputs.prompts}", by: q}
  asked: {op: render, rows: "${steps.unique}", template: "Q: {{ q }}", into: text}
  scored:
    op: python
    rows: ${steps.asked}
    file: ${inputs.code}
    function: score
    columns: [text]
    args: {scale: 2}
  best:
    op: transform
    tables: {scored: "${steps.scored}"}
    sql: SELECT q, score FROM scored WHERE score > 8 ORDER BY score DESC, q
  none:
    op: transform
    tables: {best: "${steps.best}"}
    sql: SELECT q, score AS s FROM best WHERE score > 1000
  counted:
    op: transform
    tables: {none: "${steps.none}"}
    sql: SELECT count(s) AS n FROM none WHERE q <> ''
  parts: {op: split, rows: "${steps.best}", parts: {a: 1, b: rest}}
  again: {op: concat, tables: ["${steps.parts.a}", "${steps.parts.b}"]}
  summed: {op: python_table, rows: "${steps.again}", file: "${inputs.code}", function: total}
outputs:
  total: ${steps.summed.rows}
  counted: ${steps.counted.rows}
"""
CODE = """
def score(row, scale):
    assert set(row) == {"text"}
    return {"score": len(row["text"]) * scale}

def total(rows):
    return [{"rows": len(rows), "sum": sum(row["score"] for row in rows)}]
"""
PROMPTS = [{"q": "a", "n": 1}, {"q": "bbb", "n": 2}, {"q": "a", "n": 3}, {"q": "cc", "n": 4}]


def checked(document: str) -> Graph:
    workflow, positions = load(document, "light.yaml")
    return build(workflow, positions, catalog(), {}, {"prompts": ("q", "n")})


def carry_out(blobs: DirBlobs, graph: Graph, inputs: dict[str, Bound]) -> dict[str, Artifact]:
    """Every output of every step, as `step.port`."""
    made: dict[str, Any] = {f"inputs.{name}": bound for name, bound in inputs.items()}
    for name in graph.order:
        node = graph.steps[name]
        bound = {port: _bound(made, source) for port, source in node.inputs.items()}
        rows = blobs.rows(bound["rows"]) if node.op.grain == "row" else None
        found = expand(node, bound, rows, Scope("run", "tenant", "domain"))
        works = [Work(task, Action.of(document)) for task, document in found.actions.items()]
        module, _, function = node.op.entry.partition(":")
        engine = getattr(importlib.import_module(module), function)(blobs, {}, "")
        results: dict[str, Result] = {}
        for outcome in engine.run(works):
            assert isinstance(outcome, Done), outcome
            results[outcome.task] = outcome.result
        if rows is None:
            (result,) = results.values()
            made |= {f"{name}.{port}": table for port, table in result.outputs.items()}
        else:
            tables = assemble(node, rows, found.items, results, {}).tables
            made |= {f"{name}.{port}": blobs.put_table(table) for port, table in tables.items()}
    return made


def _bound(made: dict[str, Any], source: Any) -> Any:
    match source:
        case dict():
            return {name: _bound(made, one) for name, one in source.items()}
        case list() | tuple():
            return [_bound(made, one) for one in source]
        case _ if hasattr(source, "step"):
            return made[f"{source.step}.{source.port}"]
        case _:
            return made[f"inputs.{source.name}"]


def test_every_light_operator_in_one_workflow(tmp_path: Path) -> None:
    blobs = DirBlobs(tmp_path)
    inputs: dict[str, Bound] = {
        "prompts": blobs.put_table(PROMPTS),
        "code": blobs.put_file(CODE),
    }
    made = carry_out(blobs, checked(DOCUMENT), inputs)
    assert blobs.rows(made["best.rows"]) == [{"q": "bbb", "score": 12}, {"q": "cc", "score": 10}]
    assert blobs.rows(made["summed.rows"]) == [{"rows": 2, "sum": 22}]
    assert blobs.rows(made["counted.rows"]) == [{"n": 0}]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('scored: "${steps.scored}"', 'scored: "${steps.asked}"', 'column "score" not found'),
        ("by: q}", "by: p}", "no column 'p'"),
        ("{{ q }}", "{{ question }}", "the template names 'question'"),
        ("a: 1, b: rest", "a: 0.5, b: 0.6", "shares sum to 1.1, not to 1"),
        ("columns: [text]", "columns: [txt]", "did you mean 'text'"),
    ],
)
def test_faults_are_found_before_anything_runs(old: str, new: str, message: str) -> None:
    assert old in DOCUMENT
    with pytest.raises(SpecError) as refused:
        checked(DOCUMENT.replace(old, new))
    assert message in str(refused.value)
