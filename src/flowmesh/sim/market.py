"""What machines can be had at what price, how long they take to start, when they are taken away.

Prices are medians over published lists of September to November 2026 (`docs/data.md`): USD an
hour of one GPU, on demand, on a marketplace (Vast.ai), and spot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.ids import InstanceId, OfferId
from flowmesh.core.fleet import Device, Offer
from flowmesh.sim import data
from flowmesh.sim.devices import GPUS, Gpu, Machine, machine
from flowmesh.sim.fitted import BAMBOO_PER_MACHINE_HOUR
from flowmesh.sim.scenario import Machines, Network, Scenario

PROVIDER = "market"
_KINDS = ("on_demand", "marketplace", "spot")

#: On demand, marketplace, spot; 0: not offered. A machine without GPUs: AWS c7i.2xlarge, 2024.
_PRICES: dict[str, tuple[float, float, float]] = {
    "H200": (3.39, 2.619, 1.187),
    "H100": (3.39, 2.133, 1.646),
    "A100-80": (1.79, 0.87, 0.671),
    "A100-40": (2.367, 0.745, 1.229),
    "L40S": (0.85, 0.665, 0.0),
    "A40": (0.69, 0.532, 0.34),
    "A10G": (1.01, 0.0, 0.3),
    "L4": (0.41, 0.0, 0.0),
    "RTX4090": (0.64, 0.4, 0.34),
    "RTX3090": (0.28, 0.2, 0.19),
    "T4": (0.0, 0.0, 0.16),
    "V100": (0.78, 0.2, 0.92),
    "cpu": (0.357, 0.0, 0.13),
}
#: Where a scenario names no kinds: those that a deployment would think of.
USUAL = (
    *("cpu", "L4", "RTX3090", "RTX4090", "A40", "L40S", "A100-80", "H100"),
    *("2xL40S", "4xL40S", "2xA100-80", "4xA100-80", "2xH100", "4xH100"),
)


def prices(scenario: Scenario) -> tuple[Mapping[str, Mapping[str, float]], str]:
    """USD/h of one GPU by name and kind of offer; and whether they are a file's (`traces`)."""
    built_in = {name: dict(zip(_KINDS, told, strict=True)) for name, told in _PRICES.items()}
    named = scenario.files.prices
    path = data.given(named) if named else data.find(data.PRICES)
    if path is None:
        return built_in, "fitted"
    read = data.prices(path)
    if named:
        # A user's own list is all there is, but for machines without GPUs.
        return {"cpu": built_in["cpu"], **read}, "traces"
    return built_in | {name: read[name] for name in read if name in GPUS}, "traces"


@dataclass(slots=True)
class Rented:
    """A machine of the market that we asked for, from launch on; `gone_ms` 0 while it is there."""

    instance: InstanceId
    offer: Offer
    machine: Machine
    launched_ms: int
    gone_ms: int = 0
    failed: bool = False

    def usd(self, now_ms: int) -> float:
        """Paid from launch on, by begun billing spans; a launch that failed costs nothing."""
        if self.failed:
            return 0.0
        seconds = ((self.gone_ms or now_ms) - self.launched_ms) / 1000
        spans = ceil(seconds / self.offer.billing_s - 1e-9)
        return spans * self.offer.billing_s * self.offer.usd_per_hour / 3600


