"""Models by name: a small registry, so that workflows may say `model: smollm2`."""

import asyncio

from fastapi import APIRouter

from flowmesh.base.errors import BlobMissing, NotFound, Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.server.auth import Tenant, TheDriver
from flowmesh.server.driver import Driver
from flowmesh.server.submission import artifact
from flowmesh.wire import ArtifactView, ModelView

routes = APIRouter(prefix="/v1/models", tags=["models"])


@routes.get("")
async def list_models(driver: TheDriver) -> list[ModelView]:
    """Every model that has a name here."""
    rows = driver.database.read("SELECT name, artifact, source, added_ms FROM models ORDER BY name")
    return [_view(row) for row in rows]


@routes.get("/{name}")
async def show_model(name: str, driver: TheDriver) -> ModelView:
    """A model by its name."""
    return find_model(driver, name)


@routes.put("/{name}")
async def put_model(name: str, body: ModelView, tenant: Tenant, driver: TheDriver) -> ModelView:
    """Name a tree in the store; the name moves if it was in use."""
    if body.name != name:
        raise SpecError(Problem(f"the model is called {body.name!r}, the path says {name!r}"))
    body = body.model_copy(update={"added_ms": driver.now_ms()})
    address = artifact(body.artifact).address
    there = address in await asyncio.to_thread(driver.store.has, [address])
    if not there or not await asyncio.to_thread(driver.access.may_use, tenant, address):
        raise BlobMissing(address, f"the store of tenant {tenant}")
    row = (body.name, body.artifact.model_dump_json(), body.source, body.added_ms)
    write = driver.database.write([("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?)", row)])
    await asyncio.wrap_future(write)
    return body


@routes.delete("/{name}")
async def delete_model(name: str, driver: TheDriver) -> ModelView:
    """Forget a name; the tree stays while a run or a result needs it."""
    view = find_model(driver, name)
    write = driver.database.write([("DELETE FROM models WHERE name = ?", (name,))])
    await asyncio.wrap_future(write)
    return view


def find_model(driver: Driver, name: str) -> ModelView:
    """Raises NotFound, with the nearest name there is."""
    rows = driver.database.read(
        "SELECT name, artifact, source, added_ms FROM models WHERE name = ?", (name,)
    )
    if not rows:
        known = [known for (known,) in driver.database.read("SELECT name FROM models")]
        raise NotFound(f"no model is called {name!r}{nearest(name, known)}")
    return _view(rows[0])


def _view(row: tuple[str, str, str, int]) -> ModelView:
    name, made, source, added_ms = row
    tree = ArtifactView.model_validate_json(made)
    return ModelView(name=name, artifact=tree, source=source, added_ms=added_ms)
