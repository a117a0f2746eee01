"""`strong`: what a good platform team would build from the best parts there are.

Ideal de-duplication as ours, full batches over runs and tenants, and machines on which the work
of a model is cheapest by the true profiles: not the lowest price an hour, but the lowest price of
the work, start and load included. Machines grow in number with their queues and shrink to none.
Either each model has a pool of its own, as model servers have, or all share one, and a free
machine takes what costs least there (`own_pools`); the evaluation tries both. What it has not:
one function that weighs batches, warm engines and machines of several models against each
other, holding back, the critical path.

`isolated-tenant` is the same for each tenant by itself: its runs share its own machines,
engines and results, and nothing of others'.
"""

from collections.abc import Sequence

from flowmesh.core.fleet import Offer, Worker
from flowmesh.core.state import ReadyKey, State
from flowmesh.sim.baselines.base import Baseline
from flowmesh.sim.baselines.known import Known
from flowmesh.sim.baselines.pools import Pools, Queue, Tuning, by_model, by_owner
from flowmesh.sim.policies import OF_RUN


class Strong(Baseline):
    """Batches on the worker where they cost least. Without a `tuning` it rents nothing."""

    def __init__(
        self, known: Known, tuning: Tuning | None = None, *, own_pools: bool = False
    ) -> None:
        pool_for = by_model if own_pools else by_owner
        self._pools = Pools(known, self._cheapest_work, pool_for, tuning) if tuning else None
        super().__init__(known, self._pools)

    def may(self, state: State, worker: Worker, batch_key: str, key: ReadyKey) -> bool:
        serves = self._pools is None or self._pools.serves(worker, batch_key)
        return serves and super().may(state, worker, batch_key, key)

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        def usd(worker: Worker) -> tuple[float, str]:
            rows = min(key.count, self.known.rows(batch_key, worker.device))
            seconds = self.known.batch_s(batch_key, worker.device, rows)
            if batch_key.partition(OF_RUN)[0] not in worker.warm:
                seconds += self.known.load_s(batch_key, worker.device)
            return worker.usd_per_hour * seconds / rows, worker.id

        return min(workers, key=usd)

    def _cheapest_work(self, state: State, queue: Queue, offers: Sequence[Offer]) -> Offer:
        """For all that waits in the queue, on one machine, from its launch."""

        def usd(offer: Offer) -> tuple[float, str]:
            seconds = offer.startup_s + self.known.load_s(queue.batch_key, offer.device)
            seconds += queue.count * self.known.row_s(queue.batch_key, offer.device)
            return offer.usd_per_hour * seconds, offer.id

        return min(offers, key=usd)
