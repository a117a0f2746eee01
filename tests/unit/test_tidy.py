"""The numbers of the house: they may only go down."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LINES_A_FILE = 500
LINES_A_FUNCTION = 50

FILES = sorted(
    path
    for folder in ("src", "tests", "examples", "docs", "bench")
    for path in (ROOT / folder).rglob("*.py")
)
#: Whose code is read, not only run.
DOCUMENTED = [path for path in FILES if path.parts[len(ROOT.parts)] != "tests"]


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function with its length, from its `def` to its end, without its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{node.name}, line {node.lineno}", length(node) - docstring_length(node)


def docstring_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return 0 if ast.get_docstring(node) is None else length(node.body[0])


def length(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 100


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_A_FILE
    long = [place for place, lines in functions(ast.parse(text)) if lines > LINES_A_FUNCTION]
    assert long == []


@pytest.mark.parametrize("path", DOCUMENTED, ids=name)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
