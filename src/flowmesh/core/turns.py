"""Whose turn it is: weighted fair queueing over tenants, across all batch keys.

Virtual time is reference dollars received, divided by weight (`Tenant.virtual_usd`; charged by
the law as leases are granted). A tenant is *owed* once it would still not be ahead of the mean
after its next batch; then that batch goes before what pays better. So no tenant with work in
the queue is behind its share by more than a batch, and one that asks for little is served at
once, beside whatever backlog of others. Otherwise the best rate goes first.

A tenant whose queue was empty has saved nothing up: it joins level with the least served, and
just before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from flowmesh.base.ids import TenantId
from flowmesh.core.state import State

#: A tenant that asks for no more than this share of a usual batch is owed it as it comes.
SMALL = 0.1
#: A tenant is owed once it is behind the mean by this share of its next batch.
BEHIND = 0.25
#: By this share of its virtual time a tenant that joins is before the least served.
JUST = 1e-9
#: What the mean batch remembers of the past after one more.
MEMORY = 0.98


class Turns:
    """Virtual times of the tenants that have ready tasks which some worker could run."""

    def __init__(self) -> None:
        self._rows: dict[TenantId, dict[int, float]] = {}
        #: By tenant, its virtual time here less that of the law: what it was lifted by to join.
        self._lifts: dict[TenantId, float] = {}
        #: Virtual times of tenants as they left.
        self._left: dict[TenantId, float] = {}
        self._batch_usd = 0.0

    def virtual_usd(self, state: State, tenant: TenantId) -> float:
        return state.tenants[tenant].virtual_usd + self._lifts.get(tenant, 0.0)

    def update(
        self,
        state: State,
        index: int,
        next_usd: Mapping[TenantId, float],
        old: Iterable[TenantId],
    ) -> None:
        """The tenants of a row, and the reference cost of the next batch of each."""
        for tenant in old:
            if tenant not in next_usd and tenant in self._rows:
                self._rows[tenant].pop(index, None)
                if not self._rows[tenant]:
                    self._left[tenant] = self.virtual_usd(state, tenant)
                    del self._rows[tenant]
        for tenant, usd in next_usd.items():
            if tenant not in self._rows:
                self._join(state, tenant)
                self._rows[tenant] = {}
            self._rows[tenant][index] = usd

    def _join(self, state: State, tenant: TenantId) -> None:
        least = min((self.virtual_usd(state, other) for other in self._rows), default=-inf)
        known_usd = state.tenants[tenant].virtual_usd
        least -= JUST * abs(least)
        self._lifts[tenant] = max(self._left.pop(tenant, known_usd), least) - known_usd

    def granted(self, usd: float) -> None:
        """A batch of so much reference cost was granted."""
        kept = MEMORY if self._batch_usd else 0.0
        self._batch_usd = kept * self._batch_usd + (1 - kept) * usd

    def mean_usd(self, state: State) -> float:
        """Virtual time of the tenants that wait, weighted."""
        weights, total = 0.0, 0.0
        for tenant in self._rows:
            weight = state.tenants[tenant].weight
            weights += weight
            total += weight * self.virtual_usd(state, tenant)
        return total / weights if weights else 0.0

    def owed(self, state: State) -> Iterator[TenantId]:
        """Tenants that must be served next, the one that is most behind first."""
        if len(self._rows) < 2:
            return
        mean_usd = self.mean_usd(state)
        finishes: list[tuple[float, TenantId]] = []
        for tenant, rows in self._rows.items():
            weight, usd = state.tenants[tenant].weight, min(rows.values())
            virtual_usd = self.virtual_usd(state, tenant)
            grace_usd = SMALL * self._batch_usd if usd <= SMALL * self._batch_usd else 0.0
            if virtual_usd + (BEHIND * usd - grace_usd) / weight <= mean_usd:
                finishes.append((virtual_usd + usd / weight, tenant))
        yield from (tenant for _, tenant in sorted(finishes))

    def rows(self, tenant: TenantId) -> Mapping[int, float]:
        return self._rows.get(tenant, {})

    def behind(self, state: State, tenant: TenantId, mean_usd: float) -> float:
        """Usual batches that a tenant is behind; not below 0."""
        if not self._batch_usd or tenant not in self._rows:
            return 0.0
        behind_usd = mean_usd - self.virtual_usd(state, tenant)
        return max(0.0, behind_usd * state.tenants[tenant].weight / self._batch_usd)
