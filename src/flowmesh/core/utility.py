"""The one utility function. Every placement, and every reason for it, is a Score.

`score` is plain arithmetic: its inputs may be floats, or NumPy arrays that broadcast, and the
vectorised search of the policy calls the very function whose result a decision keeps.
"""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A float, or an array of them where many options are scored at once.
Quantity = Any

JOULES_PER_KWH = 3.6e6
#: How much sharper urgency turns up at a deadline than over a run's own horizon.
DEADLINE_SHARPNESS = 4.0
#: An age that is this much of a horizon doubles a task's worth again; so does a missed deadline.
DEADLINE_WORTH = 4.0


@dataclass(frozen=True, slots=True)
class Weights:
    """Exchange rates into USD, so that the terms of a score may be added.

    Attributes:
        worth: a task is worth so many times its reference cost.
        path: share of the reference cost of later steps that counts for what leads to them.
        fair: worth is raised by this share for each batch that a tenant is behind.
        cost, energy, risk: weights of the terms of those names; `cost` is of egress too.
        usd_per_kwh, kg_co2_per_kwh, usd_per_kg_co2: prices of electricity and of carbon.
        usd_per_gb: price of bytes that go to another place than `home`.
        home: place of the store.
        patience_s: wait after which the work of a short run is worth twice as much.
        floor_s: no batch counts as shorter.
        batch_s: a batch that takes so long must be worth twice as much a second as a short one:
            others wait for its end. So it is not much longer than that, or than the longest of
            its tasks.
        floor_usd_per_hour: what workers cost at least as far as choices go, so that free ones
            are not wasted.
    """

    worth: float = 4.0
    path: float = 0.5
    fair: float = 0.5
    cost: float = 1.0
    energy: float = 1.0
    risk: float = 1.0
    usd_per_kwh: float = 0.12
    kg_co2_per_kwh: float = 0.4
    usd_per_kg_co2: float = 0.0
    usd_per_gb: float = 0.02
    home: str = ""
    patience_s: float = 10.0
    floor_s: float = 0.05
    batch_s: float = 300.0
    floor_usd_per_hour: float = 0.01


#: By the name of an objective, as runs and deployments give it.
PRESETS: dict[str, Weights] = {
    "balanced": Weights(),
    "cost": Weights(worth=2.0, path=0.25, patience_s=3600.0, batch_s=7200.0, cost=2.0),
    "latency": Weights(worth=16.0, patience_s=2.0, batch_s=8.0, cost=0.5),
    "energy": Weights(worth=2.0, patience_s=60.0, batch_s=120.0, energy=20.0, cost=0.5),
}


#: What a deployment is charged, whatever an objective makes of it.
_CHARGES = ("usd_per_kwh", "kg_co2_per_kwh", "usd_per_kg_co2", "usd_per_gb", "home")


def priced_as(weights: Weights, deployment: Weights) -> Weights:
    """`weights` of an objective at the prices of a deployment."""
    return replace(weights, **{name: getattr(deployment, name) for name in _CHARGES})


@dataclass(frozen=True, slots=True)
class Knobs:
    """Parts of the policy that can be switched off, to measure what each is worth.

    Attributes:
        batching: off, every batch is of one task.
        prefixes: tasks that share a prefix go together.
        locality: off, choices take no notice of what workers have loaded or hold.
        learning: off, estimates stay at their priors.
        hold: off, nothing waits for a better worker or a fuller batch.
        path: off, later steps add nothing.
        fairness: off, tenants are served in the order of their oldest tasks.
        misjudge: times of a batch key on a kind of device are taken to be so many times what
            is expected, or one over it, by a stable hash of the pair.
    """

    batching: bool = True
    prefixes: bool = True
    locality: bool = True
    learning: bool = True
    hold: bool = True
    path: bool = True
    fairness: bool = True
    misjudge: float = 1.0


