"""What a simulation comes to: plain records, ready for JSON, the same from the same seed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How one run ended.

    Attributes:
        template: of its workflow.
        usd, joules: its shares of the leases that worked for it; idle machines are in nobody's.
        settled_ms: 0 if it had not settled when the simulation ended.
        deadline_met: None if it had no deadline.
    """

    run: str
    tenant: str
    template: str
    submitted_ms: int
    settled_ms: int
    status: str
    usd: float
    joules: float
    deadline_met: bool | None = None

    @property
    def latency_s(self) -> float:
        return (self.settled_ms - self.submitted_ms) / 1000


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of run latency in seconds, of runs that succeeded; 0 if none did."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    mean: float = 0.0
    runs: int = 0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        if not seconds:
            return cls()
        p50, p95, p99 = (float(np.percentile(seconds, q)) for q in (50, 95, 99))
        return cls(p50, p95, p99, float(np.mean(seconds)), len(seconds))


@dataclass(frozen=True, slots=True)
class Counts:
    """Tasks, by step and row: `asked` is the sum of what came of them, but for failures.

    Attributes:
        asked: what the steps of all runs wanted.
        distinct: fingerprints among them.
        executed: carried out for the step that asked first.
        reused: found in the action cache.
        joined: in flight for another step already.
        failed: for good.
        attempts: results and losses; more than `executed` where work was done again.
    """

    asked: int = 0
    distinct: int = 0
    executed: int = 0
    reused: int = 0
    joined: int = 0
    failed: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class TenantOutcome:
    usd: float
    joules: float
    runs: int
    latency: Latency


@dataclass(frozen=True, slots=True)
class Report:
    """One simulation, told.

    Attributes:
        data: by kind of input, `traces` or `fitted`, as `arrivals`, `lengths`, `prices`.
        usd: the bill: rented time by billing granularity, fixed machines for the whole of the
            makespan, and egress.
        usd_by_kind: of it, by kind of machine, and `egress`.
        joules: of all machines while they are there: idle, starting, busy.
        makespan_s: from the first submission to the last run's end.
        mean_batch: tasks in a lease.
        redone_gpu_s: GPU seconds of attempts that gave nothing, as their machine went.
        busy_s_by_kind: seconds in which machines of a kind worked, all together.
        busy_gpu_s, rented_gpu_s: GPUs times seconds in which a machine worked, and was there.
        interruptions: machines that were taken away while they were ours.
        launches, failed_launches: of rented machines.
        decide_us_p50, decide_us_p99, decide_us_mean: real time of one call of the policy.
        decisions: that it made. real_s: what the simulation took.
        prefix_tokens_saved, prefix_tokens_possible: prompt tokens not read again, as a row of
            the same batch had the same beginning; and if all rows of one engine had met.
        deadlines_met: share of runs with a deadline; None if none had one.
        doubled: distinct tasks that gave more than one counted result; 0 unless there is a bug.
        latency_by_template: as `latency`.
    """

    scenario: str
    policy: str
    seed: int
    data: dict[str, str]
    usd: float = 0.0
    usd_by_kind: dict[str, float] = field(default_factory=dict)
    joules: float = 0.0
    runs: tuple[RunOutcome, ...] = ()
    latency: Latency = Latency()
    latency_by_template: dict[str, Latency] = field(default_factory=dict)
    makespan_s: float = 0.0
    tasks: Counts = Counts()
    batches: int = 0
    mean_batch: float = 0.0
    redone_gpu_s: float = 0.0
    busy_s_by_kind: dict[str, float] = field(default_factory=dict)
    busy_gpu_s: float = 0.0
    rented_gpu_s: float = 0.0
    interruptions: int = 0
    launches: int = 0
    failed_launches: int = 0
    decisions: int = 0
    decide_us_p50: float = 0.0
    decide_us_p99: float = 0.0
    decide_us_mean: float = 0.0
    prefix_tokens_saved: int = 0
    prefix_tokens_possible: int = 0
    deadlines_met: float | None = None
    doubled: int = 0
    tenants: dict[str, TenantOutcome] = field(default_factory=dict)
    events: int = 0
    real_s: float = 0.0

    @property
    def utilisation(self) -> float:
        """Share of the time in which GPUs were there that they worked."""
        return self.busy_gpu_s / self.rented_gpu_s if self.rented_gpu_s else 0.0

    @property
    def unsettled(self) -> int:
        return sum(run.settled_ms == 0 for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "utilisation": self.utilisation, "unsettled": self.unsettled}

    def digest(self) -> str:
        """Of all that a seed settles: not of what the simulation itself took."""
        told = self.as_json()
        for name in ("real_s", "decide_us_p50", "decide_us_p99", "decide_us_mean"):
            del told[name]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
