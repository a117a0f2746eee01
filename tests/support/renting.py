"""Offers and a bench for tests of renting."""

from typing import Any

from flowmesh.base.ids import InstanceId, OfferId
from flowmesh.core.apply import apply
from flowmesh.core.decisions import Decision, LaunchInstance, TerminateInstance
from flowmesh.core.events import InstancesListed, OffersListed, Tick
from flowmesh.core.fleet import Device, Instance, Offer
from flowmesh.core.machine import ControlPlane
from flowmesh.core.scale import FleetLimits, Scaler
from flowmesh.core.state import State
from support.core import Bench

SMALL = Device("small", 121e12, 300e9, 24_000_000_000, 2e9, 1e9, 20, 72)
LARGE = Device("large", 989e12, 3350e9, 80_000_000_000, 2e9, 1e9, 80, 700)


def offer(name: str = "small", **more: Any) -> Offer:
    device = LARGE if name.startswith("large") else SMALL
    price = more.pop("usd_per_hour", 3.0 if device is LARGE else 0.7)
    provider = more.pop("provider", "p")
    known = {"startup_s": 90.0, "count": 100, **more}
    return Offer(OfferId(name), provider, ("models",), price, device, **known)


class OnlyRenting:
    """A policy that rents and never grants a lease."""

    def __init__(self, limits: FleetLimits) -> None:
        self.scaler = Scaler(limits)

    def decide(self, state: State) -> Decision | None:
        return self.scaler.decide(state)

    def wakes_ms(self, state: State) -> int | None:
        return self.scaler.wakes_ms(state)


class RentingBench(Bench):
    """A bench with one provider, `p`, and the machines that it holds."""

    def __init__(self, limits: FleetLimits | None = None, policy: Any = None) -> None:
        chosen = policy or OnlyRenting(limits or FleetLimits())
        super().__init__(ControlPlane(policy=chosen), now_ms=1_000)

    @property
    def state(self) -> State:
        return self.plane.state

    def offers(self, *offers: Offer, provider: str = "p") -> list[Decision]:
        return self.step(OffersListed(self.now_ms, provider, offers))

    def launch(self, what: Offer | None = None) -> InstanceId:
        """As if the policy had chosen it."""
        name = InstanceId(f"i{self.state.next_instance}")
        choice = LaunchInstance(self.now_ms, name, what or offer())
        apply(self.state, choice)
        self.journal.append(choice)
        return name

    def give_back(self, name: str) -> None:
        choice = TerminateInstance(self.now_ms, InstanceId(name), "enough")
        apply(self.state, choice)
        self.journal.append(choice)

    def listed(
        self, *names: str, failed: tuple[tuple[str, str], ...] = (), provider: str = "p"
    ) -> list[Decision]:
        ids = tuple(InstanceId(name) for name in names)
        wrong = tuple((InstanceId(name), why) for name, why in failed)
        return self.step(InstancesListed(self.now_ms, provider, ids, wrong))

    def wait(self, seconds: float) -> list[Decision]:
        self.now_ms += int(1000 * seconds)
        return self.step(Tick(self.now_ms))

    def one(self, name: str) -> Instance:
        return self.state.instances[InstanceId(name)]