@dataclass(frozen=True, slots=True)
class Option:
    """One batch on one worker, or on an offer, with all that its score depends on.

    Attributes:
        reference_usd: of all its tasks: each alone, at a full batch's efficiency, on the
            cheapest kind of worker that fits.
        importance: mean over the tasks of tenant weight times the factor of run priority.
        urgency: at least 1, see `urgency`.
        path_usd: reference cost of later steps, as far as these tasks lead to them.
        behind: batches that the neediest tenant is behind.
        usd_per_hour: price of the worker.
        wait_s: until it is free, or has started.
        load_s, fetch_s, exec_s: see `events.BatchTiming`.
        again_s: to load again, afterwards, the engine that has to go for this one.
        moved_gb: bytes to be fetched from another place.
        joules: of the whole batch.
        interruptions_per_hour: of the worker.
        redo_s: of its time that an interruption would waste, at most.
    """

    reference_usd: Quantity
    importance: Quantity = 1.0
    urgency: Quantity = 1.0
    path_usd: Quantity = 0.0
    behind: Quantity = 0.0
    usd_per_hour: Quantity = 0.0
    wait_s: Quantity = 0.0
    load_s: Quantity = 0.0
    fetch_s: Quantity = 0.0
    exec_s: Quantity = 0.0
    again_s: Quantity = 0.0
    moved_gb: Quantity = 0.0
    joules: Quantity = 0.0
    interruptions_per_hour: Quantity = 0.0
    redo_s: Quantity = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """The utility of one batch on one worker, in USD by term, and the seconds it takes.

    Attributes:
        value: the tasks' reference cost, times what they are worth: weight, priority, preset.
        path: what later work that waits for them adds to it.
        urgency: what their waiting, or a deadline that comes near, adds.
        fairness: what their tenants' being behind adds.
        cost: price of the worker while it is taken up. With all below, as weighted.
        egress: for bytes that move between places.
        energy: electricity, and carbon where it has a price.
        risk: of an interruption, times what would be lost.
        wait_s: until the worker is free, or has started.
        load_s: of the engine, and again of the one that has to go for it, if that is wanted.
        fetch_s, exec_s: see `events.BatchTiming`.
    """

    value: float = 0.0
    path: float = 0.0
    urgency: float = 0.0
    fairness: float = 0.0
    cost: float = 0.0
    egress: float = 0.0
    energy: float = 0.0
    risk: float = 0.0
    wait_s: float = 0.0
    load_s: float = 0.0
    fetch_s: float = 0.0
    exec_s: float = 0.0

    @property
    def usd(self) -> float:
        worth = self.value + self.path + self.urgency + self.fairness
        return worth - self.cost - self.egress - self.energy - self.risk

    @property
    def seconds(self) -> float:
        return self.wait_s + self.load_s + self.fetch_s + self.exec_s


def score(option: Option, weights: Weights) -> Score:
    """What `option` is worth. Of arrays, the fields of the score are arrays too."""
    price = np.maximum(option.usd_per_hour, weights.floor_usd_per_hour) / 3600
    load_s = option.load_s + option.again_s
    busy_s = load_s + option.fetch_s + option.exec_s
    value = weights.worth * option.importance * option.reference_usd
    path = weights.worth * option.importance * weights.path * option.path_usd
    kwh_usd = weights.usd_per_kwh + weights.kg_co2_per_kwh * weights.usd_per_kg_co2
    interrupted = 1 - np.exp(-option.interruptions_per_hour * busy_s / 3600)
    return Score(
        value=value,
        path=path,
        urgency=(value + path) * (option.urgency - 1),
        fairness=value * weights.fair * option.behind,
        cost=weights.cost * price * busy_s,
        egress=weights.cost * weights.usd_per_gb * option.moved_gb,
        energy=weights.energy * kwh_usd * option.joules / JOULES_PER_KWH,
        risk=weights.risk * interrupted * price * np.minimum(option.redo_s, busy_s),
        wait_s=option.wait_s,
        load_s=load_s,
        fetch_s=option.fetch_s,
        exec_s=option.exec_s,
    )


def rate(score: Score, floor_s: Quantity) -> NDArray[np.float64]:
    """USD per second: what options are compared by; higher is better.

    A loss is the worse the longer it takes: divided by its time, it would look the better.
    """
    usd = np.asarray(score.usd, dtype=float)
    seconds = np.maximum(score.seconds, floor_s)
    found: NDArray[np.float64] = np.where(usd >= 0, usd / seconds, usd * seconds / floor_s**2)
    return found


def plain(score: Score) -> Score:
    """The same score in Python's own floats, which is what journals can hold."""
    return Score(*(float(getattr(score, name)) for name in Score.__slots__))


def urgency(age_s: Quantity, horizon_s: Quantity, slack_s: Quantity) -> Quantity:
    """How much more work is worth as it waits: 1 at first, and never bounded.

    Args:
        age_s: since its run was submitted.
        horizon_s: in which its worth doubles: patience, and the time that the rest of its run
            takes anyway. So short runs do not wait for long ones.
        slack_s: until its run must be begun in earnest to meet its deadline; infinite for none.
    """
    late = DEADLINE_SHARPNESS * -slack_s / horizon_s
    return 1 + age_s / horizon_s + DEADLINE_WORTH * np.logaddexp(0.0, late)


def importance(weight: float, priority: int) -> float:
    """Of a task: the tenant's weight; every 10 points of run priority double it."""
    return float(weight * 2 ** (priority / 10))


def checkpoint_interval_s(checkpoint_s: float, interruptions_per_hour: float) -> float:
    """How long to work between checkpoints that take `checkpoint_s`: Young's rule.

    Source: J. W. Young, A first order approximation to the optimum checkpoint interval, 1974.
    """
    if interruptions_per_hour <= 0:
        return float("inf")
    return sqrt(2 * checkpoint_s * 3600 / interruptions_per_hour)
