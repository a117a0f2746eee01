"""Queue-length autoscaling with pools, as model servers on a cluster have it.

Stands for what KServe with Knative, or Ray Serve, would do: each pool wants as many replicas as
its queue holds multiples of a target, goes down to none, and gives a replica back that was idle
for a timeout. Both are tuned by the evaluation, on seeds of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from flowmesh.base.ids import InstanceId
from flowmesh.core import pool, renting
from flowmesh.core.decisions import Decision, LaunchInstance, TerminateInstance
from flowmesh.core.fleet import Instance, InstanceStatus, Offer, Worker
from flowmesh.core.state import ReadyKey, State
from flowmesh.sim.baselines.known import Known
from flowmesh.sim.policies import run_of

#: How often it looks at its queues.
PACE_MS = 1_000


@dataclass(frozen=True, slots=True)
class Tuning:
    """Of an autoscaler.

    Attributes:
        target_s: seconds of work, in full batches, that a replica may have queued.
        idle_s: that a replica may be idle before it is given back.
        most: instances at one time; usd_per_hour: of all of them; 0 for no cap.
    """

    target_s: float = 300.0
    idle_s: float = 120.0
    most: int = 64
    usd_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Queue:
    """The ready tasks of one batch key in one pool."""

    pool: str
    batch_key: str
    key: ReadyKey
    count: int


Choose = Callable[[State, Queue, Sequence[Offer]], Offer]


def by_model(batch_key: str) -> str:
    """A pool for each batch key: an engine is loaded once and stays."""
    return batch_key


def by_owner(batch_key: str) -> str:
    """A pool for all that share: everybody, or in an isolated world each tenant."""
    return run_of(batch_key)


def queues(state: State, pool_for: Callable[[str], str]) -> list[Queue]:
    found = []
    for key in state.ready.values():
        batch_key = pool.batch_key(state, key)
        found.append(Queue(pool_for(batch_key), batch_key, key, key.count))
    return found


class Pools:
    """The autoscaler. `choose` names the offer for a queue among those that fit it."""

    def __init__(
        self,
        known: Known,
        choose: Choose,
        pool_for: Callable[[str], str],
        tuning: Tuning | None = None,
    ) -> None:
        self._known = known
        self._choose = choose
        self._pool_for = pool_for
        self._tuning = tuning or Tuning()
        self._pool_of: dict[InstanceId, str] = {}
        self._looked_ms = -PACE_MS
        #: Of a batch, where the policy has smaller ones than the engine could take.
        self.rows_most: int | None = None

    def serves(self, worker: Worker, batch_key: str) -> bool:
        """Whether a worker is of the pool of a batch key, or of no pool."""
        return self._pool_of.get(worker.instance) in (None, self._pool_for(batch_key))

    def decide(self, state: State) -> Decision | None:
        if state.now_ms - self._looked_ms < PACE_MS:
            return None
        choice = self._launch(state) or self._give_back(state)
        if choice is None:
            self._looked_ms = state.now_ms
        return choice

    def wakes_ms(self, state: State) -> int | None:
        idle_ms = int(1000 * self._tuning.idle_s)
        ends = [one.quiet_ms + idle_ms for one in state.instances.values() if _is_idle(one)]
        if state.ready:
            ends.append(self._looked_ms + PACE_MS)
        return max(min(ends), self._looked_ms + PACE_MS) if ends else None

    def _launch(self, state: State) -> LaunchInstance | None:
        waiting = queues(state, self._pool_for)
        offers = [self._offer(state, queue) for queue in waiting]
        seconds = [self._seconds(*pair) for pair in zip(waiting, offers, strict=True)]
        for queue, offer, own_s in zip(waiting, offers, seconds, strict=True):
            if offer is None:
                continue
            fitting = [
                one.offer
                for one in state.instances.values()
                if self._counts(one, queue.pool) and self._fits(queue, one.offer)
            ]
            total_s = sum(
                other_s
                for other, other_s in zip(waiting, seconds, strict=True)
                if other.pool == queue.pool and any(self._fits(other, one) for one in fitting)
            )
            wanted = max(1, ceil(max(own_s, total_s) / self._tuning.target_s))
            if len(fitting) < wanted:
                return self._rent(state, queue.pool, offer)
        return None

    def _seconds(self, queue: Queue, offer: Offer | None) -> float:
        """What waits, on one machine of the offer."""
        if offer is None:
            return 0.0
        row_s = self._known.row_s(queue.batch_key, offer.device)
        if self.rows_most:
            batch_s = self._known.batch_s(queue.batch_key, offer.device, self.rows_most)
            row_s = batch_s / self.rows_most
        return queue.count * row_s / max(1, offer.slots)

    def _rent(self, state: State, name: str, offer: Offer) -> LaunchInstance:
        instance = renting.next_id(state)
        self._pool_of[instance] = name
        return LaunchInstance(state.now_ms, instance, offer, reason=f"queue of {name or 'all'}")

    def _counts(self, instance: Instance, name: str) -> bool:
        return instance.takes_work and self._pool_of.get(instance.id) == name

    def _fits(self, queue: Queue, offer: Offer) -> bool:
        key = queue.key
        roomy = not offer.memory_bytes or key.memory_bytes <= offer.memory_bytes
        able = key.runtime in offer.runtimes and key.devices <= offer.devices
        return able and roomy and self._known.fits(queue.batch_key, offer.device)

    def _offer(self, state: State, queue: Queue) -> Offer | None:
        """The one of the rule, among those that fit, are there, and are within the caps."""
        held = list(state.instances.values())
        if len(held) >= self._tuning.most:
            return None
        spent = sum(one.offer.usd_per_hour for one in held)
        cap = self._tuning.usd_per_hour
        offers = [
            offer
            for offer in state.offers.values()
            if self._fits(queue, offer)
            and offer.count > 0
            and not (cap and spent + offer.usd_per_hour > cap)
        ]
        return self._choose(state, queue, offers) if offers else None

    def _give_back(self, state: State) -> TerminateInstance | None:
        for instance in state.instances.values():
            idle_ms = state.now_ms - instance.quiet_ms
            if _is_idle(instance) and idle_ms >= 1000 * self._tuning.idle_s:
                return TerminateInstance(state.now_ms, instance.id, "idle")
        return None


def _is_idle(instance: Instance) -> bool:
    return instance.status is InstanceStatus.RUNNING and instance.quiet_ms > 0
