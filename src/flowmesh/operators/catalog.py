"""Every operator there is: ours, and those that installed packages add.

A package adds operators by an entry point of the group `flowmesh.operators`, which names
an `Operator` or a list of them. Two packages may not declare one name.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from flowmesh.base.errors import FlowMeshError
from flowmesh.operators.adapters import EXPORT, MERGE_ADAPTER
from flowmesh.operators.compare import COMPARE
from flowmesh.operators.evaluate import EVALUATE
from flowmesh.operators.generate import CHOOSE, EMBED, GENERATE
from flowmesh.operators.harness import HARNESS
from flowmesh.operators.http import HTTP
from flowmesh.operators.judge import JUDGE
from flowmesh.operators.policy import ADVANTAGES, POLICY_UPDATE
from flowmesh.operators.python import PYTHON, PYTHON_TABLE
from flowmesh.operators.render import RENDER
from flowmesh.operators.scoring import REWARD
from flowmesh.operators.tables import CONCAT, DEDUPE, SPLIT, TRANSFORM
from flowmesh.operators.train import TRAINING
from flowmesh.spec.operator import Operator

GROUP = "flowmesh.operators"

BUILT_IN = (
    TRANSFORM,
    RENDER,
    CONCAT,
    SPLIT,
    DEDUPE,
    GENERATE,
    CHOOSE,
    EMBED,
    PYTHON,
    PYTHON_TABLE,
    HTTP,
    REWARD,
    JUDGE,
    EVALUATE,
    COMPARE,
    HARNESS,
    *TRAINING,
    ADVANTAGES,
    POLICY_UPDATE,
    MERGE_ADAPTER,
    EXPORT,
)


class BadOperatorPackage(FlowMeshError):
    """An installed package declares operators that can not be used."""

    code = "bad_operator_package"
    exit_code = 2


@cache
def catalog() -> Mapping[str, Operator]:
    """Operators by name. Raises BadOperatorPackage, which names the packages at fault."""
    operators: dict[str, Operator] = {}
    owners: dict[str, str] = {}
    found = [("flowmesh", operator) for operator in BUILT_IN]
    for point in sorted(entry_points(group=GROUP), key=lambda point: (_package(point), point.name)):
        found += [(_package(point), operator) for operator in _load(point)]
    for package, operator in found:
        if operator.name in operators:
            raise BadOperatorPackage(
                f"operator {operator.name!r} is declared by both {owners[operator.name]} and"
                f" {package}; uninstall one of the packages"
            )
        operators[operator.name] = operator
        owners[operator.name] = package
    return MappingProxyType(operators)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module


def _load(point: EntryPoint) -> list[Operator]:
    place = f"package {_package(point)}, entry point {point.name} = {point.value}"
    try:
        loaded = point.load()
    except Exception as error:  # whatever their module does when imported
        raise BadOperatorPackage(f"{place}: {type(error).__name__}: {error}") from error
    operators = loaded if isinstance(loaded, list | tuple) else [loaded]
    for operator in operators:
        if not isinstance(operator, Operator):
            kind = type(operator).__name__
            raise BadOperatorPackage(f"{place}: expected Operator or a list of it, found {kind}")
    return list(operators)
