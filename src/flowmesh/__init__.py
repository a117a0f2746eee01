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
        QuotaExceeded,
        SpecError,
        StoreError,
        Unreachable,
    )
    from flowmesh.sdk.builder import Workflow
    from flowmesh.sdk.client import Client
    from flowmesh.sdk.limits import Limits
    from flowmesh.sdk.runs import Output, Run
    from flowmesh.spec.operator import Amounts, Operator, Params, Port

__all__ = [
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

_HOMES = {
    "Client": "flowmesh.sdk.client",
    "Limits": "flowmesh.sdk.limits",
    "Run": "flowmesh.sdk.runs",
    "Output": "flowmesh.sdk.runs",
    "Workflow": "flowmesh.sdk.builder",
    "Amounts": "flowmesh.spec.operator",
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
