"""Models and adapters by name, over HTTP: so that workflows may say `model: support-bot@prod`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.names import LATEST
from flowmesh.cards import ModelCard
from flowmesh.server.auth import Tenant, TheDriver
from flowmesh.server.cards import card_of
from flowmesh.server.registry import Registry, split
from flowmesh.wire import ModelEntry, ModelView, NameModel

routes = APIRouter(prefix="/v1", tags=["models"])


@routes.get("/models")
async def list_models(tenant: Tenant, driver: TheDriver) -> list[ModelView]:
    """Every tag that the tenant may use: its own names, and those that all share."""
    return await asyncio.to_thread(Registry(driver, tenant).all)


@routes.get("/models/{name}")
async def show_model(name: str, tenant: Tenant, driver: TheDriver, tag: str = LATEST) -> ModelView:
    """What a tag of a name stands for now."""
    return await asyncio.to_thread(Registry(driver, tenant).find, name, tag)


@routes.get("/models/{name}/history")
async def show_history(name: str, tenant: Tenant, driver: TheDriver) -> list[ModelEntry]:
    """Every move of the tags of a name, the newest first; also of those that are gone."""
    return await asyncio.to_thread(Registry(driver, tenant).history, name)


@routes.put("/models/{name}")
async def put_model(name: str, body: NameModel, tenant: Tenant, driver: TheDriver) -> ModelView:
    """Let a tag of a name stand for a tree; what it stood for before stays in its history."""
    split(name)
    if "@" in name:
        raise SpecError(Problem(f"the path says {name!r}; its tag goes into the body, as `tag`"))
    return await Registry(driver, tenant).put(name, body)


@routes.delete("/models/{name}")
async def delete_model(
    name: str, tenant: Tenant, driver: TheDriver, tag: str | None = None, shared: bool = False
) -> list[ModelView]:
    """Forget a tag, or all tags of a name; trees stay while a run or a result needs them."""
    return await Registry(driver, tenant).remove(name, tag, shared=shared)


@routes.get("/model-card")
async def show_card(
    what: Annotated[str, Query(min_length=1, max_length=500)], tenant: Tenant, driver: TheDriver
) -> ModelCard:
    """How weights were made: `what` is `NAME[@TAG]`, `RUN:OUTPUT` or a tree's digest."""
    return await asyncio.to_thread(card_of, driver, tenant, what)
