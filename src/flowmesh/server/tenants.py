"""Tenants over HTTP: their weights and quotas, and what they use of them."""

import asyncio

from fastapi import APIRouter

from flowmesh.base.ids import TenantId
from flowmesh.core.money import day_usd
from flowmesh.core.records import Tenant
from flowmesh.server.auth import TheDriver
from flowmesh.wire import TenantView

routes = APIRouter(prefix="/v1", tags=["server"])


@routes.get("/tenants")
async def tenants(driver: TheDriver) -> list[TenantView]:
    """Every tenant that has a setting or had a run: its weight, its quotas, what it uses."""
    now_ms = driver.now_ms()
    stored = await asyncio.to_thread(driver.access.stored_by_tenant)
    known = driver.plane.state.tenants
    names = sorted({*known, *stored})
    return [_view(known.get(TenantId(name), Tenant(TenantId(name))), stored.get(name, 0), now_ms)
            for name in names]  # fmt: skip


def _view(tenant: Tenant, stored_bytes: int, now_ms: int) -> TenantView:
    return TenantView(
        tenant=tenant.id,
        weight=tenant.weight,
        open_runs=tenant.open_runs,
        leases=tenant.leases,
        leases_limit=tenant.quota.leases,
        day_usd=day_usd(tenant, now_ms),
        held_usd=tenant.held_usd,
        usd_per_day_limit=tenant.quota.usd_per_day,
        stored_bytes=stored_bytes,
        stored_bytes_limit=tenant.quota.stored_bytes,
    )