class Market:
    """Offers with what is left of each. Prices and rates hold for the whole simulation."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._prices, self.source = prices(scenario)
        self.machines: dict[OfferId, Machine] = {}
        self._offers: dict[OfferId, Offer] = {}
        self._left: dict[OfferId, int] = {}
        if scenario.market is not None:
            self._fill(scenario)

    def _fill(self, scenario: Scenario) -> None:
        market = scenario.market
        assert market is not None
        for kind in market.kinds or USUAL:
            made = machine_of(scenario, kind)
            for price in market.price:
                usd = self.usd_per_hour(made, price, kind)
                for place in market.places if usd else ():
                    offer = self._offer(made, price, place, usd)
                    self._offers[offer.id], self.machines[offer.id] = offer, made
                    self._left[offer.id] = market.available
        if not self._offers:
            raise SpecError(Problem("the market offers nothing: no price for what it names"))

    def usd_per_hour(self, made: Machine, price: str, kind: str = "") -> float:
        """Of a whole machine; 0 if there is no such offer."""
        spec = self._scenario.devices.get(kind)
        if spec is not None:
            return spec.usd_per_hour
        return made.gpus * self._prices.get(made.gpu.name, {}).get(price, 0.0)

    def _offer(self, made: Machine, price: str, place: str, usd: float) -> Offer:
        scenario = self._scenario
        market = scenario.market
        assert market is not None
        spot = price == "spot"
        return Offer(
            id=OfferId(f"{made.kind}/{price}/{place}"),
            provider=PROVIDER,
            runtimes=runtimes(made),
            usd_per_hour=usd,
            device=described(scenario, made, place),
            devices=made.gpus,
            place=place,
            startup_s=sum(market.startup_s) / 2,
            billing_s=market.billing_s,
            interruptions_per_hour=rate_per_hour(scenario) if spot else 0.0,
            count=market.available,
            spot=spot,
        )

    def listed(self) -> tuple[Offer, ...]:
        """As the provider would answer now."""
        return tuple(
            replace(offer, count=self._left[offer.id])
            for offer in self._offers.values()
            if self._left[offer.id]
        )

    def take(self, offer: OfferId) -> bool:
        """One machine less; False if there is none left."""
        if not self._left.get(offer, 0):
            return False
        self._left[offer] -= 1
        return True

    def give_back(self, offer: OfferId) -> None:
        self._left[offer] += 1

    def fixed_usd_per_hour(self, part: Machines, made: Machine) -> float:
        """Of one machine of a fixed fleet. Raises SpecError if nobody knows its price."""
        if part.usd_per_hour is not None:
            return part.usd_per_hour
        usd = self.usd_per_hour(made, part.price, part.kind)
        if not usd and part.kind not in self._scenario.devices:
            kind = part.price.replace("_", " ")
            raise SpecError(Problem(f"{made.kind} has no {kind} price; give `usd_per_hour`"))
        return usd


def machine_of(scenario: Scenario, kind: str, gpus: int = 1) -> Machine:
    """A machine by its kind: one that the scenario describes itself, or of the table."""
    spec = scenario.devices.get(kind)
    if spec is None:
        return machine(kind, gpus)
    own = Gpu(
        kind,
        spec.memory_bytes,
        spec.bandwidth_bytes_per_s,
        spec.flops_per_s,
        spec.busy_w,
        spec.idle_w,
    )
    return Machine(own, own=True)


def runtimes(made: Machine) -> tuple[str, ...]:
    return ("tables",) if made.is_cpu else ("models", "tables")


def fetch_bytes_per_s(network: Network, place: str) -> float:
    """From the store to a machine in `place`. Raises SpecError for an unknown place."""
    if place not in network.places:
        raise SpecError(Problem(f"there is no place {place!r} in `network.places`"))
    here, there = network.places[place], network.places.get(network.store)
    if there is None:
        raise SpecError(Problem(f"the store is in {network.store!r}, which is no place"))
    return min(here.gbit_per_s, there.gbit_per_s) * 1e9 / 8


def egress_usd(network: Network, place: str, size_bytes: int) -> float:
    """Of bytes that leave the store's place for another."""
    if place == network.store:
        return 0.0
    return size_bytes / 1e9 * network.places[network.store].egress_usd_per_gb


def described(scenario: Scenario, made: Machine, place: str) -> Device:
    return made.device(fetch_bytes_per_s(scenario.network, place))


def rate_per_hour(scenario: Scenario) -> float:
    """Interruptions of one machine that may be taken away."""
    told = scenario.interruptions
    if told.source == "none":
        return 0.0
    if told.source == "poisson":
        return told.per_hour / told.machines
    return BAMBOO_PER_MACHINE_HOUR
