"""What renting machines is worth: the utility of an offer for the work that waits.

An offer is a worker that starts later. Beside what the machines that are there will do anyway,
some more of them get more done within the horizon (`value`) and all of it sooner (`urgency`);
they cost their price from launch until that work is done, in whole billing periods.
"""

from dataclasses import dataclass, replace

import numpy as np

from flowmesh.core import estimate, roofline
from flowmesh.core.backlog import Group, Kind, Table
from flowmesh.core.fleet import Offer
from flowmesh.core.state import State
from flowmesh.core.utility import PRESETS, Score, Weights

#: Numbers of machines of one offer that are weighed against each other.
COUNTS = np.array([1.0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
#: How much counts that other machines are spared: they may well begin the work before.
SPARED = 0.5
#: Seconds of work that an interruption destroys beside the start of another machine.
REDO_S = 30.0
#: Least worth of work, in reference costs as weighted: nothing is left undone for ever.
ALWAYS = 1.5
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Terms:
    """How far renting looks and how keen it is: see `scale.FleetLimits`."""

    horizon_s: float
    tail_s: float
    margin: float
    haste: float


@dataclass(frozen=True, slots=True)
class Choice:
    """So many machines of one offer, for one group of work, and why.

    `net` is the score's USD less the margin: what all of them together are worth.
    """

    offer: Offer
    count: int
    group: Group
    score: Score
    net: float


@dataclass(frozen=True, slots=True)
class Market:
    """Work, machines and offers, with `[groups, kinds]` and `[groups, offers]` seconds of a slot.

    `load_s` is `[groups, offers]`: until a machine that holds nothing is warm; `cold_s` is
    `[groups, kinds]`, 0 where one is. `spread` is `[groups, offers, COUNTS]`: see `Backlog.spread`.
    `room` is by offer how many machines there are to be had, `roof` how many the limits of the
    whole fleet leave.
    """

    groups: list[Group]
    kinds: list[Kind]
    offers: list[Offer]
    room: list[int]
    roof: list[int]
    on_kinds: Table
    on_offers: Table
    load_s: Table
    cold_s: Table
    spread: Table

    def reference_usd(self, weights: Weights) -> Table:
        """`[groups]`: of all work of a group, on the cheapest machine for rent that fits; else 0.

        Own workers may be free, but there are only so many: what they have no time for costs
        the rent of others.
        """
        rented = [kind.worker.usd_per_hour if kind.machines else np.inf for kind in self.kinds]
        prices = np.array([*rented, *(one.usd_per_hour for one in self.offers)])
        seconds = np.concatenate([self.on_kinds, self.on_offers], axis=1)
        usd = (seconds * np.maximum(prices, weights.floor_usd_per_hour) / 3600).min(axis=1)
        return np.where(np.isfinite(usd), usd, 0.0)

    def rates(self) -> Table:
        """`[groups, kinds]`: the share of a group that a kind does in a second.

        Each kind does all that fits it at one pace, so that everything ends together.
        """
        slots = np.array([kind.slots for kind in self.kinds], dtype=float)
        late = np.array([kind.taken_s / kind.slots + kind.starts_s for kind in self.kinds])
        fits = np.isfinite(self.on_kinds)
        total_s = np.where(fits, self.on_kinds, 0.0).sum(axis=0) / slots + late
        return np.where(fits, 1 / np.maximum(total_s + self.cold_s, 1e-6), 0.0)

    def without(self, number: int, slots: int) -> "Market":
        """The same with so many slots less of one kind; its other machines take on no more."""
        kind = self.kinds[number]
        if kind.slots > slots:
            share = 1 - slots / kind.slots
            less = replace(kind, slots=kind.slots - slots, taken_s=kind.taken_s * share)
            kinds = [*self.kinds[:number], less, *self.kinds[number + 1 :]]
            return replace(self, kinds=kinds)
        kinds = [*self.kinds[:number], *self.kinds[number + 1 :]]
        less_kinds = np.delete(self.on_kinds, number, axis=1)
        cold_s = np.delete(self.cold_s, number, axis=1)
        return replace(self, kinds=kinds, on_kinds=less_kinds, cold_s=cold_s)


def best(state: State, market: Market, weights: Weights, terms: Terms) -> Choice | None:
    """The choice with the highest net, be it worth it or not; None if no offer fits anything."""
    if not market.groups or not market.offers:
        return None
    table = _Table(state, market, weights, terms)
    if not np.isfinite(table.net).any():
        return None
    # An offer of few machines may be the best kind all the same: the next look takes another.
    worth_it = table.net.max(axis=2) > 0
    if worth_it.any():
        first = np.where(worth_it, table.of_kind.max(axis=2), -np.inf)
        group, offer = np.unravel_index(int(np.argmax(first)), first.shape)
        count = int(np.argmax(table.net[group, offer]))
        return table.choice(int(np.ravel_multi_index((group, offer, count), table.net.shape)))
    return table.choice(int(np.argmax(table.net)))


def of_offer(
    state: State, market: Market, number: int, weights: Weights, terms: Terms
) -> Choice | None:
    """The best that one offer, by its place in the market, is worth; for those who ask why."""
    table = _Table(state, market, weights, terms)
    net = table.net[:, number]
    if not np.isfinite(net).any():
        return None
    group, count = np.unravel_index(int(np.argmax(net)), net.shape)
    return table.choice(int(np.ravel_multi_index((group, number, count), table.net.shape)))


class _Table:
    """All terms as arrays `[groups, offers, counts]`, in USD and seconds."""

    def __init__(self, state: State, market: Market, weights: Weights, terms: Terms) -> None:
        self.market = market
        horizon_s = terms.horizon_s
        rates = market.rates()
        pace = rates.sum(axis=1)[:, None, None]
        work_s = np.maximum(market.on_offers, 1e-6)[:, :, None] * market.spread
        slots = np.array([offer.slots for offer in market.offers], dtype=float)[None, :, None]
        counts = COUNTS[None, None, :]
        startup_s = np.array([estimate.startup_s(state, offer) for offer in market.offers])
        self.startup_s = startup_s[None, :, None]
        self.load_s = market.load_s[:, :, None]
        start_s = self.startup_s + self.load_s
        added = counts * slots / work_s
        # How long all takes, and how much is done, without them and with them.
        before_s = np.minimum(horizon_s, 1 / np.maximum(pace, 1 / horizon_s))
        done_before = np.minimum(1.0, pace * horizon_s)
        left = np.maximum(0.0, 1 - pace * start_s)
        whole_s = start_s + left / np.maximum(pace + added, 1e-12)
        self.end_s = np.minimum(horizon_s, whole_s)
        self.ours = np.minimum(left, added * np.maximum(0.0, self.end_s - start_s))
        done = np.minimum(1.0, pace * self.end_s + self.ours)
        self.value, self.urgency = self._worth(
            state, weights, terms.haste, done - done_before, before_s - self.end_s
        )
        self._cost(weights, terms.tail_s, rates, done_before - pace * self.end_s)
        self.risk = self._risk(state, weights)
        net = (
            self.value
            + self.urgency
            - (self.cost + self.energy + self.risk) * (1 + terms.margin)
            + self.saved
        )
        room = np.array(market.room)[None, :, None]
        roof = np.array(market.roof)[None, :, None]
        possible = np.isfinite(market.on_offers)[:, :, None] & (self.ours > 0)
        self.of_kind = np.where(possible & (counts <= roof), net, -np.inf)
        self.net = np.where(possible & (counts <= room), net, -np.inf)

    def _worth(
        self, state: State, weights: Weights, haste: float, more: Table, sooner_s: Table
    ) -> tuple[Table, Table]:
        """A wait counts by what the work would take at best, so that long work may wait longer."""
        groups, start_s = self.market.groups, self.startup_s + self.load_s
        seconds = np.concatenate([self.market.on_kinds, self.market.on_offers], axis=1).min(axis=1)
        steps = np.array([group.steps for group in groups])
        patience = np.array([_patience_s(group, weights) for group in groups])
        patience_s = (patience + seconds / steps)[:, None, None] + start_s
        due_s = np.array([(group.due_ms - state.now_ms) / 1000 for group in groups])[:, None, None]
        # A deadline that can still be met, but not by much, makes the wait dear.
        slack_s = np.maximum(due_s - start_s, 1.0)
        patience_s = np.where(due_s > start_s, np.minimum(patience_s, slack_s), patience_s)
        # What costs no more than the cheapest way is always worth doing.
        worth = max(weights.worth, ALWAYS * weights.cost)
        value = worth * self.market.reference_usd(weights)[:, None, None]
        return value * more, haste * value * np.maximum(sooner_s, 0.0) / patience_s

    def _price(self, weights: Weights) -> Table:
        """`[1, offers, counts]`: USD a second of so many machines."""
        prices = np.array([one.usd_per_hour for one in self.market.offers])
        floored = np.maximum(prices, weights.floor_usd_per_hour) / 3600
        return np.asarray(floored[None, :, None] * COUNTS)

    def _cost(self, weights: Weights, tail_s: float, rates: Table, spared: Table) -> None:
        """`spared`: the share of each group that machines which are there need not do."""
        market, counts = self.market, COUNTS[None, None, :]
        billing = np.array([max(one.billing_s, 1.0) for one in market.offers])[None, :, None]
        rented_s = np.ceil((self.end_s + tail_s) / billing) * billing
        self.cost = weights.cost * self._price(weights) * rented_s
        share = rates / np.maximum(rates.sum(axis=1, keepdims=True), 1e-9)
        paid = np.array(
            [kind.worker.usd_per_hour / 3600 if kind.machines else 0.0 for kind in market.kinds]
        )
        work_s = np.where(np.isfinite(market.on_kinds), market.on_kinds, 0.0)
        elsewhere = (share * work_s * paid).sum(axis=1)[:, None, None]
        self.saved = SPARED * weights.cost * elsewhere * np.clip(spared, 0.0, 1.0)
        watts = np.array([roofline.watts(one.device) for one in market.offers])[None, :, None]
        per_kwh = weights.usd_per_kwh + weights.kg_co2_per_kwh * weights.usd_per_kg_co2
        kwh = watts * counts * self.end_s / _JOULES_PER_KWH
        self.energy = weights.energy * per_kwh * kwh

    def _risk(self, state: State, weights: Weights) -> Table:
        start_s = self.startup_s + self.load_s
        hourly = np.array(
            [
                estimate.interruptions_per_hour(
                    state, one.device.kind, one.interruptions_per_hour, one.provider
                )
                for one in self.market.offers
            ]
        )[None, :, None]
        again_usd = self._price(weights) * (start_s + REDO_S)
        delay_usd = self.urgency / np.maximum(self.end_s, 1.0) * start_s
        lost_usd = again_usd + delay_usd
        return np.asarray(weights.risk * hourly * self.end_s / 3600 * lost_usd)

    def choice(self, place: int) -> Choice:
        at = tuple(int(one) for one in np.unravel_index(place, self.net.shape))
        group, offer, number = at

        def term(table: Table) -> float:
            return float(np.broadcast_to(table, self.net.shape)[at])

        wait_s, load_s = term(self.startup_s), term(self.load_s)
        score = Score(
            value=term(self.value),
            urgency=term(self.urgency),
            cost=term(self.cost) - term(self.saved),
            energy=term(self.energy),
            risk=term(self.risk),
            wait_s=wait_s,
            load_s=load_s,
            exec_s=max(0.0, term(self.end_s) - wait_s - load_s),
        )
        return Choice(
            self.market.offers[offer],
            int(COUNTS[number]),
            self.market.groups[group],
            score,
            float(self.net[at]),
        )


def _patience_s(group: Group, weights: Weights) -> float:
    """Of the least patient among those who wait longest."""
    named = [PRESETS[name].patience_s for name in group.objectives if name in PRESETS]
    others = any(name not in PRESETS for name in group.objectives)
    return min([*named, *([weights.patience_s] if others or not named else [])])
