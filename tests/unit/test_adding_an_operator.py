"""The operator of docs/adding-an-operator.md: found, checked, expanded, run and assembled."""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Work
from flowmesh.spec.action import Action, Result
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import StepNode, build
from flowmesh.spec.workflow import load
from flowmesh.worker.offers import offered
from support.blobs import DirBlobs

PAGE = Path(__file__).parent.parent.parent / "docs" / "adding-an-operator.md"
_FILE = re.compile(r"^```\w+\n# file: (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WORKFLOW = re.compile(r"^```yaml\n(flowmesh: 1\n.*?)^```$", re.MULTILINE | re.DOTALL)
SCOPE = Scope(run="r-1", tenant="alice", domain="default")


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package, as if it were installed."""
    files = dict(_FILE.findall(PAGE.read_text()))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("".join(points))
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.cache_clear()
    yield
    catalog.cache_clear()
    for module in [one for one in sys.modules if one.partition(".")[0] == project["name"]]:
        del sys.modules[module]


def step(old: str = "", new: str = "") -> StepNode:
    """The step of the page's workflow, with one text in it replaced."""
    ((text),) = _WORKFLOW.findall(PAGE.read_text())
    assert old in text
    workflow, positions = load(text.replace(old, new) if old else text)
    return build(workflow, positions, catalog(), {}, {"texts": ("title",)}).steps["counted"]


def open_engine(node: StepNode) -> Callable[..., Any]:
    module, _, function = node.op.entry.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def test_it_counts_the_words_of_each_row(tmp_path: Path) -> None:
    node = step()
    rows = [{"title": "one two three"}, {"title": ""}, {"title": "one two three"}]
    blobs = DirBlobs(tmp_path / "blobs")
    expansion = expand(node, {"rows": blobs.put_table(rows)}, rows, SCOPE)
    batch = [Work(task, Action.of(document)) for task, document in expansion.actions.items()]
    assert len(batch) == 2, "equal rows are one task"
    outcomes = list(open_engine(node)(blobs, batch[0].action.inputs, "").run(batch))
    results: dict[str, Result] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Done)
        results[outcome.task] = outcome.result
    made = assemble(node, rows, expansion.items, results, {})
    assert [row["words"] for row in made.tables["rows"]] == [3, 0, 3]
    assert node.columns["rows"] == ("title", "words")


def test_where_the_count_goes_is_no_part_of_the_work() -> None:
    rows = [{"title": "a b"}]
    here = expand(step(), {}, rows, SCOPE)
    named = step('{{ title }}"', '{{ title }}"\n    into: n')
    assert named.columns["rows"] == ("title", "n")
    there = expand(named, {}, rows, SCOPE)
    assert here.items == there.items


def test_a_worker_offers_it() -> None:
    assert "wordcount" in offered(catalog(), None)


def test_its_parameters_are_checked() -> None:
    with pytest.raises(SpecError, match=r"did you mean 'text'"):
        step("    text:", "    txt:")
