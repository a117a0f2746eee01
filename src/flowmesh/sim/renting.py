"""Rented machines of a made-up deployment: a provider that fails in every way there is."""

from collections.abc import Coroutine
from dataclasses import fields
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from flowmesh.base.errors import LaunchRefused, ProviderError
from flowmesh.base.ids import InstanceId, OfferId
from flowmesh.core import renting
from flowmesh.core.decisions import Decision, LaunchInstance
from flowmesh.core.events import InstancesListed, OffersListed
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.scale import FleetLimits
from flowmesh.fleets.simulated import ProviderFaults, SimulatedProvider, Told
from flowmesh.sim.workers import SimWorker

if TYPE_CHECKING:
    from flowmesh.sim.world import World

Answer = TypeVar("Answer")
NAME = "made-up"
LIST_MS = 10_000
#: Numbers of rented workers begin here.
FIRST = 100


def swarm(rng: Random) -> ProviderFaults:
    """Turn each kind on or off by a coin, then draw how much of it there is."""
    faults = ProviderFaults(notice=rng.random())
    for fault in fields(faults):
        if fault.name not in ("notice", "notice_s", "noise") and rng.random() < 0.5:
            setattr(faults, fault.name, rng.random() * 0.3)
    return faults


def offers(rng: Random) -> list[Offer]:
    """Of two kinds; some are taken away now and then."""
    return [
        Offer(
            OfferId(f"{kind}-{number}"),
            NAME,
            ("models", "tables"),
            price * rng.choice([0.5, 1.0, 2.0]),
            Device(kind),
            slots=rng.choice([1, 1, 2]),
            startup_s=rng.choice([5.0, 60.0, 200.0]),
            billing_s=rng.choice([1.0, 60.0, 3600.0]),
            interruptions_per_hour=rng.choice([0.0, 0.0, 3.0]),
            count=rng.randint(1, 5),
        )
        for number in range(rng.randint(1, 4))
        for kind, price in (("slow", 0.3), ("fast", 1.5))
    ]


class Renting:
    """The driver's side of renting, as `server/fleet.py` is, and the machines themselves.

    Attributes:
        asked: instances that the plane has decided to launch.
    """

    def __init__(self, world: "World", rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.limits = FleetLimits(
            max_instances=rng.randint(1, 6), usd_per_hour=rng.choice([0.0, 1.0, 5.0])
        )
        self.asked: dict[InstanceId, None] = {}
        self._workers: dict[InstanceId, SimWorker] = {}
        self._refused: dict[InstanceId, str] = {}
        told = Told(self._starts, self._warned, self._stopped)
        self.provider = SimulatedProvider(
            NAME, offers(rng), lambda: world.now_ms, rng, swarm(rng), told
        )
        world.after(rng.randrange(LIST_MS), self._look)

    def heal(self) -> None:
        """The provider does what it should from now on; machines are still taken away."""
        self.provider.faults = ProviderFaults()

    def check(self, decisions: list[Decision]) -> None:
        """The limits hold, whatever is true or told of the machines."""
        state, limits = self.world.plane.state, self.limits
        known = [one for one in state.instances.values() if one.offer.id]
        for decision in decisions:
            if isinstance(decision, LaunchInstance):
                self.asked[decision.instance] = None
                assert len(known) <= limits.max_instances, decision
        usd_per_hour = sum(one.offer.usd_per_hour for one in known)
        assert not limits.usd_per_hour or usd_per_hour <= limits.usd_per_hour + 1e-9, known
        assert all(one in self.asked for one in self.provider.held), self.provider.held

    def _look(self) -> None:
        self.world.after(LIST_MS, self._look)
        try:
            found = _now(self.provider.offers())
            self.world.step(lambda now_ms: OffersListed(now_ms, NAME, tuple(found)))
            listed = tuple(_now(self.provider.instances()))
        except ProviderError:
            return
        # The plane may decide, and machines may go, before it hears of the list.
        self.world.after(self.rng.choice([1, 1, 3_000]), lambda: self._tell(listed))

    def _tell(self, listed: tuple[InstanceId, ...]) -> None:
        refused = tuple(self._refused.items())
        if not self.world.step(lambda now_ms: InstancesListed(now_ms, NAME, listed, refused)):
            return
        self._refused.clear()
        launches, ends = renting.outstanding(self.world.plane.state, NAME)
        for instance in launches:
            try:
                _now(self.provider.launch(instance.offer, as_id=instance.id))
            except LaunchRefused as error:
                self._refused[instance.id] = str(error)
            except ProviderError:
                continue
        for instance in ends:
            try:
                _now(self.provider.terminate(instance.id))
            except ProviderError:
                continue

    def _starts(self, name: InstanceId, offer: Offer) -> None:
        worker = SimWorker(self.world, FIRST + len(self._workers), instance=name)
        worker.units_per_s = 8.0 if offer.device.kind == "fast" else 1.0
        worker.runtimes, worker.slots = offer.runtimes, offer.slots
        self._workers[name] = worker
        self.world.workers.append(worker)

    def _warned(self, name: InstanceId) -> None:
        if name in self._workers:
            self._workers[name].draining = True

    def _stopped(self, name: InstanceId) -> None:
        if name in self._workers:
            self._workers[name].lives = False


def _now(call: Coroutine[Any, Any, Answer]) -> Answer:
    """What a call that never waits answers."""
    try:
        call.send(None)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    raise AssertionError("it waits")
