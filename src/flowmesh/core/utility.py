"""The one utility function. Every placement, and every reason for it, is a Score."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """Exchange rates into USD, so that the parts of a score may be added.

    Attributes:
        usd_per_busy_s: worth of a second of reference work to a tenant of weight 1.
        patience_s: wait after which work is worth twice as much; it goes on rising.
        fair_usd: each time a tenant is so far behind the best served one, its work is worth
            twice as much: over time all get their weighted share, whatever their priorities.
        floor_s: least work that a batch counts for, so that small work is not worthless.
    """

    usd_per_busy_s: float = 0.001
    patience_s: float = 30.0
    fair_usd: float = 0.03
    floor_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Option:
    """One batch on one worker, with everything the score depends on.

    Attributes:
        work_s: seconds the tasks would take, one after another, by estimate.
        importance: mean over the tasks of tenant weight times the factor of run priority.
        start_s: seconds before the first task runs: a fixed part, and the engine's load if cold.
        wait_s: how long the oldest task has been ready.
        lag_usd: how far its neediest tenant is behind the best served one.
        usd_per_hour: price of the worker.
    """

    work_s: float
    importance: float
    start_s: float
    wait_s: float
    lag_usd: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Score:
    """Parts of a utility, in USD per second of worker time; `total` is what is compared."""

    value: float
    urgency: float
    fairness: float
    cost: float
    start: float

    @property
    def total(self) -> float:
        return self.value + self.urgency + self.fairness - self.cost - self.start


def score(option: Option, weights: Weights) -> Score:
    """Net value per second of running `option`; higher is better.

    Batching pays because `start_s` is spread over more work. What the start takes away
    is kept as a part of its own, so that it can be shown.
    """
    warm_s = max(option.work_s, weights.floor_s)
    worth = weights.usd_per_busy_s * option.importance
    urgency = worth * option.wait_s / weights.patience_s
    behind = min(option.lag_usd / weights.fair_usd, DOUBLINGS_LIMIT)
    fairness = (worth + urgency) * (2**behind - 1)
    return Score(
        value=worth,
        urgency=urgency,
        fairness=fairness,
        cost=option.usd_per_hour / 3600,
        start=(worth + urgency + fairness) * option.start_s / (warm_s + option.start_s),
    )


#: Beyond a factor of a million, more lag changes nothing.
DOUBLINGS_LIMIT = 20.0


def importance(weight: float, priority: int) -> float:
    """Of a task: the tenant's weight; every 10 points of run priority double it."""
    return float(weight * 2 ** (priority / 10))
