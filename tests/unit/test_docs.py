"""The docs say what is so: generated pages are fresh, links lead somewhere, examples work."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

import flowmesh
from flowmesh.base.errors import SpecError
from flowmesh.cli.main import cli
from flowmesh.core.records import Failure, OnError, RunStatus, StepStatus, TaskStatus
from flowmesh.operators.catalog import BUILT_IN
from flowmesh.sdk.tables import read_table
from flowmesh.spec.graph import build
from flowmesh.spec.operator import Operator
from flowmesh.spec.table import columns_of
from flowmesh.spec.workflow import PlainInput, TableInput, load

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402

PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
CATALOG: Mapping[str, Operator] = {operator.name: operator for operator in BUILT_IN}
GENERATED: Mapping[Path, str] = generate.generated()
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [body for found, body in _FENCE.findall(page.read_text()) if found == language]


def documents() -> Iterator[tuple[str, str]]:
    """Every complete workflow in the docs and the examples, with its place."""
    for page in PAGES:
        for number, text in enumerate(blocks(page, "yaml")):
            if text.startswith("flowmesh:"):
                yield f"{page.name}#{number}", text
    for file in sorted(EXAMPLES.glob("*.yaml")):
        yield file.name, file.read_text()


DOCUMENTS = dict(documents())


def name(path: Path) -> str:
    return path.name


# Generated pages


@pytest.mark.parametrize("page", GENERATED, ids=name)
def test_a_generated_page_is_fresh(page: Path) -> None:
    assert page.exists(), "run `make docs`"
    assert page.read_text() == GENERATED[page], "run `make docs`"


def test_every_block_is_on_a_page() -> None:
    shown = {found for page in PAGES for found in generate.blocks_of(page.read_text())}
    assert shown == set(generate.BLOCKS)


def test_a_stale_block_is_replaced_and_the_rest_is_kept() -> None:
    text = "before\n<!-- generated: retries -->\nold\n<!-- end -->\nafter\n"
    fresh = generate.filled(text)
    assert fresh.startswith("before\n<!-- generated: retries -->\n| failure |")
    assert fresh.endswith("<!-- end -->\nafter\n")
    assert "old" not in fresh
    assert generate.filled(fresh) == fresh


# Descriptions


def parameters() -> Iterator[tuple[str, str]]:
    """`operator.parameter` and its description, fields of parts included."""
    for operator in BUILT_IN:
        schema = operator.params.model_json_schema()
        parts = {"": schema, **schema.get("$defs", {})}
        for part, one in parts.items():
            for field, described in one.get("properties", {}).items():
                place = ".".join(filter(None, (operator.name, part, field)))
                yield place, described.get("description", "")


@pytest.mark.parametrize(("place", "description"), list(parameters()))
def test_a_parameter_has_a_description(place: str, description: str) -> None:
    assert len(description) > 10


@pytest.mark.parametrize("operator", BUILT_IN, ids=lambda one: one.name)
def test_an_operator_and_its_ports_have_a_description(operator: Operator) -> None:
    assert operator.summary.endswith(".")
    assert (operator.params.__doc__ or "").strip()
    assert all(len(port.doc) > 5 for port in operator.inputs.values())


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for word, one in command.commands.items():
            yield from commands(one, f"{path} {word}")


COMMANDS = dict(commands(cli, "flowmesh"))


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_and_its_options_have_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    silent = [
        option.opts[0]
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    ]
    assert silent == []


def test_every_key_of_the_language_has_a_meaning() -> None:
    models: tuple[type[BaseModel], ...] = tuple(model for _, model in generate.PARTS)
    silent = [
        f"{model.__name__}.{key}"
        for model in models
        for key, field in model.model_json_schema()["properties"].items()
        if "description" not in field
    ]
    assert silent == []


def test_the_lifecycle_knows_every_state() -> None:
    page = (DOCS / "lifecycle.md").read_text()
    for states in (RunStatus, StepStatus, TaskStatus, Failure, OnError):
        for state in states:
            where = "workflow.md" if states is OnError else "lifecycle.md"
            text = page if where == "lifecycle.md" else (DOCS / where).read_text()
            assert re.search(rf"\b{state.value}\b", text), f"{where}: {state!r}"


# Links


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, by GitHub's rules."""
    text = _FENCE.sub("", page.read_text())
    found: set[str] = set()
    for heading in _HEADING.findall(text):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        found.add(words.strip().lower().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(_LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in DOCS.glob("*.md")} <= {
        link.partition("#")[0] for link in linked
    }


# Examples


def given(text: str) -> dict[str, object]:
    """A value for each plain input that has no default."""
    workflow, _ = load(text)
    samples: dict[str, object] = {"string": "x", "int": 1, "float": 1.0, "bool": True}
    return {
        key: samples[one.type]
        for key, one in workflow.inputs.items()
        if isinstance(one, PlainInput) and one.default is None
    }


def columns(text: str) -> dict[str, tuple[str, ...] | None]:
    """Of each table input: those of its file, else those that it says it has."""
    workflow, _ = load(text)
    found: dict[str, tuple[str, ...] | None] = {}
    for key, one in workflow.inputs.items():
        if isinstance(one, TableInput):
            file = EXAMPLES / (one.file or "")
            rows = read_table(file, str(file)) if file.is_file() else []
            found[key] = columns_of(rows) or one.columns
    return found


@pytest.mark.parametrize("place", DOCUMENTS)
def test_a_workflow_in_the_docs_is_valid(place: str, catalog: Mapping[str, Operator]) -> None:
    text = DOCUMENTS[place]
    workflow, positions = load(text, place)
    graph = build(workflow, positions, catalog, given(text), columns(text))
    assert graph.outputs


@pytest.fixture
def catalog() -> Mapping[str, Operator]:
    """Our operators, and that of the page which makes one."""
    contract, *_ = blocks(DOCS / "adding-an-operator.md", "python")
    made: dict[str, object] = {}
    exec(compile(contract, "wordcount/contract.py", "exec"), made)
    operator = made["COUNT_WORDS"]
    assert isinstance(operator, Operator)
    return {**CATALOG, operator.name: operator}


def test_an_example_with_a_mistake_is_found(catalog: Mapping[str, Operator]) -> None:
    text = DOCUMENTS["quickstart.yaml"].replace("{{ question }}", "{{ qestion }}", 1)
    workflow, positions = load(text)
    with pytest.raises(SpecError, match="qestion"):
        build(workflow, positions, catalog, given(text), columns(text))


def python_blocks() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize(("page", "text"), python_blocks())
def test_python_in_the_docs_uses_what_there_is(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "flowmesh":
            assert {one.name for one in node.names} <= set(flowmesh.__all__)
