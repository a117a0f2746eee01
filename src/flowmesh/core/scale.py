"""Renting: which machines to launch, drain and give back. Policy, as `plan.py` is.

Launch: what waits, and what is foreseen, is worth more on some machines of an offer than they
cost, beside what the machines that are there will do (`appraise.py`). Give back: a machine has
been idle for about as long as another start would cost, or the others do its work as well. A
launch pays only beyond a start-up, a return only before one: so they do not alternate.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import numpy as np

from flowmesh.base.ids import InstanceId, OfferId
from flowmesh.core import appraise, arrivals, backlog, estimate, moments
from flowmesh.core.appraise import Choice, Market, Terms
from flowmesh.core.backlog import Backlog, Kind, Predict
from flowmesh.core.decisions import (
    Decision,
    DrainInstance,
    LaunchInstance,
    TerminateInstance,
)
from flowmesh.core.fleet import Instance, InstanceStatus, Offer
from flowmesh.core.state import State
from flowmesh.core.utility import PRESETS, Score, Weights

#: How often it looks at most, on news of work, and of machines.
PACE_MS = 1_000
NEWS_MS = 200
#: How often at least while work waits, as deadlines come nearer; and while a machine is kept for
#: work that is foreseen.
WAITING_MS = 60_000
KEEPING_MS = 10_000
#: How often it asks whether the others could do without a busy machine.
SPARE_MS = 30_000
#: No machine takes longer to start.
FAR_S = 600.0
#: How long a running machine may be without any worker.
EMPTY_S = 60.0
#: Work that no machine fits may gather for so long before the first one is launched for it.
GATHER_S = 2.0
#: An offer whose launch failed is left alone, twice as long after each further failure.
SHUN_S = 60.0
SHUN_LIMIT_S = 3_600.0
#: To spare a machine, the others may be busy for this share of the time, and what is ready may
#: last them for this share of a start-up.
SPARE = 0.7
QUEUE = 0.25
#: Most offers that one look takes in: the cheapest of each kind of machine, then the next ones.
OFFERS = 48


@dataclass(frozen=True, slots=True)
class Bounds:
    """Fewest and most machines of one provider."""

    min_instances: int = 0
    max_instances: int = 1_000_000


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """What may be rented. By default nothing is.

    Attributes:
        min_instances, max_instances: of all providers; machines that are starting or still to
            be given back count too.
        usd_per_hour: most that all of them may cost together; 0 is no limit.
        margin: share by which a machine's worth must exceed its cost.
        horizon_s: how far it looks: work beyond is no reason to launch now.
        quiet_s: how long an idle machine is kept when nothing is open and nothing foreseen.
        haste: how much the value of waiting work counts; 0 looks at cost alone.
        providers: limits by provider, for those that have their own.
    """

    min_instances: int = 0
    max_instances: int = 0
    usd_per_hour: float = 0.0
    margin: float = 0.1
    horizon_s: float = 1_800.0
    quiet_s: float = 30.0
    haste: float = 0.25
    providers: Mapping[str, Bounds] = field(default_factory=dict)


@dataclass(slots=True)
class _Shunned:
    times: int
    until_ms: int


class Scaler:
    """Decides on renting, for one plane. What it keeps is an index: nothing is lost with it."""

    def __init__(self, limits: FleetLimits = FleetLimits()) -> None:
        self.limits = limits
        self._state: State | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        self._backlog = Backlog()
        self._planned: list[Decision] = []
        self._looked_ms = -PACE_MS
        self._next_ms: int | None = 0
        self._looked_at: tuple[int, ...] = ()
        self._starting: dict[InstanceId, OfferId] = {}
        self._shunned: dict[OfferId, _Shunned] = {}
        self._spared_ms = 0
        #: When work that no machine fits has gathered for long enough.
        self._gathered_ms: int | None = None
        #: Since when the other machines could do without one of a kind.
        self._spare_since_ms: dict[str, int] = {}

    def decide(
        self, state: State, weights: Weights = PRESETS["balanced"], predict: Predict | None = None
    ) -> Decision | None:
        """The next thing to rent, drain or give back; None if there is nothing, or not yet."""
        if state is not self._state:
            self._state = state
            self._start_anew()
        if not self._planned and self._is_due(state):
            self._looked_ms = state.now_ms
            self._looked_at = moments.news(state)
            self._next_ms = None
            self._planned = list(self._look(state, weights, predict or estimate.coefficients))
            self._planned.reverse()
            if self._next_ms is None:
                self._next_ms = self._due_ms(state)
        while self._planned:
            planned = self._planned.pop()
            if not isinstance(planned, LaunchInstance):
                return planned
            offer = state.offers.get(planned.offer.id)
            if offer is not None and self.room(state, offer) > 0:
                return planned
        return None

    def wakes_ms(self, state: State) -> int | None:
        """When to look again if nothing happens before."""
        if state is not self._state or not (state.instances or self.limits.max_instances):
            return None
        due = (self._next_ms, self._news_ms(state))
        return min((at_ms for at_ms in due if at_ms is not None), default=None)

    def _is_due(self, state: State) -> bool:
        if not state.instances and not self.limits.max_instances:
            return False
        if self._next_ms is not None and state.now_ms >= self._next_ms:
            return True
        news_ms = self._news_ms(state)
        return news_ms is not None and state.now_ms >= news_ms

    def _news_ms(self, state: State) -> int | None:
        """When to look because something has happened."""
        news = moments.news(state)
        if news == self._looked_at:
            return None
        return self._looked_ms + (NEWS_MS if news[:3] != self._looked_at[:3] else PACE_MS)

    def _due_ms(self, state: State) -> int | None:
        """When the passing of time alone could change what it decides; None if it cannot."""
        now_ms = state.now_ms
        ends = [self._ends_ms(state, one) for one in state.instances.values()]
        due = [at_ms for at_ms in ends if at_ms is not None]
        if self._spare_since_ms:
            due.append(self._spared_ms + SPARE_MS)
        if state.ready:
            due.append(now_ms + WAITING_MS)
            due += [one.until_ms for one in self._shunned.values() if one.until_ms > now_ms]
            if self._gathered_ms is not None:
                due.append(self._gathered_ms)
        # Work that is foreseen is met by a start that ends when it comes.
        starts_s = [estimate.startup_s(state, offer) for offer in state.offers.values()]
        lead_s = min(FAR_S, max(starts_s, default=0.0))
        for key in backlog.soon(state, inf):
            ahead_ms = int(1000 * (arrivals.next_s(state, key) - lead_s))
            due.append(now_ms + max(PACE_MS, ahead_ms) if ahead_ms > 0 else now_ms + WAITING_MS)
        return max(now_ms + 1, min(due)) if due else None

    def _ends_ms(self, state: State, instance: Instance) -> int | None:
        """When a machine is given back if nothing happens to it before."""
        if instance.status is InstanceStatus.LAUNCHING:
            return instance.launched_ms + int(1000 * moments.late_s(state, instance))
        if instance.status is not InstanceStatus.RUNNING or not instance.quiet_ms:
            return None
        if instance.id not in state.hosted:
            return instance.quiet_ms + int(1000 * EMPTY_S)
        if self._keeps(state, instance):
            return None
        keep_s = self._keep_s(state, instance)
        kept_ms = instance.quiet_ms + int(1000 * keep_s)
        if keep_s > self.limits.quiet_s:
            # What is foreseen may not come.
            kept_ms = min(kept_ms, state.now_ms + KEEPING_MS)
        return max(kept_ms, state.now_ms + PACE_MS, moments.period_ends_ms(state, instance))

    def _look(self, state: State, weights: Weights, predict: Predict) -> Iterator[Decision]:
        self._note_failures(state)
        given_back = False
        for decision in self._returns(state, predict):
            given_back = True
            yield decision
        if given_back:
            return
        launches = list(self._launches(state, weights, predict))
        if launches:
            self._spare_since_ms.clear()
            # There may be work for others still, beside those.
            self._next_ms = state.now_ms
        yield from launches

    # Limits

    def room(self, state: State, offer: Offer) -> int:
        """How many more machines of an offer may be launched."""
        held = state.instances.values()
        same = sum(one.offer.provider == offer.provider for one in held)
        bounds = self.limits.providers.get(offer.provider, Bounds())
        room = min(offer.count, bounds.max_instances - same, self._roof(state, offer))
        return max(0, room)

    def _roof(self, state: State, offer: Offer) -> int:
        """How many more the limits of the whole fleet leave."""
        limits, held = self.limits, state.instances.values()
        roof = limits.max_instances - len(held)
        if limits.usd_per_hour and offer.usd_per_hour > 0:
            free_usd = limits.usd_per_hour - sum(one.offer.usd_per_hour for one in held)
            roof = min(roof, int(free_usd / offer.usd_per_hour + 1e-9))
        return max(0, roof)

    def _keeps(self, state: State, instance: Instance) -> bool:
        """Whether the least number of machines needs this one."""
        provider = instance.offer.provider
        alive = [one for one in state.instances.values() if one.takes_work]
        same = sum(one.offer.provider == provider for one in alive)
        bounds = self.limits.providers.get(provider, Bounds())
        return len(alive) <= self.limits.min_instances or same <= bounds.min_instances

    # Launching

    def _note_failures(self, state: State) -> None:
        """Launches whose machine is gone, or given up, before its worker was heard of."""
        for instance_id, offer_id in tuple(self._starting.items()):
            instance = state.instances.get(instance_id)
            if instance is not None and instance.status is InstanceStatus.LAUNCHING:
                continue
            del self._starting[instance_id]
            if instance is not None and instance.running_ms:
                self._shunned.pop(offer_id, None)
                continue
            shunned = self._shunned.setdefault(offer_id, _Shunned(0, 0))
            shun_s = min(SHUN_LIMIT_S, SHUN_S * 2.0 ** min(shunned.times, 10))
            shunned.times += 1
            shunned.until_ms = state.now_ms + int(1000 * shun_s)
        for instance in state.instances.values():
            if instance.status is InstanceStatus.LAUNCHING:
                self._starting[instance.id] = instance.offer.id

    def _open(self, state: State) -> list[tuple[Offer, int]]:
        """Offers that may be taken, the cheapest of each kind first, and how many of each."""
        found: list[tuple[Offer, int]] = []
        for offer in state.offers.values():
            shunned = self._shunned.get(offer.id)
            if shunned is None or shunned.until_ms <= state.now_ms:
                found.append((offer, self.room(state, offer)))
        found = [(offer, room) for offer, room in found if room]
        found.sort(key=lambda pair: (pair[0].usd_per_hour, pair[0].id))
        cheaper: Counter[str] = Counter()
        ranks: dict[OfferId, int] = {}
        for offer, _ in found:
            ranks[offer.id] = cheaper[offer.device.kind]
            cheaper[offer.device.kind] += 1
        found.sort(key=lambda pair: ranks[pair[0].id])
        return found[:OFFERS]

    def market(self, state: State, predict: Predict = estimate.coefficients) -> Market:
        """What there is to do, to do it with, and to be had."""
        found = self._open(state)
        offers = [offer for offer, _ in found]
        lead_s = min((estimate.startup_s(state, offer) for offer in offers), default=0.0)
        groups = self._backlog.groups(state, backlog.soon(state, lead_s))
        kinds = backlog.kinds(state)
        on_kinds = [kind.worker for kind in kinds]
        on_offers = [backlog.as_worker(offer) for offer in offers]
        return Market(
            groups,
            kinds,
            offers,
            [room for _, room in found],
            [self._roof(state, offer) for offer in offers],
            self._backlog.seconds(state, groups, on_kinds, predict),
            self._backlog.seconds(state, groups, on_offers, predict),
            self._backlog.load_s(state, groups, [offer.device for offer in offers]),
            self._backlog.cold_s(state, groups, kinds),
            self._backlog.spread(state, groups, on_offers, predict, appraise.COUNTS),
        )

    def worth(
        self,
        state: State,
        offer: OfferId,
        weights: Weights = PRESETS["balanced"],
        predict: Predict = estimate.coefficients,
    ) -> Score | None:
        """What the best number of machines of an offer is worth now; None if it fits nothing."""
        market = self.market(state, predict)
        numbers = [number for number, one in enumerate(market.offers) if one.id == offer]
        if not numbers or not market.groups:
            return None
        found = appraise.of_offer(state, market, numbers[0], weights, self._terms)
        return found.score if found else None

    @property
    def _terms(self) -> Terms:
        limits = self.limits
        return Terms(limits.horizon_s, limits.quiet_s, limits.margin, limits.haste)

    def _launches(self, state: State, weights: Weights, predict: Predict) -> Iterator[Decision]:
        self._gathered_ms = None
        if not self.limits.max_instances or not state.offers:
            return
        market = self.market(state, predict)
        choice = appraise.best(state, market, weights, self._terms)
        if choice is not None and choice.net > 0:
            yield from _launch(state, choice, _because(choice))
            return
        choice = self._for_nobodys(state, market, weights)
        if choice is not None:
            yield from _launch(state, choice, "no machine that is there fits its work")
            return
        yield from self._up_to_least(state, market)

    def _for_nobodys(self, state: State, market: Market, weights: Weights) -> Choice | None:
        """One machine for work that none fits: who has submitted it wants it done."""
        lonely = np.flatnonzero(~np.isfinite(market.on_kinds).any(axis=1)).tolist()
        ends = {row: market.groups[row].oldest_ms + int(1000 * GATHER_S) for row in lonely}
        rows = [row for row, end_ms in ends.items() if end_ms <= state.now_ms]
        later = [end_ms for end_ms in ends.values() if end_ms > state.now_ms]
        self._gathered_ms = min(later, default=None)
        if not rows:
            return None
        only = Market(
            [market.groups[row] for row in rows],
            market.kinds,
            market.offers,
            [min(1, room) for room in market.room],
            [1] * len(market.offers),
            market.on_kinds[rows],
            market.on_offers[rows],
            market.load_s[rows],
            market.cold_s[rows],
            market.spread[rows],
        )
        return appraise.best(state, only, weights, self._terms)

    def _up_to_least(self, state: State, market: Market) -> Iterator[Decision]:
        """The cheapest offer, where there are fewer machines than there have to be."""
        alive = [one for one in state.instances.values() if one.takes_work]
        for offer in sorted(market.offers, key=lambda one: (one.usd_per_hour, one.id)):
            bounds = self.limits.providers.get(offer.provider, Bounds())
            same = sum(one.offer.provider == offer.provider for one in alive)
            if len(alive) < self.limits.min_instances or same < bounds.min_instances:
                instance = InstanceId(f"i{state.next_instance}")
                reason = "fewer machines are rented than there have to be"
                yield LaunchInstance(state.now_ms, instance, offer, Score(), reason)
                return

    # Giving back

    def _returns(self, state: State, predict: Predict) -> Iterator[Decision]:
        quiet: list[Instance] = []
        for instance in state.instances.values():
            reason = self._why_useless(state, instance)
            if reason:
                yield TerminateInstance(state.now_ms, instance.id, reason)
            elif instance.status is InstanceStatus.RUNNING and instance.quiet_ms:
                quiet.append(instance)
        yield from self._idle_for_long(state, quiet)
        if state.now_ms - self._spared_ms >= SPARE_MS:
            self._spared_ms = state.now_ms
            yield from self._spared(state, predict)

    def _why_useless(self, state: State, instance: Instance) -> str:
        now_ms = state.now_ms
        if instance.status is InstanceStatus.LAUNCHING:
            late = now_ms - instance.launched_ms >= 1000 * moments.late_s(state, instance)
            return "its worker was not heard of in time" if late else ""
        if instance.status is InstanceStatus.TERMINATING:
            return ""
        hosted = [state.workers[worker] for worker in state.hosted.get(instance.id, ())]
        if instance.status is InstanceStatus.DRAINING:
            return "" if any(worker.leases for worker in hosted) else "drained"
        if not instance.quiet_ms:
            return ""
        if hosted and all(worker.draining for worker in hosted):
            return "its worker goes"
        empty = not hosted and now_ms - instance.quiet_ms >= 1000 * EMPTY_S
        return "it has no worker" if empty else ""

    def _idle_for_long(self, state: State, quiet: list[Instance]) -> Iterator[Decision]:
        """Ski rental: idle for about as long as another start takes, unless use is foreseen."""
        kept = sum(one.takes_work for one in state.instances.values())
        quiet.sort(key=lambda one: (-one.offer.usd_per_hour, one.quiet_ms, one.id))
        for instance in quiet:
            idle_s = (state.now_ms - instance.quiet_ms) / 1000
            if idle_s < self._keep_s(state, instance) or not moments.ends_period(state, instance):
                continue
            if kept <= self.limits.min_instances or self._keeps(state, instance):
                continue
            kept -= 1
            yield TerminateInstance(state.now_ms, instance.id, f"idle for {idle_s:.0f} s")

    def _keep_s(self, state: State, instance: Instance) -> float:
        """How long a machine that is idle is kept."""
        warm, again_s = self._again(state, instance)
        next_s = min((arrivals.next_s(state, key) for key in warm), default=inf)
        if next_s <= again_s:
            return again_s + self.limits.quiet_s
        # The later the next use is expected, the less a start that is saved then is worth.
        least_s = min(again_s, self.limits.quiet_s)
        return max(least_s, again_s * again_s / next_s) if state.runs else least_s

    def _again(self, state: State, instance: Instance) -> tuple[dict[str, None], float]:
        """What a machine is warm for, and seconds until another one would be."""
        warm: dict[str, None] = {}
        for worker in state.hosted.get(instance.id, ()):
            warm |= dict.fromkeys(state.workers[worker].warm)
        loads = [
            backlog.demand_load_s(state, state.demands[key], instance.offer.device)
            for key in warm
            if key in state.demands
        ]
        return warm, estimate.startup_s(state, instance.offer) + max(loads, default=0.0)

    def _spared(self, state: State, predict: Predict) -> Iterator[Decision]:
        """Drain a machine whose part the others have long been able to do besides.

        A trickle of work, spread thin, would keep every machine from ever being idle.
        """
        since, self._spare_since_ms = self._spare_since_ms, {}
        kinds = backlog.kinds(state)
        order = sorted(range(len(kinds)), key=lambda one: -kinds[one].worker.usd_per_hour)
        for number in order:
            kind = kinds[number]
            machine = self._newest_busy(state, kind)
            if machine is None or not self._can_spare(state, kinds, number, machine, predict):
                continue
            name = f"{kind.worker.device.kind} {kind.worker.usd_per_hour} {kind.worker.slots}"
            self._spare_since_ms[name] = since_ms = since.get(name, state.now_ms)
            _, again_s = self._again(state, machine)
            if state.now_ms - since_ms >= 1000 * again_s and moments.ends_period(state, machine):
                self._spare_since_ms.clear()
                reason = "the other machines do its work as well"
                yield DrainInstance(state.now_ms, machine.id, reason)
                return

    def _newest_busy(self, state: State, kind: Kind) -> Instance | None:
        machines = [state.instances[one] for one in kind.machines]
        running = [one for one in machines if one.status is InstanceStatus.RUNNING]
        busy = [one for one in running if not one.quiet_ms and not self._keeps(state, one)]
        return min(busy, key=lambda one: (-one.launched_ms, one.id), default=None)

    def _can_spare(
        self, state: State, kinds: list[Kind], number: int, machine: Instance, predict: Predict
    ) -> bool:
        """Whether the others would have time to spare, and no queue, without it."""
        _, again_s = self._again(state, machine)
        flow = backlog.flow(state, again_s)
        groups = self._backlog.groups(state, flow, ready=SPARE / QUEUE)
        workers = [kind.worker for kind in kinds]
        on_kinds = self._backlog.seconds(state, groups, workers, predict)
        none = np.zeros((len(groups), 0))
        cold_s = self._backlog.cold_s(state, groups, kinds)
        market = Market(groups, kinds, [], [], [], on_kinds, none, none, cold_s, none)
        rest = market.without(number, max(1, kinds[number].worker.slots))
        if not rest.kinds:
            return False
        fits = np.isfinite(on_kinds[:, number])
        return bool((rest.rates().sum(axis=1)[fits] * SPARE * again_s >= 1).all())


def _launch(state: State, choice: Choice, reason: str) -> Iterator[LaunchInstance]:
    for number in range(choice.count):
        instance = InstanceId(f"i{state.next_instance + number}")
        yield LaunchInstance(state.now_ms, instance, choice.offer, choice.score, reason)


def _because(choice: Choice) -> str:
    machines = "one machine" if choice.count == 1 else f"{choice.count} machines"
    return f"{machines} for {choice.group.tasks:.0f} tasks"
