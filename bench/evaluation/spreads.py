"""Medians and ranges over seeds; ratios are made seed by seed, on equal workloads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from .running import Outcome


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure over seeds."""

    median: float
    least: float
    most: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if not values:
            raise ValueError("there is nothing to take a median of")
        return cls(median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """`median (least to most)`; the median alone if there was one seed."""
        shown = f"{self.median:,.{digits}f}"
        if self.seeds == 1:
            return shown
        return f"{shown} ({self.least:,.{digits}f} to {self.most:,.{digits}f})"


Figure = Callable[[Outcome], float]


def usd(outcome: Outcome) -> float:
    return float(outcome["usd"])


def joules(outcome: Outcome) -> float:
    return float(outcome["joules"])


def p50(outcome: Outcome) -> float:
    return float(outcome["latency"]["p50"])


def p95(outcome: Outcome) -> float:
    return float(outcome["latency"]["p95"])


def p99(outcome: Outcome) -> float:
    return float(outcome["latency"]["p99"])


def over_oracle(outcome: Outcome) -> float:
    """Cost as a multiple of the bound of the same scenario and seed."""
    return usd(outcome) / float(outcome["bound"]["usd"])


def joules_over_oracle(outcome: Outcome) -> float:
    return joules(outcome) / float(outcome["bound"]["joules"])


def spread(figure: Figure, outcomes: Sequence[Outcome]) -> Spread:
    return Spread.of([figure(one) for one in outcomes])


def ratio(figure: Figure, above: Sequence[Outcome], below: Sequence[Outcome]) -> Spread:
    """Of two policies, seed by seed; both lists are in the order of seeds."""
    pairs = list(zip(above, below, strict=True))
    assert all(one["seed"] == other["seed"] for one, other in pairs), "seeds do not match"
    return Spread.of([figure(one) / figure(other) for one, other in pairs])
