"""A loop that is extended, cut, renamed or rearranged reuses the rounds that stay the same."""

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Artifact, Bound
from flowmesh.spec.document import Positions
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import Graph, ModelRef, Source, StepOutput, remaining
from flowmesh.spec.workflow import parse
from spec_catalog import CATALOG

SCOPE = Scope("run", "tenant", "domain")
ROWS = [{"question": "why", "text": "so"}, {"question": "how", "text": "thus"}]
names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True).filter(lambda name: name != "round")


def document(
    rounds: int, loop: str, carried: str, seed: int | None, until: str, order: Any
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "answers": {
            "op": "answer",
            "rows": "${inputs.rows}",
            "model": "base",
            "adapter": f"${{loop.{carried}}}",
            "prompt": "{{ question }}",
            "temperature": 1.0,
            "seed": "${loop.round}" if seed is None else seed,
        },
        "scored": {"op": "score", "rows": "${steps.answers}", "model": "base"},
        "tune": {
            "op": "tune",
            "data": "${steps.scored}",
            "model": "base",
            "adapter": f"${{loop.{carried}}}",
        },
        "fixed": {"op": "query", "tables": {"t": "${inputs.rows}"}, "sql": "FROM t"},
    }
    keys = list(body)
    order.shuffle(keys)
    made = {
        "rounds": rounds,
        "carry": {carried: {"start": "tuned@prod", "next": "${steps.tune.adapter}"}},
        "steps": {key: body[key] for key in keys},
    }
    if until:
        made["until"] = until
    steps = {f"x{loop}": {"loop": made}}
    return {"flowmesh": 1, "inputs": {"rows": {"type": "table"}}, "steps": steps}


def tasks(data: Mapping[str, Any]) -> dict[tuple[int, str], tuple[str, ...]]:
    """The tasks of each step of each round, if every task makes what its name says."""
    graph: Graph = build(parse(data), Positions(), CATALOG, {}, {"rows": ("question",)})
    made: dict[StepOutput, Artifact] = {}

    def one(source: Any) -> Artifact:
        if isinstance(source, StepOutput):
            return made[source]
        kind: Any = "tree" if isinstance(source, ModelRef) else "table"
        return Artifact(kind, str(Digest.of(repr(source).encode())))

    def bound(source: Any) -> Bound:
        many: dict[str, Source] | None = source if isinstance(source, dict) else None
        return one(source) if many is None else {name: one(each) for name, each in many.items()}

    found: dict[tuple[int, str], tuple[str, ...]] = {}
    for name in graph.order:
        node = graph.steps[name]
        sources = remaining(node, ())
        assert sources is not None
        rows = ROWS if node.op.grain == "row" else None
        made_of = {port: bound(source) for port, source in sources.items()}
        items = expand(node, made_of, rows, SCOPE).items
        wanted = tuple(item.task for item in items)
        for port in node.outputs:
            kind: Any = "table" if node.outputs[port] == "table" else "tree"
            digest = Digest.of(f"{port} {wanted}".encode())
            made[StepOutput(name, port)] = Artifact(kind, str(digest))
        _, _, place = name.partition("[")
        number, _, step = place.partition("].")
        found[int(number), step] = wanted
    return found


untils = st.sampled_from(["", "steps.scored.summary.mean >= 0.9", "steps.fixed.count > 100"])
counts = st.integers(1, 5)


seeds = st.none() | st.integers(0, 9)
#: What may change about a loop without changing the work of a round.
shapes = st.tuples(counts, names, names)


@given(shapes, shapes, seeds, untils, untils, st.randoms())
def test_rounds_that_stay_the_same_are_the_same_work(
    one: tuple[int, str, str],
    other: tuple[int, str, str],
    seed: int | None,
    until: str,
    other_until: str,
    order: Any,
) -> None:
    first = tasks(document(*one, seed, until, order))
    second = tasks(document(*other, seed, other_until, order))
    assert {key: first[key] for key in first if key[0] <= other[0]} == {
        key: second[key] for key in second if key[0] <= one[0]
    }


@given(counts, seeds)
def test_a_round_differs_by_what_it_is_given_and_by_nothing_else(
    rounds: int, seed: int | None
) -> None:
    found = tasks(document(rounds, "l", "p", seed, "", _Unshuffled()))
    fixed = {found[number, "fixed"] for number in range(1, rounds + 1)}
    assert len(fixed) == 1
    for step in ("answers", "tune"):
        distinct = {found[number, step] for number in range(1, rounds + 1)}
        assert len(distinct) == rounds


class _Unshuffled:
    def shuffle(self, keys: list[str]) -> None:
        """Leaves them as they are."""
