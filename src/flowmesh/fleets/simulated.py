"""A provider in memory, for tests and simulation: prices, start-ups, and all that goes wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from flowmesh.base.errors import LaunchRefused, ProviderError
from flowmesh.base.ids import InstanceId, OfferId
from flowmesh.core.fleet import Offer


@dataclass(slots=True)
class ProviderFaults:
    """Probabilities per call, or per machine; zero means never.

    Attributes:
        down: a call fails and does nothing.
        vanish: an offer is gone when it is to be launched.
        fail_after: a launch, or its end, works and is answered with an error.
        stale: a list is the one that was asked for before.
        empty: a list has nothing in it.
        dud: a machine is listed, and its worker never starts.
        notice: of those that are taken away, share that is told `notice_s` before.
        noise: start-up times are multiplied by up to this, or divided.
    """

    down: float = 0.0
    vanish: float = 0.0
    fail_after: float = 0.0
    stale: float = 0.0
    empty: float = 0.0
    dud: float = 0.0
    notice: float = 0.0
    notice_s: float = 120.0
    noise: float = 1.5


def _ignore(_: InstanceId) -> None:
    """For those who need not be told."""


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of a machine whose worker starts, that will be taken away, that is no more."""

    starts: Callable[[InstanceId, Offer], None] = lambda name, offer: None
    warned: Callable[[InstanceId], None] = _ignore
    stopped: Callable[[InstanceId], None] = _ignore


@dataclass(slots=True)
class _Machine:
    """`at_ms` are when its worker starts, is warned, and is taken away; 0: not (again)."""

    offer: Offer
    launched_ms: int
    starts_ms: int
    warned_ms: int
    taken_ms: int


class SimulatedProvider:
    """Its machines live by `clock_ms`; `advance` makes happen what is due by then.

    Args:
        offers: `count` is how many of each there are in all.

    Attributes:
        usd: spent so far, by billing periods.
        launches: machines that were ever launched.
    """

    def __init__(
        self,
        name: str,
        offers: Sequence[Offer],
        clock_ms: Callable[[], int],
        rng: Random,
        faults: ProviderFaults | None = None,
        told: Told = Told(),
    ) -> None:
        self.faults = faults or ProviderFaults()
        self.usd = 0.0
        self.launches = 0
        self._name = name
        self._offers = {offer.id: replace(offer, provider=name) for offer in offers}
        self._clock_ms = clock_ms
        self._rng = rng
        self._told = told
        self._machines: dict[InstanceId, _Machine] = {}
        self._last_list: tuple[InstanceId, ...] = ()

    @property
    def name(self) -> str:
        return self._name

    @property
    def held(self) -> tuple[InstanceId, ...]:
        """What is really there, whatever the lists say."""
        return tuple(self._machines)

    @property
    def usd_per_hour(self) -> float:
        """Of all that is really there."""
        return sum(machine.offer.usd_per_hour for machine in self._machines.values())

    def price(self, offer: OfferId, usd_per_hour: float) -> None:
        """Prices move; what is rented keeps its own."""
        self._offers[offer] = replace(self._offers[offer], usd_per_hour=usd_per_hour)

    async def offers(self) -> Sequence[Offer]:
        self._begin()
        return [replace(offer, count=self._left(offer)) for offer in self._offers.values()]

    def _left(self, offer: Offer) -> int:
        taken = sum(one.offer.id == offer.id for one in self._machines.values())
        return max(0, offer.count - taken)

    async def launch(self, offer: Offer, *, as_id: InstanceId) -> None:
        self._begin()
        if as_id in self._machines:
            return
        known = self._offers.get(offer.id)
        if known is None or not self._left(known) or self._hit(self.faults.vanish):
            raise LaunchRefused(f"{self.name} has no {offer.id} any more")
        self._machines[as_id] = self._machine(known)
        self.launches += 1
        if self._hit(self.faults.fail_after):
            raise ProviderError(f"{self.name} did not say what became of {as_id}")

    def _machine(self, offer: Offer) -> _Machine:
        now_ms, rng = self._clock_ms(), self._rng
        startup_s = offer.startup_s * self.faults.noise ** rng.uniform(-1, 1)
        starts_ms = 0 if self._hit(self.faults.dud) else max(1, now_ms + int(1000 * startup_s))
        taken_ms = warned_ms = 0
        if offer.interruptions_per_hour > 0:
            hours = rng.expovariate(offer.interruptions_per_hour)
            taken_ms = max(1, now_ms + int(3_600_000 * hours))
            if self._hit(self.faults.notice):
                warned_ms = max(1, taken_ms - int(1000 * self.faults.notice_s))
        return _Machine(offer, now_ms, starts_ms, warned_ms, taken_ms)

    async def terminate(self, instance: InstanceId) -> None:
        self._begin()
        if instance in self._machines:
            self._stop(instance)
        if self._hit(self.faults.fail_after):
            raise ProviderError(f"{self.name} did not say what became of {instance}")

    async def instances(self) -> Sequence[InstanceId]:
        self._begin()
        if self._hit(self.faults.empty):
            return ()
        before, self._last_list = self._last_list, self.held
        return before if self._hit(self.faults.stale) else self._last_list

    def advance(self) -> int | None:
        """Make happen what is due; returns when the next thing is, in ms, if there is one."""
        now_ms = self._clock_ms()
        for name, machine in tuple(self._machines.items()):
            if machine.taken_ms and machine.taken_ms <= now_ms:
                self._stop(name)
                continue
            if machine.starts_ms and machine.starts_ms <= now_ms:
                machine.starts_ms = 0
                self._told.starts(name, machine.offer)
            if machine.warned_ms and machine.warned_ms <= now_ms:
                machine.warned_ms = 0
                self._told.warned(name)
        due = [
            at_ms
            for one in self._machines.values()
            for at_ms in (one.starts_ms, one.warned_ms, one.taken_ms)
            if at_ms
        ]
        return min(due, default=None)

    def _begin(self) -> None:
        self.advance()
        if self._hit(self.faults.down):
            raise ProviderError(f"{self.name} does not answer")

    def _stop(self, name: InstanceId) -> None:
        machine = self._machines.pop(name)
        billing_s = machine.offer.billing_s or 1.0
        used_s = (self._clock_ms() - machine.launched_ms) / 1000
        periods = -(-used_s // billing_s)
        self.usd += periods * billing_s * machine.offer.usd_per_hour / 3600
        self._told.stopped(name)

    def _hit(self, rate: float) -> bool:
        return rate > 0 and self._rng.random() < rate
