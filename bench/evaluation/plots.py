"""The page's pictures: few, and each with units."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from . import frontier
from .matrix import OURS, STEPS, Matrix, Sweep
from .running import Outcomes
from .spreads import Figure, Spread, over_oracle, p50, p95, spread, usd

COLOURS = {
    OURS: "#c0392b",
    "strong": "#2c3e50",
    "isolated": "#7f8c8d",
    "isolated-tenant": "#95a5a6",
}
OTHER = "#bdc3c7"
DPI = 120


def draw_all(matrix: Matrix, outcomes: Outcomes, tried: frontier.Tried, folder: Path) -> list[Path]:
    """Write every picture; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _cost(matrix, outcomes, folder / "evaluation-cost.png"),
        _steps(matrix, outcomes, folder / "evaluation-gains.png"),
        _frontier(frontier.points(matrix, outcomes, tried), folder / "evaluation-frontier.png"),
        _latency(matrix, outcomes, folder / "evaluation-latency.png"),
        _sweeps(matrix, outcomes, folder / "evaluation-sweeps.png"),
    ]


def _save(path: Path) -> Path:
    pyplot.tight_layout()
    # Without a date and a version in it, equal figures give equal files.
    pyplot.savefig(path, dpi=DPI, metadata={"Software": None})
    pyplot.close()
    return path


def _bars(axes: Axes, names: Sequence[str], spreads: Sequence[Spread], unit: str) -> None:
    """Horizontal bars of medians, with ranges; the least on top."""
    pairs = sorted(zip(spreads, names, strict=True), key=lambda pair: -pair[0].median)
    for at, (one, name) in enumerate(pairs):
        axes.barh(at, one.median, color=COLOURS.get(name, OTHER))
        axes.plot([one.least, one.most], [at, at], color="black", linewidth=1)
    axes.set_yticks(range(len(pairs)), [name for _, name in pairs])
    axes.set_xlabel(unit)


def _cost(matrix: Matrix, outcomes: Outcomes, path: Path) -> Path:
    _, axes = pyplot.subplots(figsize=(7, 0.35 * len(matrix.elastic) + 1.2))
    told = [outcomes.each(matrix.headline(policy)) for policy in matrix.elastic]
    figures = [spread(over_oracle, one) for one in told]
    _bars(axes, matrix.elastic, figures, "cost, as a multiple of the oracle's bound")
    axes.axvline(1, color="black", linestyle=":")
    return _save(path)


def _steps(matrix: Matrix, outcomes: Outcomes, path: Path) -> Path:
    _, axes = pyplot.subplots(figsize=(7, 2.6))
    costs = [spread(usd, outcomes.each(matrix.headline(policy))) for policy, _ in STEPS]
    for at, ((policy, _), cost) in enumerate(zip(STEPS, costs, strict=True)):
        axes.barh(-at, cost.median, color=COLOURS.get(policy, OTHER))
        axes.plot([cost.least, cost.most], [-at, -at], color="black", linewidth=1)
        axes.text(cost.most, -at, f"  {cost.median:.2f}", va="center")
    labels = [about.partition(":")[0] for _, about in STEPS]
    axes.set_yticks([-at for at in range(len(STEPS))], labels)
    axes.set_xlim(0, 1.15 * max(cost.most for cost in costs))
    axes.set_xlabel("bill (USD)")
    return _save(path)


def _frontier(points: Sequence[frontier.Point], path: Path) -> Path:
    _, axes = pyplot.subplots(figsize=(7, 4))
    theirs = [one for one in points if one.policy != OURS]
    ours = [one for one in points if one.policy == OURS]
    label = "strong, settings that were tried"
    xs, ys = [one.p95_s for one in theirs], [one.usd for one in theirs]
    axes.scatter(xs, ys, color=COLOURS["strong"], marker="s", s=22, label=label)
    xs, ys = [one.p95_s for one in ours], [one.usd for one in ours]
    axes.plot(xs, ys, color=COLOURS[OURS], marker="o", label="ours, by haste")
    for one in ours:
        axes.annotate(
            f"{one.haste:g}", (one.p95_s, one.usd), textcoords="offset points", xytext=(6, 5),
            color=COLOURS[OURS],
        )  # fmt: skip
    axes.set_xlabel("95th percentile of latency (s)")
    axes.set_ylabel("bill (USD)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    return _save(path)


def _latency(matrix: Matrix, outcomes: Outcomes, path: Path) -> Path:
    _, both = pyplot.subplots(1, 2, figsize=(9, 0.33 * len(matrix.fixed) + 1.2), sharey=False)
    told = [outcomes.each(matrix.same_fleet(policy)) for policy in matrix.fixed]
    for axes, figure, name in zip(both, (p50, p95), ("median", "95th percentile"), strict=True):
        _bars(axes, matrix.fixed, [spread(figure, one) for one in told], f"{name} of latency (s)")
    return _save(path)


def _sweeps(matrix: Matrix, outcomes: Outcomes, path: Path) -> Path:
    rows = -(-len(matrix.sweeps) // 3)
    _, grid = pyplot.subplots(rows, 3, figsize=(12, 3.2 * rows), squeeze=False)
    flat = [axes for line in grid for axes in line]
    for axes, sweep in zip(flat, matrix.sweeps, strict=False):
        fixed = sweep.scenario == "fixed-fleet"
        _sweep(axes, sweep, matrix, outcomes, p95 if fixed else usd)
        axes.set_ylabel("p95 of latency (s)" if fixed else "bill (USD)")
    for axes in flat[len(matrix.sweeps) :]:
        axes.axis("off")
    return _save(path)


def _sweep(axes: Axes, sweep: Sweep, matrix: Matrix, outcomes: Outcomes, figure: Figure) -> None:
    xs = [x for x, _ in sweep.points]
    for policy in sweep.policies:
        told = [
            spread(figure, outcomes.each(matrix.point(sweep, changes, policy)))
            for _, changes in sweep.points
        ]
        colour = COLOURS.get(policy)
        axes.plot(xs, [one.median for one in told], marker="o", label=policy, color=colour)
        axes.fill_between(
            xs, [one.least for one in told], [one.most for one in told], alpha=0.15, color=colour
        )
    axes.set_xlabel(sweep.axis)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
