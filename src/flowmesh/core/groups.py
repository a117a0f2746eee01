"""An index of workers for the policy: those that are alike are one column of its table.

Workers of one group differ only in what they have loaded and hold, and in whether they are
idle. Offers are groups too, without workers: what could be rented tells what work should cost.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from flowmesh.base.ids import LeaseId, OfferId, WorkerId
from flowmesh.core.fleet import Device, Offer, Worker
from flowmesh.core.state import State

#: What all workers of a group have in common, and by what ties between groups break.
GroupName = tuple[str, float, str, tuple[str, ...], int, int, int, float, Device]


@dataclass(slots=True, eq=False)
class Group:
    """Workers that are alike. `warm` and `holds` are of its idle ones, by batch key and digest.

    `ends`: when its leases should end, a heap; entries of leases that have ended are stale.
    """

    name: GroupName
    column: int
    device: Device
    runtimes: tuple[str, ...]
    devices: int
    memory_bytes: int
    usd_per_hour: float
    place: str
    slots: int
    interruptions_per_hour: float
    offered: bool = False
    members: int = 0
    draining: int = 0
    idle: dict[WorkerId, None] = field(default_factory=dict)
    bare: dict[WorkerId, None] = field(default_factory=dict)
    warm: dict[str, dict[WorkerId, None]] = field(default_factory=dict)
    holds: dict[str, dict[WorkerId, None]] = field(default_factory=dict)
    ends: list[tuple[int, LeaseId]] = field(default_factory=list)


class Groups:
    """All groups, kept in step with the workers that `look` is told of."""

    def __init__(self) -> None:
        self.columns: list[Group] = []
        self._by_name: dict[GroupName, Group] = {}
        #: Workers as they were seen, their groups, and the batch keys that they are warm for.
        self._known: dict[WorkerId, tuple[Worker, Group, tuple[str, ...]]] = {}
        self._offers: dict[OfferId, Offer] = {}

    def look(
        self, state: State, workers: Iterable[WorkerId]
    ) -> Iterator[tuple[Group, Worker, tuple[str, ...]]]:
        """Take in workers that have changed. Yields what its idle ones may no longer have, or
        have now: a group, a worker as it was or is, and what that is warm for."""
        for worker_id in workers:
            known = self._known.pop(worker_id, None)
            if known is not None:
                self._leave(*known)
                yield known[1], known[0], known[2]
            worker = state.workers.get(worker_id)
            if worker is None:
                continue
            group = self._group_of(worker, known[1] if known else None)
            warm = worker.warm
            if worker.leases:  # what it is busy with is loaded for its other slots too
                busy = (state.leases[lease].batch_key for lease in worker.leases)
                warm = tuple(dict.fromkeys((*warm, *busy)))
            self._known[worker_id] = worker, group, warm
            self._join(worker, group, warm)
            yield group, worker, warm

    def offers(self, state: State) -> None:
        """Take in what could be rented: of offers that differ in price alone, the cheapest."""
        if self._offers is state.offers:
            return
        self._offers = state.offers
        for offer in state.offers.values():
            self._named(_offer_name(offer), offered=True)

    def _group_of(self, worker: Worker, known: Group | None) -> Group:
        name = group_name(worker)
        if known is not None and known.name == name:
            return known
        return self._named(name)

    def _named(self, name: GroupName, *, offered: bool = False) -> Group:
        group = self._by_name.get(name)
        if group is None:
            _, price, place, runtimes, devices, memory_bytes, slots, interruptions, device = name
            group = Group(
                name,
                len(self.columns),
                device,
                runtimes,
                devices,
                memory_bytes,
                price,
                place,
                slots,
                interruptions,
                offered,
            )
            self._by_name[name] = group
            self.columns.append(group)
        return group

    def _join(self, worker: Worker, group: Group, warm: tuple[str, ...]) -> None:
        group.members += 1
        group.draining += worker.draining
        if not worker.takes_work:
            return
        group.idle[worker.id] = None
        if not warm:
            group.bare[worker.id] = None
        for batch_key in warm:
            group.warm.setdefault(batch_key, {})[worker.id] = None
        for digest in worker.holds:
            group.holds.setdefault(digest, {})[worker.id] = None

    def _leave(self, worker: Worker, group: Group, warm: tuple[str, ...]) -> None:
        group.members -= 1
        group.draining -= worker.draining
        if worker.id not in group.idle:
            return
        del group.idle[worker.id]
        group.bare.pop(worker.id, None)
        for batch_key in warm:
            _discard(group.warm, batch_key, worker.id)
        for digest in worker.holds:
            _discard(group.holds, digest, worker.id)

    def began(self, group: Group, free_ms: int, lease: LeaseId) -> None:
        heappush(group.ends, (free_ms, lease))

    def soonest(self, state: State, group: Group) -> tuple[int, LeaseId] | None:
        """When the first of a group's leases should end, and which that is."""
        ends = group.ends
        while ends and ends[0][1] not in state.leases:
            heappop(ends)
        return ends[0] if ends else None

    def group_of(self, worker: WorkerId) -> Group:
        return self._known[worker][1]


def group_name(worker: Worker) -> GroupName:
    return (
        worker.device.kind,
        worker.usd_per_hour,
        worker.place,
        worker.runtimes,
        worker.devices,
        worker.memory_bytes,
        worker.slots,
        worker.interruptions_per_hour,
        worker.device,
    )


def _offer_name(offer: Offer) -> GroupName:
    return (
        offer.device.kind,
        offer.usd_per_hour,
        offer.place,
        offer.runtimes,
        offer.devices,
        offer.memory_bytes,
        offer.slots,
        offer.interruptions_per_hour,
        offer.device,
    )


def _discard(sets: dict[str, dict[WorkerId, None]], name: str, worker: WorkerId) -> None:
    members = sets.get(name)
    if members is not None:
        members.pop(worker, None)
        if not members:
            del sets[name]


def without(workers: dict[WorkerId, None], others: dict[WorkerId, None]) -> dict[WorkerId, None]:
    """`workers` but for `others`, in order."""
    return {one: None for one in workers if one not in others} if others else workers
