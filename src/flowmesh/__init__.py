"""FlowMesh: a multi-tenant service fabric for LLM post-training and agentic workflows.

    from flowmesh import Client

    with Client() as client:
        run = client.submit("quickstart.yaml")
        run.wait()
        rows = run.output("pairs").rows()

What is listed in `__all__` is the public API; it is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowmesh.base.version import __version__

if TYPE_CHECKING:
    from flowmesh.base.errors import (
        AccessDenied,
        FlowMeshError,
        LimitExceeded,
        NotFound,
        Problem,
        SpecError,
        StoreError,
        Unreachable,
    )
    from flowmesh.sdk.builder import Workflow
    from flowmesh.sdk.client import Client
    from flowmesh.sdk.runs import Output, Run
    from flowmesh.spec.operator import Operator, Params, Port

__all__ = [
    "AccessDenied",
    "Client",
    "FlowMeshError",
    "LimitExceeded",
    "NotFound",
    "Operator",
    "Output",
    "Params",
    "Port",
    "Problem",
    "Run",
    "SpecError",
    "StoreError",
    "Unreachable",
    "Workflow",
    "__version__",
]

_HOMES = {
    "Client": "flowmesh.sdk.client",
    "Run": "flowmesh.sdk.runs",
    "Output": "flowmesh.sdk.runs",
    "Workflow": "flowmesh.sdk.builder",
    "Operator": "flowmesh.spec.operator",
    "Params": "flowmesh.spec.operator",
    "Port": "flowmesh.spec.operator",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'flowmesh' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "flowmesh.base.errors")), name)


def __dir__() -> list[str]:
    return __all__
