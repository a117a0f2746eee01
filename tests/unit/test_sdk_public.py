"""What `import flowmesh` offers: the list is a promise, and costs nothing until it is used."""

import subprocess
import sys

import pytest

import flowmesh

PUBLIC = [
    "AccessDenied",
    "Amounts",
    "Client",
    "FlowMeshError",
    "LimitExceeded",
    "Limits",
    "NotFound",
    "Operator",
    "Output",
    "Params",
    "Port",
    "Problem",
    "QuotaExceeded",
    "Run",
    "SpecError",
    "StoreError",
    "Unreachable",
    "Workflow",
    "__version__",
]


def test_the_public_names_are_these_and_all_there() -> None:
    assert flowmesh.__all__ == PUBLIC == dir(flowmesh)
    for name in PUBLIC:
        assert getattr(flowmesh, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        flowmesh.__getattr__("Cleint")


def test_importing_is_cheap() -> None:
    code = "import flowmesh, sys; print({'pydantic', 'httpx', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
