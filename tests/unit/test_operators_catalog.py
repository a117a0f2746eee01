"""The catalog: complete, importable, documented, and open to packages."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmesh.operators.catalog import BUILT_IN, BadOperatorPackage, catalog
from flowmesh.spec.operator import Operator


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to install packages in; the catalog is read anew before and after."""
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.cache_clear()
    yield tmp_path
    catalog.cache_clear()
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


def install(where: Path, name: str, code: str, value: str = "OPERATORS") -> None:
    module = name.replace("-", "_")
    (where / f"{module}.py").write_text(code)
    info = where / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flowmesh.operators]\nall = {module}:{value}\n")
    importlib.invalidate_caches()


def declaring(*names: str) -> str:
    listed = "".join(
        f"Operator(name={name!r}, version=1, summary='', params=Params, inputs={{}},"
        " grain='row', runtime='acme', entry='acme:open'),"
        for name in names
    )
    return f"from flowmesh.spec.operator import Operator, Params\nOPERATORS = [{listed}]\n"


def test_built_in_operators_come_by_name() -> None:
    assert {
        "transform", "render", "concat", "split", "dedupe", "generate", "choose", "embed",
        "python", "python_table", "http",
        "sft", "dpo", "kto", "reward_model", "grpo", "rloo",
        "reward", "judge", "evaluate", "compare", "harness",
        "advantages", "policy_update", "merge_adapter", "export",
    } == {operator.name for operator in BUILT_IN}  # fmt: skip
    assert all(catalog()[operator.name] is operator for operator in BUILT_IN)


@pytest.mark.parametrize("operator", BUILT_IN, ids=lambda operator: operator.name)
def test_everything_a_user_can_write_is_described(operator: Operator) -> None:
    assert operator.summary and operator.params.__doc__
    for name, field in operator.params.model_fields.items():
        assert field.description, name
    assert all(port.doc for port in operator.inputs.values())
    assert not set(operator.inputs) & set(operator.params.model_fields)
    assert set(operator.templated) <= set(operator.params.model_fields)
    assert operator.params.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize(
    "operator",
    [one for one in BUILT_IN if one.runtime != "transformers"],
    ids=lambda operator: operator.name,
)
def test_entries_can_be_opened(operator: Operator) -> None:
    module, _, function = operator.entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_package_adds_operators(packages: Path) -> None:
    install(packages, "acme-tools", declaring("acme_one", "acme_two"))
    assert {"acme_one", "acme_two", "transform"} <= set(catalog())
    assert catalog() is catalog()


def test_an_entry_point_may_name_one_operator(packages: Path) -> None:
    install(packages, "acme-tools", declaring("acme_one") + "ONE = OPERATORS[0]\n", "ONE")
    assert catalog()["acme_one"].runtime == "acme"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (declaring("render"), "'render' is declared by both flowmesh and acme-tools"),
        (
            "OPERATORS = [1]",
            "acme-tools, entry point all = acme_tools:OPERATORS: expected Operator",
        ),
        ("1 / 0", "acme-tools, entry point all = acme_tools:OPERATORS: ZeroDivisionError"),
        ("", "acme-tools, entry point all = acme_tools:OPERATORS: AttributeError"),
    ],
)
def test_a_bad_package_is_named(packages: Path, code: str, message: str) -> None:
    install(packages, "acme-tools", code)
    with pytest.raises(BadOperatorPackage) as refused:
        catalog()
    assert message in str(refused.value)


def test_two_packages_may_not_declare_one_name(packages: Path) -> None:
    install(packages, "acme-a", declaring("acme_one"))
    install(packages, "acme-b", declaring("acme_one"))
    with pytest.raises(BadOperatorPackage, match="both acme-a and acme-b; uninstall one"):
        catalog()
