"""What was aimed at beside what was reached: one line for each aim, from figures alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import real
from .findings import headline
from .matrix import OURS, Matrix
from .running import Outcome, Outcomes
from .spreads import Spread, over_oracle, p50, ratio, spread

TITLES = {
    "cost_ratio_isolated": "cost of `isolated`, as a multiple of ours",
    "cost_ratio_strong": "cost of `strong`, as a multiple of ours",
    "energy_ratio_isolated": "energy of `isolated`, as a multiple of ours",
    "cost_over_oracle": "our cost, as a multiple of the oracle's bound",
    "p95_ratio_best_baseline": "our p95 latency over that of the best baseline, same fleet",
    "p50_ratio_best_baseline": "our p50 latency over that of the best baseline, same fleet",
    "usd_ratio_best_baseline": "our cost over that of the best baseline, same fleet",
    "cost_ratio_cheapest": "cost of the cheapest baseline of each seed, as a multiple of ours",
    "cost_ratio_isolated_tenant": "cost of `isolated-tenant`, as a multiple of ours",
    "energy_ratio_strong": "energy of `strong`, as a multiple of ours",
    "p95_ratio_isolated_rented": "our p95 latency over that of `isolated`, rented machines",
    "p95_ratio_strong_rented": "our p95 latency over that of `strong`, rented machines",
}
AT_LEAST: Mapping[str, float] = {
    "cost_ratio_isolated": 5.0,
    "cost_ratio_strong": 1.5,
    "energy_ratio_isolated": 4.0,
}
AT_MOST: Mapping[str, float] = {"cost_over_oracle": 1.25}
#: To be below this.
BELOW: Mapping[str, float] = {"p95_ratio_best_baseline": 1.0, "p50_ratio_best_baseline": 1.0}
#: Of GPU seconds, by interruptions.
MORE_AIM = 0.10
#: Isolated over shared, on real workers.
CPU_AIM = 4.0
DECISION_MEDIAN_MS, DECISION_P99_MS = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim: `sense` is `at least`, `at most` or `below`; `shown` what was reached, in words."""

    name: str
    title: str
    sense: str
    aim: float
    reached: float
    shown: str

    @property
    def met(self) -> bool:
        if self.sense == "at least":
            return self.reached >= self.aim
        return self.reached < self.aim if self.sense == "below" else self.reached <= self.aim


def verdicts(
    matrix: Matrix, outcomes: Outcomes, measured: Mapping[str, Any] | None = None
) -> list[Verdict]:
    """All aims; those on real processes if they were `measured`, see `real.py`."""
    figures = headline(matrix, outcomes)
    found = [
        Verdict(name, TITLES[name], sense, aim, figures[name].median, figures[name].text())
        for sense, aims in (("at least", AT_LEAST), ("at most", AT_MOST), ("below", BELOW))
        for name, aim in aims.items()
    ]
    for per_hour in (7, 15):
        found += _interrupted(matrix, outcomes, per_hour)
    return found + (_real(measured) if measured else [])


def _interrupted(matrix: Matrix, outcomes: Outcomes, per_hour: int) -> list[Verdict]:
    told = outcomes.each(matrix.preempted(per_hour))
    more = extra(told, outcomes.each(matrix.preempted(0)))
    lost, doubled = sum(map(lost_runs, told)), sum(int(one["doubled"]) for one in told)
    at = f"at {per_hour} interruptions an hour"
    name = f"interrupted_{per_hour}"
    return [
        Verdict(
            f"{name}_gpu_seconds", f"GPU-seconds more {at}", "at most", MORE_AIM, more.median,
            percent(more),
        ),
        Verdict(f"{name}_lost", f"runs lost {at}", "at most", 0, lost, f"{lost}"),
        Verdict(f"{name}_doubled", f"results doubled {at}", "at most", 0, doubled, f"{doubled}"),
    ]  # fmt: skip


def extra(told: list[Outcome], calm: list[Outcome]) -> Spread:
    """GPU-seconds beyond those without interruptions, as a share of them."""
    more = ratio(lambda one: float(one["busy_gpu_s"]), told, calm)
    return Spread(more.median - 1, more.least - 1, more.most - 1, more.seeds)


def percent(one: Spread) -> str:
    return f"{one.median:+.1%} ({one.least:+.1%} to {one.most:+.1%})"


def lost_runs(outcome: Outcome) -> int:
    """Runs that did not come to a good end."""
    return int(outcome["unsettled"]) + int(outcome["failed_runs"])


