"""What tenants may still put into the store: their quotas of stored bytes, kept at the door."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowmesh.base.errors import QuotaExceeded
from flowmesh.base.ids import TenantId
from flowmesh.core.state import State
from flowmesh.server.access import Access


class Uploads:
    """Args: state gives the core's, whose tenants have the quotas."""

    def __init__(self, access: Access, state: Callable[[], State]) -> None:
        self._access = access
        self._state = state
        #: Bytes on their way in, by tenant.
        self._coming: dict[str, int] = {}

    async def room(self, tenant: str, hex_hash: str, told_bytes: int) -> int | None:
        """The most bytes that a blob may have which comes in now; None for no limit.

        What a tenant has put before needs no room. Raises QuotaExceeded if there is none for
        the `told_bytes` of its header.
        """
        known = self._state().tenants.get(TenantId(tenant))
        limit = known.quota.stored_bytes if known else 0
        if not limit or await asyncio.to_thread(self._access.has_put, tenant, hex_hash):
            return None
        stored = await asyncio.to_thread(self._access.stored_bytes, tenant)
        left = limit - stored - self._coming.get(tenant, 0)
        if told_bytes > left or left <= 0:
            raise exceeded(tenant, limit - left, limit, told_bytes)
        return left

    @contextmanager
    def coming(self, tenant: str, told_bytes: int) -> Iterator[None]:
        """While a blob comes in, its bytes count as stored."""
        self._coming[tenant] = self._coming.get(tenant, 0) + told_bytes
        try:
            yield
        finally:
            self._coming[tenant] -= told_bytes
            if not self._coming[tenant]:
                del self._coming[tenant]


def exceeded(tenant: str, used: int, limit: int, size_bytes: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"tenant {tenant} stores {used:,} of its {limit:,} bytes, so {size_bytes:,} more are "
        "refused; let `flowmesh store gc` remove what nothing needs, send less, or ask for a "
        "larger stored_bytes in the server's --tenants file"
    )
