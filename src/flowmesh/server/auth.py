"""Who asks: the access token, the tenant's name, the worker's id."""

import hmac
from typing import Annotated

from fastapi import Depends, Header, Request

from flowmesh.base.errors import AccessDenied, Problem, SpecError
from flowmesh.server.driver import Driver

#: Answers without a token: a load balancer has none.
OPEN_PATHS = ("/healthz",)


def check_token(request: Request) -> None:
    """Refuse whoever does not present the server's token, if it has one."""
    token: str | None = request.app.state.token
    if token is None or request.url.path in OPEN_PATHS:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise AccessDenied("this server wants its access token: --token or FLOWMESH_TOKEN")


def driver_of(request: Request) -> Driver:
    driver: Driver = request.app.state.driver
    return driver


def tenant_of(x_flowmesh_tenant: Annotated[str, Header()] = "default") -> str:
    name = x_flowmesh_tenant
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or len(name) > 63:
        raise SpecError(Problem(f"{name[:80]!r} is no name for a tenant"))
    return name


TheDriver = Annotated[Driver, Depends(driver_of)]
Tenant = Annotated[str, Depends(tenant_of)]
#: Empty for a client.
WorkerName = Annotated[str, Header(alias="x-flowmesh-worker")]
