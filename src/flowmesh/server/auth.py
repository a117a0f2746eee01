"""Who asks: the access token, the tenant's name, the worker's id."""

import hmac
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from flowmesh.base.errors import AccessDenied, Problem, SpecError
from flowmesh.server import problems
from flowmesh.server.driver import Driver
from flowmesh.wire import CreateRun

#: Answers without a token: a load balancer has none.
OPEN_PATHS = ("/healthz",)


class TokenGate:
    """Refuses whoever does not present the server's token, if it has one: on every path."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._token is None or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._token.encode()):
            await self._app(scope, receive, send)
        else:
            refused = AccessDenied("this server wants its access token: --token or FLOWMESH_TOKEN")
            await problems.answer(problems.body_of(refused))(scope, receive, send)


def driver_of(request: Request) -> Driver:
    driver: Driver = request.app.state.driver
    return driver


def tenant_of(x_flowmesh_tenant: Annotated[str, Header()] = "default") -> str:
    name = x_flowmesh_tenant
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or len(name) > 63:
        raise SpecError(Problem(f"{name[:80]!r} is no name for a tenant"))
    return name


def named_tenant(x_flowmesh_tenant: Annotated[str | None, Header()] = None) -> str | None:
    return None if x_flowmesh_tenant is None else tenant_of(x_flowmesh_tenant)


def same_tenant(body: CreateRun, named: str | None) -> None:
    """Raises SpecError if the header, which a gateway may have checked, names another tenant."""
    if named is not None and named != body.tenant:
        raise SpecError(
            Problem(f"the run is for tenant {body.tenant!r}, the request is of tenant {named!r}")
        )


TheDriver = Annotated[Driver, Depends(driver_of)]
Tenant = Annotated[str, Depends(tenant_of)]
#: None where no header names a tenant.
NamedTenant = Annotated[str | None, Depends(named_tenant)]
#: Empty for a client.
WorkerName = Annotated[str, Header(alias="x-flowmesh-worker")]
