"""Which simulations there are: each study names its cells, and the page looks them up again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from flowmesh.core.scale import FleetLimits
from flowmesh.sim.scenario import load_scenario

from .cells import Cell, Setting
from .tuning import SEED

OURS = "flowmesh"
#: On machines that are rented as they are needed.
ELASTIC = (
    OURS, "strong", "isolated-tenant", "isolated", "throughput-matrix", "best-fit",
    "best-fit-batched", "fifo", "cheapest", "fastest", "bin-pack", "locality", "round-robin",
)  # fmt: skip
#: On a fleet that is there; who runs alone has no part in it.
FIXED = (
    OURS, "strong", "throughput-matrix", "best-fit", "best-fit-batched", "best-fit-as-is",
    "fifo", "cheapest", "fastest", "bin-pack", "locality", "round-robin",
)  # fmt: skip
#: What each part of the difference to `isolated` is worth; each line has all before it.
STEPS: tuple[tuple[str, str], ...] = (
    ("isolated", "nothing shared"),
    ("isolated-dedup", "+ de-duplication: equal work of all runs is done once"),
    ("round-robin", "+ batching: machines, engines and batches are shared by all runs"),
    ("strong", "+ placement: a batch goes where it costs least"),
    (OURS, "+ market: one function for batches, machines and renting"),
)
ABLATIONS: Mapping[str, tuple[Setting, Setting]] = {
    "dedup": ((), (("dedup", False),)),
    "batching": ((("batching", False),), ()),
    "batching across runs": ((), (("isolated", True),)),
    "prefix": ((("prefixes", False),), ()),
    "locality": ((("locality", False),), ()),
    "cost": ((("weights.cost", 0.0),), ()),
    "energy": ((("weights.energy", 0.0),), ()),
    "learning": ((("learning", False),), ()),
    "path": ((("path", False),), ()),
    "hold": ((("hold", False),), ()),
    "fairness": ((("fairness", False),), ()),
}
#: Of ablations that take too long on the whole scenario; both they and what they are held against.
ABLATED_SMALLER: Mapping[str, Setting] = {"batching": (("rows", 0.002), ("runs", 40))}
MISJUDGED: Mapping[str, Setting] = {
    "x2, learning": (("misjudge", 2.0),),
    "x2, no learning": (("misjudge", 2.0), ("learning", False)),
    "/2, learning": (("misjudge", 0.5),),
    "/2, no learning": (("misjudge", 0.5), ("learning", False)),
}
#: Of our market, beside the scenario's own: how much the value of waiting work counts.
HASTES = (0.01, 0.05, 0.25, 1.0)


def shipped_haste() -> float:
    """That of the headline's scenario."""
    market = load_scenario("headline").market
    told = market.limits.haste if market else None
    return FleetLimits().haste if told is None else told


@dataclass(frozen=True, slots=True)
class Sweep:
    """One value of the scenario, varied.

    `points`: what is written on the axis, and the changes that it means.
    """

    name: str
    axis: str
    scenario: str
    policies: tuple[str, ...]
    points: tuple[tuple[float, Setting], ...]


SPOT: Setting = (("market.price", ("on_demand", "marketplace", "spot")),)
THREE = (OURS, "strong", "isolated")
#: Where `isolated`, which takes as long to simulate as both of these, tells nothing more.
PAIR = (OURS, "strong")


def _interrupted(per_hour: float) -> Setting:
    source = "poisson" if per_hour else "none"
    rate = (("interruptions.source", source), ("interruptions.per_hour", per_hour))
    return (*SPOT, *rate, ("interruptions.machines", 32))


def _bursty(cv: float) -> Setting:
    return (("arrivals.source", "fitted"), ("arrivals.cv", cv))


def _kinds(count: int) -> Setting:
    """The first so many of a list in which work of all kinds fits from the first one on."""
    kinds = ("4xA100-80", "cpu", "L40S", "RTX3090", "H100", "A100-80", "4xL40S", "L4", "A40")
    return (("market.kinds", kinds[:count]),)


