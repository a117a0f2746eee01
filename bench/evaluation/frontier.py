"""Cost against latency: what tuning by hand gives `strong`, and what ours does with one weight.

On the seed of the tuning: all settings of `strong` that were tried, and ours at several values
of `market.limits.haste`, which says how much the value of waiting work counts when machines are
rented. On the seeds of the headline: `strong` as it comes, without settings for the workload.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import tables
from .cells import Cell
from .matrix import OURS, Matrix, shipped_haste
from .running import Outcomes
from .spreads import joules, p95, ratio, spread, usd

#: Policy, cell, USD, p95 in seconds, of all settings that were tried.
Tried = Sequence[tuple[str, Cell, float, float]]
SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of a policy, on the seed of the tuning. `haste` is ours alone."""

    policy: str
    setting: str
    usd: float
    p95_s: float
    haste: float | None = None


def points(matrix: Matrix, outcomes: Outcomes, tried: Tried) -> list[Point]:
    """Ours first, by rising haste; then those of `strong`, the cheapest first."""
    ours = []
    for haste in matrix.hastes:
        told = outcomes.of(matrix.hasty(haste))
        ours.append(Point(OURS, f"haste {haste:g}", usd(told), p95(told), haste))
    theirs = [
        Point("strong", in_words(cell), cost, slow)
        for name, cell, cost, slow in tried
        if name == "headline strong"
    ]
    return ours + sorted(theirs, key=lambda one: (one.usd, one.p95_s))


def in_words(cell: Cell) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in cell.settings)


def no_slower(found: Sequence[Point], p95_s: float) -> Point | None:
    """The cheapest setting of `strong` whose 95th percentile is not above; None if none is."""
    quick = [one for one in found if one.policy == "strong" and one.p95_s <= p95_s + SAME]
    return min(quick, key=lambda one: one.usd, default=None)


def as_json(matrix: Matrix, outcomes: Outcomes, tried: Tried) -> dict[str, Any]:
    found = points(matrix, outcomes, tried)
    ours = next(one for one in found if one.haste == shipped_haste())
    rival = no_slower(found, ours.p95_s)
    return {
        "strong_no_slower_over_ours": round(rival.usd / ours.usd, 4) if rival else None,
        "strong_untuned_over_ours": asdict(_untuned(matrix, outcomes)[0]),
        "points": [asdict(one) for one in found],
    }


def _untuned(matrix: Matrix, outcomes: Outcomes) -> list[Any]:
    """Cost, energy and p95 of `strong` as it comes, over ours."""
    theirs, ours = outcomes.each(matrix.untuned()), outcomes.each(matrix.headline(OURS))
    return [ratio(figure, theirs, ours) for figure in (usd, joules, p95)]


def section(matrix: Matrix, outcomes: Outcomes, tried: Tried) -> str:
    found = points(matrix, outcomes, tried)
    rows = []
    for one in found:
        if one.policy == OURS:
            rival = no_slower(found, one.p95_s)
            told = [f"{rival.usd:.2f}", f"{rival.usd / one.usd:.2f}"] if rival else ["none", ""]
            setting = rival.setting if rival else ""
            mark = " (as evaluated)" if one.haste == shipped_haste() else ""
            rows.append([one.setting + mark, f"{one.usd:.2f}", f"{one.p95_s:,.0f}", *told, setting])
    head = (
        "ours at", "USD", "p95 (s)", "cheapest `strong` that is no slower, USD", "times ours",
        "its settings",
    )  # fmt: skip
    return f"""### Cost against latency

Who rents less waits longer: a policy is a curve, not a point. Here are the
{sum(one.policy != OURS for one in found)} settings of `strong` that were tried, and ours at
{len(matrix.hastes)} values of one weight, on the seed of the tuning.

{tables.table(head, rows)}
{_words(matrix, outcomes, found)}

![Cost against latency](images/evaluation-frontier.png)
"""


def _words(matrix: Matrix, outcomes: Outcomes, found: Sequence[Point]) -> str:
    ours = next(one for one in found if one.haste == shipped_haste())
    rival = no_slower(found, ours.p95_s)
    cheapest = next(one for one in found if one.policy == "strong")
    told = (
        f"At the p95 of ours as evaluated, the cheapest `strong` costs {rival.usd / ours.usd:.2f} "
        "times as much."
        if rival
        else "No setting of `strong` that was tried is as quick as ours as evaluated."
    )
    cost, energy, slow = _untuned(matrix, outcomes)
    plain = spread(usd, outcomes.each(matrix.untuned()))
    return (
        f"{told} The cheapest `strong` at any latency costs {cheapest.usd / ours.usd:.2f} times as "
        f"much, with a p95 of {cheapest.p95_s:,.0f} s to our {ours.p95_s:,.0f} s. As it comes, "
        f"without settings found for this workload, `strong` costs {plain.text()} USD on the seeds "
        f"of the headline: {cost.text()} times ours in cost, {energy.text()} in energy, "
        f"{slow.text()} in p95. Ours needs no such settings: it is as it comes."
    )