def _real(measured: Mapping[str, Any]) -> list[Verdict]:
    found = []
    for one in measured["tenants"]["by"]:
        times = one["CPU-seconds"]["ratio"]
        title = f"real machine: CPU-seconds of isolated pipelines over ours, {one['overlap']:.0%}"
        name = f"real_cpu_ratio_{100 * one['overlap']:.0f}"
        found.append(Verdict(name, title + " common", "at least", CPU_AIM, times, f"{times:.2f}"))
    sessions = measured["fidelity"]["sessions"]
    for part, words in real.PARTS.items():
        worst = max(abs(real.error(one[part])) for one in sessions)
        title = f"simulator's error against real runs, the worst: {words}"
        name = f"fidelity_{part}"
        found.append(Verdict(name, title, "below", real.ERROR_AIM, worst, f"{worst:.0%}"))
    told = measured["decisions"]
    median = max(told[phase]["median_ms"] for phase in ("start", "steady"))
    slow = max(told[phase]["p99_ms"] for phase in ("start", "steady"))
    at = f"a decision at {told['tasks']:,} ready tasks and {told['workers']:,} workers, ms"
    return [
        *found,
        Verdict(
            "decision_median_ms", f"median of {at}", "below", DECISION_MEDIAN_MS, median,
            f"{median:.2f}",
        ),
        Verdict("decision_p99_ms", f"p99 of {at}", "below", DECISION_P99_MS, slow, f"{slow:.2f}"),
    ]  # fmt: skip


def missed(
    matrix: Matrix,
    outcomes: Outcomes,
    found: list[Verdict],
    measured: Mapping[str, Any] | None = None,
) -> str:
    """A sentence for each aim that was missed, with what the figures tell of why."""
    lines = [
        f"- Missed: {one.title}. The aim is {one.sense} {one.aim:g}; it is {one.shown}."
        f"{_why(one.name, matrix, outcomes)}"
        f"{_why_really(one.name, measured) if measured else ''}"
        for one in found
        if not one.met
    ]
    return "\n".join(lines) if lines else "All aims are met."


def _why(name: str, matrix: Matrix, outcomes: Outcomes) -> str:
    if name == "cost_over_oracle":
        return _above_the_bound(matrix, outcomes)
    if name == "cost_ratio_strong":
        theirs = spread(over_oracle, outcomes.each(matrix.headline("strong")))
        return (
            f" `strong`, with settings found for this workload, is itself at {theirs.text()} times "
            "the bound, and nobody could be cheaper than it by more than that. Without such "
            'settings it costs more: see "Cost against latency".'
        )
    if name == "p50_ratio_best_baseline":
        medians = {
            policy: spread(p50, outcomes.each(matrix.same_fleet(policy))).median
            for policy in matrix.fixed
        }
        best = min((one for one in matrix.fixed if one != OURS), key=lambda one: medians[one])
        return (
            f" That is against whichever is the best on each seed. Over all seeds the medians are "
            f"{medians[OURS]:.0f} s for ours, and {medians[best]:.0f} s for `{best}`, the next."
        )
    return ""


def _why_really(name: str, measured: Mapping[str, Any]) -> str:
    """Likewise, of what was measured on real processes."""
    if name.startswith("real_cpu_ratio"):
        by = {
            f"real_cpu_ratio_{100 * one['overlap']:.0f}": one for one in measured["tenants"]["by"]
        }
        fewer = by[name]["tasks executed"]["ratio"]
        return f" Only {fewer:.2f} times fewer tasks are left when equal ones are done once."
    if name in ("fidelity_batches", "fidelity_mean_batch"):
        return (
            " On processors a larger batch gains so little that the policy's choice of a size is "
            "nearly a tie, which small errors of times decide; times themselves are closer."
        )
    if name == "decision_median_ms":
        return " Most of it is arithmetic on small arrays and keeping the reasons of a decision."
    return ""


def _above_the_bound(matrix: Matrix, outcomes: Outcomes) -> str:
    ours = outcomes.each(matrix.headline(OURS))
    busy = Spread.of([one["utilisation"] for one in ours]).median
    least = Spread.of([one["usd"] * one["utilisation"] / one["bound"]["usd"] for one in ours])
    return (
        f" GPUs work, or load, for {busy:.0%} of the time that they are rented; the rest is "
        "starting and waiting, of which the bound has hardly any. Without that it would be about "
        f"{least.median:.2f}: loads, batches that end on their longest rows, and machines that "
        "were not the cheapest for their work."
    )
