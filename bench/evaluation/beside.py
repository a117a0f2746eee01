"""Tables of what is beside cost and latency: shares, interruptions, decision time, offers."""

from .findings import CHAT
from .matrix import BESIDE, MARKETS, THREE, Matrix
from .running import Outcome, Outcomes
from .spreads import Figure, Spread, p95, ratio, spread, usd
from .tables import name_of, table
from .verdicts import extra, lost_runs, percent


def worst_share(outcome: Outcome, weights: dict[str, float]) -> float:
    """The least that a tenant got of what its weight entitles it to; 1 is exactly its share."""
    got = {name: float(told["usd"]) for name, told in outcome["tenants"].items()}
    total, weight = sum(got.values()), sum(weights.values())
    if not total:
        return 0.0
    return min(got[name] / total / (weights[name] / weight) for name in weights)


def shares(matrix: Matrix, outcomes: Outcomes, weights: dict[str, float]) -> str:
    rows = []
    for policy in BESIDE:
        told = outcomes.each(matrix.shares(policy))
        worst = Spread.of([worst_share(one, weights) for one in told])
        rows.append([name_of(policy), worst.text()])
    return table(("policy", "least share that a tenant got of what it is due"), rows)


def interactive(matrix: Matrix, outcomes: Outcomes) -> str:
    rows = []
    for policy in BESIDE:
        told = outcomes.each(matrix.interactive(policy))
        latency = [one["latency_by_template"][CHAT] for one in told]
        figures = [
            f"{Spread.of([one[name] for one in latency]).median:,.2f}"
            for name in ("p50", "p95", "p99")
        ]  # fmt: skip
        rows.append([name_of(policy), *figures, f"{latency[0]['runs']}"])
    return table(("policy", "p50 (s)", "p95 (s)", "p99 (s)", "requests answered"), rows)


def interruptions(matrix: Matrix, outcomes: Outcomes) -> str:
    """Lost: runs that did not succeed. Extra: GPU seconds beside those without interruptions."""
    rows = []
    for policy in BESIDE:
        calm = outcomes.each(matrix.preempted(0, policy))
        for per_hour in (7, 15):
            told = outcomes.each(matrix.preempted(per_hour, policy))
            more = extra(told, calm)
            redone = spread(lambda one: one["redone_gpu_s"] / max(one["busy_gpu_s"], 1e-9), told)
            rows.append(
                [
                    name_of(policy), f"{per_hour}",
                    f"{spread(lambda one: one['interruptions'], told).median:.0f}",
                    f"{sum(map(lost_runs, told))}",
                    f"{sum(one['doubled'] for one in told)}",
                    percent(more),
                    f"{redone.median:.1%}", f"{ratio(p95, told, calm).median:.2f}",
                ]
            )  # fmt: skip
    head = (
        "policy", "an hour", "happened", "runs lost", "results doubled", "GPU seconds more",
        "of them thrown away", "p95, times calm",
    )  # fmt: skip
    return table(head, rows)


def decisions(matrix: Matrix, outcomes: Outcomes) -> str:
    rows = []
    for policy in matrix.elastic:
        told = outcomes.each(matrix.headline(policy))
        figures = ("decide_us_p50", "decide_us_p99", "decide_us_mean")
        values = [f"{spread(_of(name), told).median:,.0f}" for name in figures]
        rows.append([name_of(policy), *values, f"{spread(_of('decisions'), told).median:,.0f}"])
    return table(("policy", "median (us)", "p99 (us)", "mean (us)", "decisions"), rows)


def _of(name: str) -> Figure:
    return lambda outcome: float(outcome[name])


def offers(matrix: Matrix, outcomes: Outcomes) -> str:
    """What kinds of offers are worth: the bill with each kind more."""
    rows = []
    for price in MARKETS:
        row = [" + ".join(price).replace("_", " ")]
        for policy in THREE:
            told = outcomes.each(matrix.market(price, policy))
            row += [f"{spread(usd, told).median:.2f}", f"{spread(p95, told).median:,.0f}"]
        rows.append(row)
    head = [title for policy in THREE for title in (f"{policy}: USD", f"{policy}: p95 (s)")]
    return table(("offers", *head), rows)