def _fleet(counts: tuple[int, ...]) -> Setting:
    kinds = ("A100-80", "4xA100-80", "L40S", "A40", "L4", "cpu")
    machines = [{"kind": kind, "count": n} for kind, n in zip(kinds, counts, strict=True)]
    return (("fleet", json.dumps(machines)),)


#: Machines of the headline's market that are there the whole time, and do its work not much later.
STATIC = json.dumps(
    [
        {"kind": kind, "count": count, "price": price}
        for kind, count, price in (
            ("H100", 2, "marketplace"),
            ("A100-80", 2, "marketplace"),
            ("4xA100-80", 1, "marketplace"),
            ("4xL40S", 1, "marketplace"),
            ("L40S", 2, "marketplace"),
            ("A40", 2, "marketplace"),
            ("L4", 2, "on_demand"),
            ("cpu", 2, "on_demand"),
        )
    ]
)

SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        "overlap", "share of runs from the common pool (%)", "headline", THREE,
        tuple((float(p), (("overlap", p / 100),)) for p in (0, 30, 60, 90)),
    ),
    Sweep(
        "load", "runs, as a multiple of the headline's", "headline", THREE,
        tuple((x, (("load", x),)) for x in (0.25, 0.5, 1.0, 2.0)),
    ),
    Sweep(
        "heterogeneity", "kinds of machines on offer", "headline", PAIR,
        tuple((float(n), _kinds(n)) for n in (2, 4, 6, 9)),
    ),
    Sweep(
        "burstiness", "coefficient of variation of the gaps between runs", "headline", PAIR,
        tuple((x, _bursty(x)) for x in (1.0, 2.0, 4.0, 8.0)),
    ),
    Sweep(
        "interruptions", "interruptions an hour on 32 spot machines", "headline", PAIR,
        tuple((x, _interrupted(x)) for x in (0.0, 7.0, 15.0, 30.0)),
    ),
    Sweep(
        "fleet", "machines of a fixed fleet", "fixed-fleet",
        (OURS, "strong", "throughput-matrix", "fifo"),
        tuple(
            (float(sum(counts)), _fleet(counts))
            for counts in ((1, 1, 1, 1, 1, 1), (2, 1, 2, 2, 2, 1), (4, 2, 4, 4, 4, 2))
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    """All cells of one evaluation.

    Attributes:
        seeds: of headline and fixed fleet. sweep_seeds: of the rest.
        smaller: changes to every scenario, to be quick.
        sweep: changes to the scenarios of sweeps beside.
        tuned: settings of baselines, as `tuning.py` found them.
        ablations, elastic, fixed, sweeps, hastes: what is compared.
    """

    seeds: tuple[int, ...]
    sweep_seeds: tuple[int, ...]
    smaller: Setting = ()
    sweep: Setting = ()
    tuned: Mapping[str, Setting] = field(default_factory=dict)
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    elastic: tuple[str, ...] = ELASTIC
    fixed: tuple[str, ...] = FIXED
    sweeps: tuple[Sweep, ...] = SWEEPS
    hastes: tuple[float, ...] = field(
        default_factory=lambda: tuple(sorted({*HASTES, shipped_haste()}))
    )

    def _cells(
        self,
        scenario: str,
        policy: str,
        *,
        seeds: tuple[int, ...] | None = None,
        changes: Setting = (),
        knobs: Setting = (),
        settings: Setting = (),
    ) -> list[Cell]:
        tuned = self.tuned.get(f"{scenario} {policy}", ())
        return [
            Cell(scenario, policy, seed, self.smaller + changes, knobs, tuned + settings)
            for seed in seeds or self.seeds
        ]

    def headline(self, policy: str) -> list[Cell]:
        """On rented machines."""
        return self._cells("headline", policy)

    def untuned(self) -> list[Cell]:
        """`strong` as it comes, without settings that were found for the workload."""
        return [Cell("headline", "strong", seed, self.smaller) for seed in self.seeds]

    def hasty(self, haste: float) -> Cell:
        """Ours on the seed of the tuning."""
        changes = (*self.smaller, ("market.limits.haste", haste))
        return Cell("headline", OURS, SEED, changes)

    def same_fleet(self, policy: str) -> list[Cell]:
        return self._cells("fixed-fleet", policy)

    def ablation(self, name: str) -> list[Cell]:
        """Ours without one of its parts, on rented machines."""
        return self._ablation("headline", name)

    def ablation_fixed(self, name: str) -> list[Cell]:
        return self._ablation("fixed-fleet", name)

    def whole(self, name: str) -> list[Cell]:
        """What `ablation` is held against: ours with all parts, on the same work."""
        return self._ablation("headline", name, whole=True)

    def whole_fixed(self, name: str) -> list[Cell]:
        return self._ablation("fixed-fleet", name, whole=True)

    def _ablation(self, scenario: str, name: str, *, whole: bool = False) -> list[Cell]:
        knobs, settings = ABLATIONS[name] if name and not whole else ((), ())
        changes = ABLATED_SMALLER.get(name, ())
        return self._cells(
            scenario, OURS, seeds=self.sweep_seeds, changes=changes, knobs=knobs, settings=settings
        )

    def static(self) -> list[Cell]:
        """Ours without elasticity: the headline on a fleet that is there for the whole time."""
        changes: Setting = (("market", None), ("fleet", STATIC))
        return self._cells("headline", OURS, seeds=self.sweep_seeds, changes=changes)

    def misjudged(self, name: str) -> list[Cell]:
        knobs = MISJUDGED[name] if name else ()
        return self._cells("fixed-fleet", OURS, seeds=self.sweep_seeds, knobs=knobs)

    def market(self, price: tuple[str, ...], policy: str) -> list[Cell]:
        """The headline on fewer or more kinds of offers."""
        usual = load_scenario("headline").market
        changes: Setting = () if usual and price == usual.price else (("market.price", price),)
        if "spot" in price:
            changes = _interrupted(7.0)
        return self._cells("headline", policy, seeds=self.sweep_seeds, changes=changes)

    def point(self, sweep: Sweep, changes: Setting, policy: str) -> list[Cell]:
        own = self.sweep + changes
        return self._cells(sweep.scenario, policy, seeds=self.sweep_seeds, changes=own)

    def preempted(self, per_hour: int, policy: str = OURS) -> list[Cell]:
        """The replay; 0 is the same without interruptions."""
        seeds = self.sweep_seeds
        if per_hour:
            return self._cells(f"preemption-{per_hour}", policy, seeds=seeds)
        calm = (("interruptions.source", "none"),)
        return self._cells("preemption-15", policy, seeds=seeds, changes=calm)

    def interactive(self, policy: str) -> list[Cell]:
        return self._cells("interactive-beside-batch", policy, seeds=self.sweep_seeds)

    def shares(self, policy: str) -> list[Cell]:
        """Never smaller: tenants have to be backlogged to the end."""
        return [Cell("weighted-shares", policy, seed) for seed in self.sweep_seeds]

    def all(self) -> list[Cell]:
        """Every cell that the page needs, the quickest studies last."""
        cells = [cell for policy in self.elastic for cell in self.headline(policy)]
        cells += [*self.untuned(), *(self.hasty(haste) for haste in self.hastes)]
        cells += [cell for policy, _ in STEPS for cell in self.headline(policy)]
        cells += [cell for policy in self.fixed for cell in self.same_fleet(policy)]
        for name in ("", *self.ablations):
            cells += self.whole(name) + self.whole_fixed(name)
            cells += self.ablation(name) + self.ablation_fixed(name)
        for name in ("", *MISJUDGED):
            cells += self.misjudged(name)
        cells += self.static()
        for price in MARKETS:
            cells += [cell for policy in THREE for cell in self.market(price, policy)]
        for sweep in self.sweeps:
            for _, changes in sweep.points:
                for policy in sweep.policies:
                    cells += self.point(sweep, changes, policy)
        for policy in BESIDE:
            cells += self.interactive(policy) + self.shares(policy)
            for per_hour in (0, 7, 15):
                cells += self.preempted(per_hour, policy)
        return list(dict.fromkeys(cells))


MARKETS: tuple[tuple[str, ...], ...] = (
    ("on_demand",),
    ("on_demand", "marketplace"),
    ("on_demand", "marketplace", "spot"),
)
#: Whom fairness and interruptions are looked at for.
BESIDE = (OURS, "strong", "fifo")
