"""What a run should take: its steps laid out on workers and offers, by the policy's utility.

A list schedule: steps in the order in which they become ready, each batch where its utility per
second is highest, at the size that makes it so. Nothing else runs meanwhile, but for what the
workers hold now. Reads the state, changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log, sqrt

from flowmesh.base.ids import LeaseId, WorkerId
from flowmesh.core import estimate
from flowmesh.core.backlog import as_worker
from flowmesh.core.fleet import Offer, Worker
from flowmesh.core.layout import Ahead, Layout, Place, StepForecast
from flowmesh.core.state import State
from flowmesh.core.utility import PRESETS, Weights

#: Of the standard normal distribution: 80 % lie between minus and plus this.
Z_80 = 1.2816
#: Batches of all steps that are placed one by one; beyond, several in a row on one slot.
PLACED = 5_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Of 10 outcomes, 8 should lie from `low` to `high`."""

    low: float = 0.0
    mid: float = 0.0
    high: float = 0.0

    @classmethod
    def around(cls, mid: float, sigma: float) -> "Interval":
        """Log-normal: a forecast that is wrong by a factor is so either way."""
        spread = exp(Z_80 * sqrt(log(1 + sigma * sigma)))
        return cls(mid / spread, mid, mid * spread)

    def lowered(self, share: float) -> "Interval":
        """Where all but a `share` of it may turn out to be done already."""
        return Interval(self.low * share, self.mid, self.high)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run on one fleet. `startup_usd`, in `usd`, is for machines until they take work."""

    steps: tuple[StepForecast, ...]
    seconds: Interval = Interval()
    usd: Interval = Interval()
    joules: Interval = Interval()
    startup_usd: float = 0.0

    @property
    def batches(self) -> int:
        return sum(step.batches for step in self.steps)

    @property
    def feasible(self) -> bool:
        return not any(step.impossible for step in self.steps)


def snapshot(state: State, now_ms: int) -> State:
    """What a forecast reads of a state, for another thread: records are frozen, so shared."""
    return State(
        now_ms=now_ms,
        workers=dict(state.workers),
        leases=dict(state.leases),
        tenants=dict(state.tenants),
        demands=dict(state.demands),
        fits=dict(state.fits),
        lengths=dict(state.lengths),
        rates=dict(state.rates),
        offers=dict(state.offers),
    )


def workers_of(state: State) -> list[Place]:
    """Today's fleet: workers that take work, and when they should be done with what they hold."""
    return [_known(state, worker) for worker in state.workers.values() if not worker.draining]


def time_left_s(state: State, lease_id: LeaseId) -> float:
    """Until a lease should have ended; 0 for one that takes longer than was expected."""
    lease = state.leases[lease_id]
    return max(0.0, lease.expected.total_s - (state.now_ms - lease.granted_ms) / 1000)


def _known(state: State, worker: Worker) -> Place:
    busy = [time_left_s(state, lease) for lease in worker.leases]
    free = [0.0] * max(0, worker.slots - len(busy))
    return Place(worker, worker.id, (*free, *busy))


def machines_of(state: State, offers: Iterable[Offer], limit: int) -> list[Place]:
    """Up to `limit` machines of each of the offers, none of them started yet."""
    return [_offered(state, offer, n) for offer in offers for n in range(min(offer.count, limit))]


def _offered(state: State, offer: Offer, number: int) -> Place:
    worker = replace(as_worker(offer), id=WorkerId(f"{offer.id}#{number}"))
    starting_s = estimate.startup_s(state, offer)
    return Place(worker, offer.id, (0.0,) * offer.slots, starting_s, is_offer=True)


def forecast(
    state: State,
    steps: Sequence[Ahead],
    places: Sequence[Place],
    weights: Weights = PRESETS["balanced"],
) -> Forecast:
    """Lay out a run. `steps` are in topological order; a step without tasks takes no time."""
    layout = Layout(state, places, weights, PLACED // max(1, len(steps)))
    made: dict[str, StepForecast] = {}
    for step in steps:
        before = [made[name] for name in step.upstream if name in made]
        start_s = max((one.end_s for one in before), default=0.0)
        if step.tasks and any(one.impossible for one in before):
            made[step.name] = StepForecast(step.name, start_s=start_s, impossible=True)
        elif not step.tasks:
            made[step.name] = StepForecast(step.name, start_s=start_s, end_s=start_s)
        else:
            made[step.name] = layout.place(step, start_s)
    return _summed(steps, made, layout.startup_usd())


def _summed(
    steps: Sequence[Ahead], made: Mapping[str, StepForecast], startup_usd: float
) -> Forecast:
    usd = sum(one.usd for one in made.values())
    joules = sum(one.joules for one in made.values())
    sure = {step.name: 1 - step.unsure for step in steps}
    sure_usd = sum(one.usd * sure[one.name] for one in made.values())
    sure_joules = sum(one.joules * sure[one.name] for one in made.values())
    duration_s, deviation, sure_share = _duration(steps, made)
    usd_spread = _spread(steps, made, "usd") / (usd or inf)
    joules_spread = _spread(steps, made, "joules") / (joules or inf)
    return Forecast(
        tuple(made.values()),
        Interval.around(duration_s, deviation).lowered(sure_share),
        Interval.around(usd + startup_usd, usd_spread).lowered(sure_usd / usd if usd else 1.0),
        Interval.around(joules, joules_spread).lowered(sure_joules / joules if joules else 1.0),
        startup_usd,
    )


def _spread(steps: Sequence[Ahead], made: Mapping[str, StepForecast], what: str) -> float:
    """Standard deviation of a sum: estimates of one batch key err together, others apart."""
    by_key: dict[str, float] = {}
    for step in steps:
        one = made[step.name]
        deviation = getattr(one, what) * one.sigma
        by_key[step.batch_key] = by_key.get(step.batch_key, 0.0) + deviation
    return sqrt(sum(deviation**2 for deviation in by_key.values()))


def _duration(
    steps: Sequence[Ahead], made: Mapping[str, StepForecast]
) -> tuple[float, float, float]:
    """Seconds until the last step ends, and their relative deviation along the longest path.

    And the share of them that is sure to be: of tasks that nobody can have done before.
    """
    known = {step.name: step for step in steps}
    last = max(made.values(), key=lambda one: one.end_s, default=None)
    if last is None or not last.end_s:
        return 0.0, 0.0, 1.0
    total_s, variance, unsure_s, at = last.end_s, 0.0, 0.0, last
    while True:
        unsure_s += (at.end_s - at.start_s) * known[at.name].unsure
        variance += ((at.end_s - at.start_s) * at.sigma) ** 2
        before = [made[name] for name in known[at.name].upstream if name in made]
        if not before:
            return total_s, sqrt(variance) / total_s, max(0.0, 1 - unsure_s / total_s)
        at = max(before, key=lambda one: one.end_s)
