"""The figures of the page, from outcomes alone: headline ratios, and where ours is not best."""

from collections.abc import Sequence
from dataclasses import dataclass

from .matrix import OURS, Matrix
from .running import Outcome, Outcomes
from .spreads import Figure, Spread, joules, over_oracle, p50, p95, ratio, spread, usd

#: What we want: `cost_ratio...` and `energy_ratio...` at least, the others at most.
AIMS = {
    "cost_ratio_isolated": 5.0,
    "cost_ratio_strong": 1.5,
    "energy_ratio_isolated": 4.0,
    "cost_over_oracle": 1.25,
    "p95_ratio_best_baseline": 1.0,
}
AT_LEAST = ("cost_ratio_isolated", "cost_ratio_strong", "energy_ratio_isolated")
#: Smaller differences are told as equal.
EQUAL = 0.005


def headline(matrix: Matrix, outcomes: Outcomes) -> dict[str, Spread]:
    """The five figures, and some beside them."""

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
        "cost_ratio_isolated_tenant": ratio(usd, elastic("isolated-tenant"), ours),
        "energy_ratio_strong": ratio(joules, elastic("strong"), ours),
    }


def over_best(figure: Figure, matrix: Matrix, outcomes: Outcomes) -> Spread:
    """Ours over the best of all baselines on the same fleet, chosen anew for each seed."""
    ours = outcomes.each(matrix.same_fleet(OURS))
    others = [outcomes.each(matrix.same_fleet(one)) for one in matrix.fixed if one != OURS]
    least = [min(figure(one) for one in by_seed) for by_seed in zip(*others, strict=True)]
    return Spread.of([figure(one) / best for one, best in zip(ours, least, strict=True)])


def met(name: str, value: float) -> bool:
    return value >= AIMS[name] if name in AT_LEAST else value <= AIMS[name]


@dataclass(frozen=True, slots=True)
class Loss:
    """A comparison in which a baseline's median is better than ours."""

    where: str
    measure: str
    policy: str
    ours: float
    theirs: float


def losses(
    where: str, by_policy: dict[str, Sequence[Outcome]], figures: dict[str, Figure]
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
    "cost (USD)": usd, "energy (J)": joules, "p50 (s)": p50, "p95 (s)": p95,
}  # fmt: skip


def all_losses(matrix: Matrix, outcomes: Outcomes) -> list[Loss]:
    """Headline, same fleet and every point of every sweep."""
    elastic = {one: outcomes.each(matrix.headline(one)) for one in matrix.elastic}
    found = losses("headline, rented machines", dict(elastic), MEASURES)
    fixed = {one: outcomes.each(matrix.same_fleet(one)) for one in matrix.fixed}
    found += losses("same fleet", dict(fixed), MEASURES)
    for sweep in matrix.sweeps:
        for x, changes in sweep.points:
            at = {
                policy: outcomes.each(matrix.point(sweep, changes, policy))
                for policy in sweep.policies
            }
            found += losses(f"{sweep.name} at {x:g}", dict(at), MEASURES)
    return found
