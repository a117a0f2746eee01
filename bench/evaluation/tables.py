"""Tables of the page, in Markdown."""

from collections.abc import Iterable, Sequence

from .findings import Loss
from .matrix import MISJUDGED, OURS, STEPS, Matrix, Sweep
from .running import Outcome, Outcomes
from .spreads import (
    Spread,
    joules,
    joules_over_oracle,
    over_oracle,
    p50,
    p95,
    p99,
    ratio,
    spread,
    usd,
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def name_of(policy: str) -> str:
    return f"**{policy}**" if policy == OURS else policy


def median(figure: object, outcomes: Sequence[Outcome], digits: int = 2) -> str:
    return spread(figure, outcomes).text(digits)  # type: ignore[arg-type]


def elastic(matrix: Matrix, outcomes: Outcomes) -> str:
    """Every policy on rented machines; cheapest first."""
    ours = outcomes.each(matrix.headline(OURS))
    rows = []
    for policy in matrix.elastic:
        told = outcomes.each(matrix.headline(policy))
        cost = spread(usd, told)
        row = [
            name_of(policy), cost.text(), f"{ratio(usd, told, ours).median:.2f}",
            f"{spread(over_oracle, told).median:.2f}",
            f"{spread(lambda one: joules(one) / 1e6, told).median:,.1f}",
            f"{ratio(joules, told, ours).median:.2f}",
            f"{spread(joules_over_oracle, told).median:.2f}",
            f"{spread(p50, told).median:,.0f}", f"{spread(p95, told).median:,.0f}",
            share([one["deadlines_met"] for one in told]),
            f"{spread(lambda one: one['utilisation'], told).median:.0%}",
            f"{spread(lambda one: one['mean_batch'], told).median:,.0f}",
        ]  # fmt: skip
        rows.append((cost.median, row))
    head = (
        "policy", "USD", "times ours", "over the oracle (regret)", "MJ", "times ours",
        "over the oracle", "p50 (s)", "p95 (s)", "deadlines met", "busy", "rows a batch",
    )  # fmt: skip
    return table(head, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def fixed(matrix: Matrix, outcomes: Outcomes) -> str:
    """Every policy on one fleet; the quickest at the 95th percentile first."""
    ours = outcomes.each(matrix.same_fleet(OURS))
    rows = []
    for policy in matrix.fixed:
        told = outcomes.each(matrix.same_fleet(policy))
        slow = spread(p95, told)
        row = [
            name_of(policy), median(p50, told, 0), slow.text(0), f"{spread(p99, told).median:,.0f}",
            f"{ratio(p50, told, ours).median:.2f}", f"{ratio(p95, told, ours).median:.2f}",
            f"{spread(usd, told).median:.2f}",
            f"{spread(lambda one: joules(one) / 1e6, told).median:,.1f}",
            f"{spread(lambda one: one['makespan_s'], told).median:,.0f}",
            share([one["deadlines_met"] for one in told]),
        ]  # fmt: skip
        rows.append((slow.median, row))
    head = (
        "policy", "p50 (s)", "p95 (s)", "p99 (s)", "p50, times ours", "p95, times ours",
        "USD", "MJ", "makespan (s)", "deadlines met",
    )  # fmt: skip
    return table(head, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def share(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{Spread.of(known).median:.0%}" if known else "none had one"


def steps(matrix: Matrix, outcomes: Outcomes) -> str:
    """What each idea takes off the bill, one after the other."""
    rows, before, first = [], None, None
    for policy, about in STEPS:
        told = outcomes.each(matrix.headline(policy))
        first = first or told
        factor = ratio(usd, before, told).text() if before else ""
        rows.append(
            [
                f"{about} (`{policy}`)", f"{spread(usd, told).median:.2f}", factor,
                f"{ratio(usd, first, told).median:.2f}", f"{ratio(joules, first, told).median:.2f}",
            ]
        )  # fmt: skip
        before = told
    head = ("with", "USD", "saves a factor of", "in all", "energy in all")
    return table(head, rows)


def ablations(matrix: Matrix, outcomes: Outcomes) -> str:
    """Ours without one part: figures as multiples of the whole's."""
    rows = []
    for name in matrix.ablations:
        told, whole, on_fleet, whole_fixed = (
            outcomes.each(of(name))
            for of in (matrix.ablation, matrix.whole, matrix.ablation_fixed, matrix.whole_fixed)
        )
        rows.append(
            [
                name, ratio(usd, told, whole).text(), ratio(joules, told, whole).text(),
                f"{ratio(p95, told, whole).median:.2f}",
                ratio(p50, on_fleet, whole_fixed).text(), ratio(p95, on_fleet, whole_fixed).text(),
            ]
        )  # fmt: skip
    static, whole = outcomes.each(matrix.static()), outcomes.each(matrix.whole(""))
    cost, energy = ratio(usd, static, whole), ratio(joules, static, whole)
    slow = ratio(p95, static, whole).median
    rows.append(["elasticity", cost.text(), energy.text(), f"{slow:.2f}", "", ""])
    head = (
        "without", "USD, rented", "energy, rented", "p95, rented",
        "p50, same fleet", "p95, same fleet",
    )  # fmt: skip
    return table(head, rows)


def prefixes(matrix: Matrix, outcomes: Outcomes) -> str:
    """Prompt tokens that were not read again, of those that ideal batches would save."""

    def saved(one: Outcome) -> float:
        return float(one["prefix_tokens_saved"] / max(1, one["prefix_tokens_possible"]))

    named = [("ours", matrix.whole("")), ("strong", matrix.headline("strong"))]
    if "prefix" in matrix.ablations:
        named.insert(1, ("ours without `prefix`", matrix.ablation("prefix")))
    told = [f"{name} {spread(saved, outcomes.each(cells)).median:.0%}" for name, cells in named]
    return f"Of the shared prefixes' tokens that could be saved: {', '.join(told)}."


def misjudged(matrix: Matrix, outcomes: Outcomes) -> str:
    """Wrong estimates: figures as multiples of those with right ones."""
    right = outcomes.each(matrix.misjudged(""))
    rows = []
    for name in MISJUDGED:
        told = outcomes.each(matrix.misjudged(name))
        figures = (ratio(one, told, right).text() for one in (p50, p95, usd))
        rows.append([name, *figures])
    return table(("times are misjudged", "p50", "p95", "USD"), rows)


def sweep(matrix: Matrix, outcomes: Outcomes, one: Sweep) -> str:
    rows = []
    for x, changes in one.points:
        by_policy = {
            policy: outcomes.each(matrix.point(one, changes, policy)) for policy in one.policies
        }
        ours = by_policy[OURS]
        row = [
            f"{x:g}", f"{spread(usd, ours).median:.2f}", f"{spread(over_oracle, ours).median:.2f}",
            f"{spread(p95, ours).median:,.0f}",
        ]  # fmt: skip
        for policy in one.policies[1:]:
            told = by_policy[policy]
            row += [ratio(usd, told, ours).text(), f"{ratio(p95, told, ours).median:.2f}"]
        rows.append(row)
    others = [
        title
        for policy in one.policies[1:]
        for title in (f"{policy}: USD / ours", f"{policy}: p95 / ours")
    ]  # fmt: skip
    head = (one.axis, "ours, USD", "ours / oracle", "ours, p95 (s)", *others)
    return table(head, rows)


def lost(found: Sequence[Loss]) -> str:
    """One line for each comparison, with all that are better than ours in it."""
    by: dict[tuple[str, str], list[Loss]] = {}
    for one in found:
        by.setdefault((one.where, one.measure), []).append(one)
    rows = []
    for (where, measure), better in by.items():
        better.sort(key=lambda one: one.theirs)
        named = [f"{one.policy} {figure(one.theirs)}" for one in better[:NAMED]]
        named += [f"{len(better) - NAMED} more"] if len(better) > NAMED else []
        ours, best = better[0].ours, better[0].theirs
        rows.append([where, measure, figure(ours), ", ".join(named), f"{ours / best:.2f}"])
    return table(("where", "measure", "ours", "better", "ours over the best"), rows)


#: Of the policies that are better than ours in one comparison.
NAMED = 4


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
