"""All baselines by name, with the world that each of them works in."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from flowmesh.base.errors import Problem, SpecError
from flowmesh.core.fleet import Offer
from flowmesh.core.plan import Policy
from flowmesh.core.state import State
from flowmesh.sim.baselines.base import Baseline, Batches
from flowmesh.sim.baselines.choices import (
    BestFit,
    BinPack,
    Cheapest,
    Fastest,
    FirstFit,
    Locality,
    RoundRobin,
)
from flowmesh.sim.baselines.isolated import Isolated
from flowmesh.sim.baselines.known import Known
from flowmesh.sim.baselines.matrix import ThroughputMatrix
from flowmesh.sim.baselines.pools import Pools, Queue, Tuning, by_owner
from flowmesh.sim.baselines.strong import Strong
from flowmesh.sim.baselines.truth import TrueMeans
from flowmesh.sim.policies import Entry, Setting, register

Rank = Callable[[Known, Queue, Offer], float]
Make = Callable[..., Baseline]
Placing = TypeVar("Placing", bound=Batches)

#: Of autoscalers, where an evaluation gives no others.
TARGET_S, IDLE_S = 900.0, 180.0
#: `Batches.fill` where cost alone counts: twice the engine's rows leave it half empty for long.
LONG_FILL = 8.0


def _usd_of_work(known: Known, queue: Queue, offer: Offer) -> float:
    return offer.usd_per_hour * known.row_s(queue.batch_key, offer.device)


def _size(known: Known, queue: Queue, offer: Offer) -> float:
    return float(offer.device.memory_bytes)


def _price(known: Known, queue: Queue, offer: Offer) -> float:
    return offer.usd_per_hour


def _time(known: Known, queue: Queue, offer: Offer) -> float:
    return known.row_s(queue.batch_key, offer.device)


def _scored(known: Known, queue: Queue, offer: Offer) -> float:
    """As `BestFit` scores workers, with the figures of the largest GPU machines as the norm."""
    size = (offer.device.memory_bytes / 320e9 + offer.devices / 4) / 2
    return -(size - offer.usd_per_hour / 14) / 2


#: By policy: how it places, and which of the offers that fit it rents: the least by this rank.
SHARED: Mapping[str, tuple[Make, Rank, str]] = {
    "fifo": (FirstFit, _price, "steps first come first served, on the first worker that fits"),
    "bin-pack": (BinPack, _size, "the worker with the least room left"),
    "fastest": (Fastest, _time, "the worker that is done first"),
    "cheapest": (Cheapest, _price, "the worker with the lowest price an hour"),
    "locality": (Locality, _usd_of_work, "the worker that has the engine or the files"),
    "round-robin": (RoundRobin, _usd_of_work, "one worker after the other"),
    "best-fit": (BestFit, _scored, "the public prototype's score, batches of at most 4"),
    "best-fit-batched": (
        partial(BestFit, rows_most=None), _scored, "the same score, with full batches",
    ),
    "throughput-matrix": (
        ThroughputMatrix, _usd_of_work, "shares of worker types by a linear program, as Gavel",
    ),
}  # fmt: skip


def _filled(policy: Placing, setting: Setting) -> Placing:
    """Leases as long as ours are, where ours may be long."""
    if setting.scenario.objective == "cost":
        policy.fill = LONG_FILL
    return policy


def tuning(setting: Setting, target_s: float = TARGET_S, idle_s: float = IDLE_S) -> Tuning:
    """With the caps of the scenario."""
    market = setting.scenario.market
    if market is None:
        return Tuning(target_s, idle_s)
    return Tuning(target_s, idle_s, market.limits.max_instances, market.limits.usd_per_hour)


def _shared(
    make: Make,
    rank: Rank,
    setting: Setting,
    *,
    target_s: float = TARGET_S,
    idle_s: float = IDLE_S,
    **settings: Any,
) -> Policy:
    known = TrueMeans(setting)
    if setting.scenario.market is None:
        return _filled(make(known, None, **settings), setting)

    def choose(state: State, queue: Queue, offers: Sequence[Offer]) -> Offer:
        return min(offers, key=lambda offer: (rank(known, queue, offer), offer.id))

    pools = Pools(known, choose, by_owner, tuning(setting, target_s, idle_s))
    policy = make(known, pools, **settings)
    pools.rows_most = policy.rows_most
    return _filled(policy, setting)


def strong(
    setting: Setting,
    *,
    target_s: float = TARGET_S,
    idle_s: float = IDLE_S,
    own_pools: bool = False,
) -> Baseline:
    elastic = setting.scenario.market is not None
    given = tuning(setting, target_s, idle_s) if elastic else None
    return _filled(Strong(TrueMeans(setting), given, own_pools=own_pools), setting)


def _isolated(setting: Setting) -> Isolated:
    if setting.scenario.market is None:
        raise SpecError(Problem("isolated runs rent their machines: give the scenario a `market`"))
    return _filled(Isolated(TrueMeans(setting)), setting)


def register_all() -> None:
    """Make them known to `sim.policies`."""
    for name, (make, rank, about) in SHARED.items():
        register(Entry(name, partial(_shared, make, rank), about))
    register(
        Entry(
            "best-fit-as-is",
            partial(_shared, BestFit, _scored),
            "best-fit without de-duplication, as the prototype has none",
            dedup=False,
        )
    )
    register(Entry("strong", strong, "ideal de-duplication, the cheapest machines for each model"))
    register(
        Entry(
            "isolated",
            _isolated,
            "machines of its own for every run",
            dedup=False,
            isolated=True,
        )
    )
    register(
        Entry(
            "isolated-dedup",
            _isolated,
            "machines of its own for every run, results shared by all",
            isolated=True,
        )
    )
    register(
        Entry(
            "isolated-tenant",
            strong,
            "machines and results of its own for every tenant",
            dedup=False,
            isolated=True,
            scope="tenant",
        )
    )
