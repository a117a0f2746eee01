"""Which runtimes this machine can offer, told without importing any of them."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.operator import Operator


def preloads(operators: Iterable[Operator]) -> dict[str, tuple[str, ...]]:
    """What to import beforehand for each runtime: all that any operator of it asks for."""
    modules: dict[str, dict[str, None]] = {}
    for operator in operators:
        modules.setdefault(operator.runtime, {}).update(dict.fromkeys(operator.preload))
    return {runtime: tuple(names) for runtime, names in modules.items()}


def offered(operators: Mapping[str, Operator], only: Iterable[str] | None) -> tuple[str, ...]:
    """Runtimes whose libraries are installed, or `only` these of them.

    Raises SpecError for one of `only` that no operator has, or that lacks its libraries.
    """
    needed = preloads(operators.values())
    lacking = {runtime: _missing(modules) for runtime, modules in needed.items()}
    if only is None:
        return tuple(sorted(runtime for runtime, missing in lacking.items() if not missing))
    asked = sorted(set(only))
    for runtime in asked:
        if runtime not in lacking:
            raise SpecError(Problem(f"no runtime {runtime!r}{nearest(runtime, lacking)}"))
        if lacking[runtime]:
            modules = ", ".join(lacking[runtime])
            wanted = f"install the extra that brings it: pip install 'flowmesh[{runtime}]'"
            raise SpecError(Problem(f"runtime {runtime!r} needs {modules}; {wanted}"))
    return tuple(asked)


def warm_keys(opened: Iterable[str], operators: Mapping[str, Operator]) -> tuple[str, ...]:
    """Batch keys that load nothing more: those `opened`, and of other operators on the same.

    Operators of one runtime run in one process where engine and models are equal, and share
    what it has loaded.
    """
    found: dict[str, None] = {}
    for key in opened:
        head, slash, rest = key.partition("/")
        known = operators.get(head.partition("@")[0])
        alike = [one for one in operators.values() if known and one.runtime == known.runtime]
        names = [head, *(f"{one.name}@{one.version}" for one in alike)]
        found |= dict.fromkeys(f"{name}{slash}{rest}" for name in names)
    return tuple(sorted(found))


def _missing(modules: Iterable[str]) -> list[str]:
    # Only top-level packages: to look for `a.b` is to import `a`.
    packages = dict.fromkeys(module.partition(".")[0] for module in modules)
    return [package for package in packages if find_spec(package) is None]
