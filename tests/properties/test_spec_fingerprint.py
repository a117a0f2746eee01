"""Equal meaning gives an equal task; whatever may change the result gives another."""

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Artifact, Bound
from flowmesh.spec.document import Positions
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import StepNode
from flowmesh.spec.table import decode_rows, encode_rows
from flowmesh.spec.workflow import parse
from spec_catalog import CATALOG

words = st.text(st.characters(codec="utf-8", exclude_characters="{}$"), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
settings = st.fixed_dictionaries(
    {
        "prompt": words.map(lambda text: f"{text} {{{{ q }}}}"),
        "max_tokens": st.integers(1, 4096),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "seed": st.integers(0, 2**63 - 1),
        "samples": st.integers(1, 3),
    }
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(words, json_values, max_size=4), max_size=6)
SCOPE = Scope("run", "tenant", "domain")


def step(
    settings: dict[str, Any], *, name: str = "s", table: str = "t", model: str = "m"
) -> StepNode:
    workflow = parse(
        {
            "flowmesh": 1,
            "inputs": {table: {"type": "table"}},
            "models": {model: {"path": "x"}},
            "steps": {
                name: {
                    "op": "write",
                    "rows": f"${{inputs.{table}}}",
                    "model": f"${{models.{model}}}",
                    **settings,
                }
            },
        }
    )
    return build(workflow, Positions(), CATALOG, {}, {}).steps[name]


def tree(content: bytes) -> Artifact:
    return Artifact("tree", str(Digest.of(content)))


def tasks(
    node: StepNode,
    row: dict[str, Any],
    model: bytes = b"model",
    scope: Scope = SCOPE,
    rows_content: bytes = b"rows",
) -> list[str]:
    table = Artifact("table", str(Digest.of(rows_content)))
    bound: dict[str, Bound] = {"rows": table, "model": tree(model)}
    return [item.task for item in expand(node, bound, [row], scope).items]


@given(settings, words, names, names, names, st.randoms())
def test_names_order_and_other_rows_and_columns_change_nothing(
    chosen: dict[str, Any], q: str, name: str, table: str, model: str, random: Any
) -> None:
    shuffled = list(chosen.items())
    random.shuffle(shuffled)
    there = tasks(step(chosen), {"q": q})
    here = tasks(
        step(dict(shuffled), name=name, table=table, model=model),
        {"other": 1, "q": q},
        rows_content=b"other rows",
    )
    assert there == here
    # Where the result goes, and what spells out a default, is no part of the work.
    assert tasks(step({**chosen, "into": "elsewhere", "messages": None}), {"q": q}) == there
    # A run shares with others of its domain, whoever they are.
    assert tasks(step(chosen), {"q": q}, scope=Scope("other", "other", "domain")) == there


@given(settings, words)
def test_two_spellings_of_a_number_are_one(chosen: dict[str, Any], q: str) -> None:
    whole = {**chosen, "temperature": 1}
    assert tasks(step(whole), {"q": q}) == tasks(step({**chosen, "temperature": 1.0}), {"q": q})


@given(settings, settings, words, words)
def test_tasks_are_equal_only_where_all_that_counts_is(
    one: dict[str, Any], other: dict[str, Any], q: str, p: str
) -> None:
    def meaning(chosen: dict[str, Any], q: str, sample: int) -> tuple[Any, ...]:
        prompt = chosen["prompt"].replace("{{ q }}", q)
        return prompt, chosen["max_tokens"], chosen["temperature"], chosen["seed"], sample

    for n, left in enumerate(tasks(step(one), {"q": q})):
        for m, right in enumerate(tasks(step(other), {"q": p})):
            assert (left == right) == (meaning(one, q, n) == meaning(other, p, m))


@given(settings, words)
def test_model_version_engine_and_salt_count(chosen: dict[str, Any], q: str) -> None:
    node, row = step(chosen), {"q": q}
    newer = dataclasses.replace(node.op, version=2)
    elsewhere = dataclasses.replace(node.op, engine=lambda params: "fake/bfloat16")
    variants = [
        tasks(node, row),
        tasks(node, row, model=b"other model"),
        tasks(dataclasses.replace(node, op=newer), row),
        tasks(dataclasses.replace(node, op=elsewhere), row),
        tasks(node, row, scope=Scope("run", "tenant", "other")),
        tasks(dataclasses.replace(node, share="tenant"), row),
        tasks(dataclasses.replace(node, share="run"), row),
        tasks(dataclasses.replace(node, share="never"), row),
    ]
    every = [task for made in variants for task in made]
    assert len(set(every)) == len(every)


@given(rows)
def test_a_table_survives_its_bytes(table: list[dict[str, Any]]) -> None:
    data = encode_rows(table)
    again = decode_rows(data)
    assert again == table
    assert encode_rows(again) == data
    assert data.count(b"\n") == len(table)
