"""The figures of the page, from outcomes alone: headline ratios, and where ours is not best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .matrix import BESIDE, MARKETS, OURS, THREE, Matrix
from .running import Outcome, Outcomes
from .spreads import Figure, Spread, joules, over_oracle, p50, p95, ratio, spread, usd

#: The figures that the whole is judged by.
HEADLINE = (
    "cost_ratio_isolated", "cost_ratio_strong", "energy_ratio_isolated", "cost_over_oracle",
    "p95_ratio_best_baseline",
)  # fmt: skip
#: Smaller differences are told as equal.
EQUAL = 0.005


def headline(matrix: Matrix, outcomes: Outcomes) -> dict[str, Spread]:
    """Those of `HEADLINE`, and some beside them."""

    def elastic(policy: str) -> list[Outcome]:
        return outcomes.each(matrix.headline(policy))

    ours = elastic(OURS)
    return {
        "cost_ratio_isolated": ratio(usd, elastic("isolated"), ours),
        "cost_ratio_strong": ratio(usd, elastic("strong"), ours),
        "energy_ratio_isolated": ratio(joules, elastic("isolated"), ours),
        "cost_over_oracle": spread(over_oracle, ours),
        "p95_ratio_best_baseline": over_best(p95, matrix, outcomes),
        "p50_ratio_best_baseline": over_best(p50, matrix, outcomes),
        "usd_ratio_best_baseline": over_best(usd, matrix, outcomes),
        "cost_ratio_cheapest": _cheapest_over_ours(matrix, outcomes),
        "cost_ratio_isolated_tenant": ratio(usd, elastic("isolated-tenant"), ours),
        "energy_ratio_strong": ratio(joules, elastic("strong"), ours),
        "p95_ratio_isolated_rented": ratio(p95, ours, elastic("isolated")),
        "p95_ratio_strong_rented": ratio(p95, ours, elastic("strong")),
    }


def _cheapest_over_ours(matrix: Matrix, outcomes: Outcomes) -> Spread:
    """On rented machines, the cheapest of all baselines, chosen anew for each seed."""
    ours = outcomes.each(matrix.headline(OURS))
    others = [outcomes.each(matrix.headline(one)) for one in matrix.elastic if one != OURS]
    least = [min(usd(one) for one in by_seed) for by_seed in zip(*others, strict=True)]
    return Spread.of([best / usd(one) for one, best in zip(ours, least, strict=True)])


def over_best(figure: Figure, matrix: Matrix, outcomes: Outcomes) -> Spread:
    """Ours over the best of all baselines on the same fleet, chosen anew for each seed."""
    ours = outcomes.each(matrix.same_fleet(OURS))
    others = [outcomes.each(matrix.same_fleet(one)) for one in matrix.fixed if one != OURS]
    least = [min(figure(one) for one in by_seed) for by_seed in zip(*others, strict=True)]
    return Spread.of([figure(one) / best for one, best in zip(ours, least, strict=True)])


@dataclass(frozen=True, slots=True)
class Loss:
    """A comparison in which a baseline's median is better than ours."""

    where: str
    measure: str
    policy: str
    ours: float
    theirs: float


def losses(
    where: str, by_policy: Mapping[str, Sequence[Outcome]], figures: Mapping[str, Figure]
) -> list[Loss]:
    """All of one comparison; ours has to be among the policies."""
    found: list[Loss] = []
    for measure, figure in figures.items():
        ours = spread(figure, by_policy[OURS]).median
        for policy, outcomes in by_policy.items():
            theirs = spread(figure, outcomes).median
            if policy != OURS and theirs < ours * (1 - EQUAL):
                found.append(Loss(where, measure, policy, ours, theirs))
    return found


MEASURES: dict[str, Figure] = {
    "cost (USD)": usd,
    "energy (MJ)": lambda outcome: joules(outcome) / 1e6,
    "p50 (s)": p50,
    "p95 (s)": p95,
}


def all_losses(matrix: Matrix, outcomes: Outcomes) -> list[Loss]:
    """Headline, same fleet, offers, interruptions, requests and every point of every sweep."""
    elastic = {one: outcomes.each(matrix.headline(one)) for one in matrix.elastic}
    found = losses("rented machines", elastic, MEASURES)
    fixed = {one: outcomes.each(matrix.same_fleet(one)) for one in matrix.fixed}
    found += losses("same fleet", fixed, MEASURES)
    for price in MARKETS:
        at = {one: outcomes.each(matrix.market(price, one)) for one in THREE}
        found += losses(f"offers: {' + '.join(price).replace('_', ' ')}", at, MEASURES)
    for sweep in matrix.sweeps:
        for x, changes in sweep.points:
            at = {
                policy: outcomes.each(matrix.point(sweep, changes, policy))
                for policy in sweep.policies
            }
            found += losses(f"{sweep.name} at {x:g}", at, MEASURES)
    for per_hour in (7, 15):
        at = {one: outcomes.each(matrix.preempted(per_hour, one)) for one in BESIDE}
        found += losses(f"{per_hour} interruptions an hour", at, MEASURES)
    single = {one: outcomes.each(matrix.interactive(one)) for one in BESIDE}
    return found + losses("single requests beside a batch", single, REQUESTS)


def _request(name: str) -> Figure:
    return lambda outcome: float(outcome["latency_by_template"][CHAT][name])


#: The template of single requests, and how long they take.
CHAT = "chat-8b"
REQUESTS: dict[str, Figure] = {f"{name} (s)": _request(name) for name in ("p50", "p95", "p99")}


@dataclass(frozen=True, slots=True)
class Idle:
    """A part of ours without which a median is better: it does not pay there."""

    part: str
    measure: str
    without: float


def useless(matrix: Matrix, outcomes: Outcomes) -> list[Idle]:
    """`without` is the figure without the part, as a multiple of the whole's."""
    found: list[Idle] = []
    for name in matrix.ablations:
        rented = outcomes.each(matrix.ablation(name)), outcomes.each(matrix.whole(name))
        fleet = outcomes.each(matrix.ablation_fixed(name)), outcomes.each(matrix.whole_fixed(name))
        for words, figure, (told, whole) in (
            ("cost, rented", usd, rented),
            ("energy, rented", joules, rented),
            ("p50, same fleet", p50, fleet),
            ("p95, same fleet", p95, fleet),
        ):
            without = ratio(figure, told, whole).median
            if without < 1 - EQUAL:
                found.append(Idle(name, words, without))
    return found
