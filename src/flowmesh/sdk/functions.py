"""Does a Python file hold a function? Read, never executed."""

import ast
from collections.abc import Iterator
from pathlib import Path

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest


def check_function(path: Path, function: str, shown: str) -> None:
    """Raises SpecError: no Python in the file, with the line, or no such name at its top level."""
    try:
        tree = ast.parse(path.read_bytes(), filename=shown)
    except SyntaxError as error:
        message = f"not Python: {error.msg}"
        raise SpecError(Problem(message, shown, error.lineno or 0, error.offset or 0)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise SpecError(Problem(f"not Python: {error}", shown)) from None
    names = set(_names(tree.body))
    if function not in names and "*" not in names:
        functions = [one.name for one in tree.body if isinstance(one, ast.FunctionDef)]
        message = f"the file has no function {function!r}{nearest(function, functions)}"
        raise SpecError(Problem(message, shown))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """Whatever the statements may bind; `*` where only running would tell."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield alias.asname or alias.name.partition(".")[0]
            case _:
                for inner in ast.walk(statement):
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                        yield inner.id
                    elif isinstance(inner, ast.stmt) and inner is not statement:
                        yield from _names([inner])
