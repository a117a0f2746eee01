"""Accounts of a simulation: who got what, what it cost, and what the Report says of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from flowmesh.base.ids import RunId, TaskId
from flowmesh.core.records import Run, RunStatus, Step, StepStatus
from flowmesh.core.state import Accepted, Changes
from flowmesh.sim.machines import Box
from flowmesh.sim.market import egress_usd
from flowmesh.sim.report import Counts, Latency, Report, RunOutcome, TenantOutcome
from flowmesh.sim.scenario import Scenario
from flowmesh.sim.tenants import Submission


@dataclass(slots=True)
class Ledger:
    """Fed with what `apply` changed; asked for the Report at the end.

    `cache` holds the tasks that have a result: what the action cache would.
    """

    cache: dict[TaskId, int] = field(default_factory=dict)
    submitted: dict[RunId, Submission] = field(default_factory=dict)
    settled: dict[RunId, tuple[int, str]] = field(default_factory=dict)
    usd: dict[RunId, float] = field(default_factory=dict)
    joules: dict[RunId, float] = field(default_factory=dict)
    executed: int = 0
    reused: int = 0
    joined: int = 0
    failed: int = 0
    attempts: int = 0
    asked: dict[str, None] = field(default_factory=dict)
    distinct: int = 0
    batches: int = 0
    batched: int = 0
    doubled: int = 0
    prefix_saved: int = 0
    prefix_seen: dict[tuple[str, str], int] = field(default_factory=dict)
    prefix_total: int = 0

    def accepted(self, one: Accepted) -> None:
        """A result counted."""
        self.attempts += 1
        if one.result.failure is None:
            times = self.cache.get(one.result.task, 0) + 1
            self.cache[one.result.task] = times
            self.doubled += times > 1
        share = 1 / max(1, len(one.runs))
        for run in one.runs:
            self.usd[run] = self.usd.get(run, 0.0) + one.usd * share
            self.joules[run] = self.joules.get(run, 0.0) + one.result.joules * share

    def take(self, changes: Changes) -> None:
        """What an event has changed, but for leases and steps to be worked on."""
        for one in changes.accepted:
            self.accepted(one)
        for spent in changes.spent:
            for run in spent.runs:
                self.usd[run] = self.usd.get(run, 0.0) + spent.usd / len(spent.runs)
        for step in changes.steps.values():
            if step.status is StepStatus.SUCCEEDED:
                self._step(step)
        for lease, _ in changes.granted:
            self.batches += 1
            self.batched += len(lease.tasks)

    def _step(self, step: Step) -> None:
        self.executed += step.executed
        self.reused += step.reused
        self.joined += step.joined
        self.failed += step.failed

    def expanded(self, fingerprint: str, rows: int) -> bool:
        """A step of this content was asked for; whether it is the first one."""
        if fingerprint in self.asked:
            return False
        self.asked[fingerprint] = None
        self.distinct += rows
        return True

    def could_share(self, key: str, prefix: str, tokens: int) -> None:
        """A new task has a prefix: at best, one task of its engine reads it for all."""
        self.prefix_total += tokens
        known = self.prefix_seen.get((key, prefix), 0)
        self.prefix_seen[key, prefix] = max(known, tokens)

    def run_settled(self, run: Run, now_ms: int) -> None:
        self.settled[run.id] = (now_ms, str(run.status))

    @property
    def open_runs(self) -> int:
        return len(self.submitted) - len(self.settled)

    def outcomes(self) -> tuple[RunOutcome, ...]:
        return tuple(self._outcome(one) for one in self.submitted.values())

    def _outcome(self, one: Submission) -> RunOutcome:
        settled_ms, status = self.settled.get(one.run, (0, "running"))
        met = None
        if one.deadline_ms:
            met = status == RunStatus.SUCCEEDED and settled_ms <= one.deadline_ms
        return RunOutcome(
            run=one.run,
            tenant=one.tenant,
            template=one.template,
            submitted_ms=one.at_ms,
            settled_ms=settled_ms,
            status=status,
            usd=self.usd.get(one.run, 0.0),
            joules=self.joules.get(one.run, 0.0),
            deadline_met=met,
        )

    def told(self, report: Report, scenario: Scenario, boxes: Iterable[Box], end_ms: int) -> Report:
        """The report with all that was counted here; machines are paid until `end_ms`."""
        runs = self.outcomes()
        latency = _latencies(runs)
        with_deadline = [run.deadline_met for run in runs if run.deadline_met is not None]
        saved, first = self.prefix_saved, sum(self.prefix_seen.values())
        report = replace(
            report,
            runs=runs,
            latency=latency.pop(""),
            latency_by_template=latency,
            tasks=Counts(
                asked=self.executed + self.reused + self.joined + self.failed,
                distinct=self.distinct,
                executed=self.executed,
                reused=self.reused,
                joined=self.joined,
                failed=self.failed,
                attempts=self.attempts,
            ),
            batches=self.batches,
            mean_batch=self.batched / self.batches if self.batches else 0.0,
            doubled=self.doubled,
            prefix_tokens_saved=saved,
            prefix_tokens_possible=self.prefix_total - first,
            deadlines_met=sum(with_deadline) / len(with_deadline) if with_deadline else None,
            tenants=_tenants(runs),
        )
        return _bill(report, scenario, list(boxes), end_ms)


def _latencies(runs: tuple[RunOutcome, ...]) -> dict[str, Latency]:
    """Of all (by the empty name), and by template."""
    good = [run for run in runs if run.status == RunStatus.SUCCEEDED]
    found = {"": Latency.of([run.latency_s for run in good])}
    for name in sorted(dict.fromkeys(run.template for run in runs)):
        found[name] = Latency.of([run.latency_s for run in good if run.template == name])
    return found


def _tenants(runs: tuple[RunOutcome, ...]) -> dict[str, TenantOutcome]:
    found: dict[str, TenantOutcome] = {}
    for name in sorted(dict.fromkeys(run.tenant for run in runs)):
        own = [run for run in runs if run.tenant == name]
        found[name] = TenantOutcome(
            usd=sum(run.usd for run in own),
            joules=sum(run.joules for run in own),
            runs=len(own),
            latency=Latency.of([run.latency_s for run in own if run.status == "succeeded"]),
        )
    return found


def _bill(report: Report, scenario: Scenario, boxes: list[Box], end_ms: int) -> Report:
    """What the world charges and draws, whatever the control plane believes."""
    usd: dict[str, float] = {}
    busy_s: dict[str, float] = {}
    joules = busy = rented = redone = 0.0
    for box in boxes:
        there_s = (_gone_ms(box, end_ms) - box.born_ms) / 1000
        joules += box.drawn_j + there_s * box.machine.idle_w
        busy += box.busy_s * box.machine.counted
        busy_s[box.machine.kind] = busy_s.get(box.machine.kind, 0.0) + box.busy_s
        rented += there_s * box.machine.counted
        redone += box.redone_s * box.machine.counted
        paid = box.rented.usd(end_ms) if box.rented else there_s * box.usd_per_hour / 3600
        usd[box.machine.kind] = usd.get(box.machine.kind, 0.0) + paid
        moved = egress_usd(scenario.network, box.place, box.fetched_bytes)
        if moved:
            usd["egress"] = usd.get("egress", 0.0) + moved
    return replace(
        report,
        usd=sum(usd.values()),
        usd_by_kind=dict(sorted(usd.items())),
        joules=joules,
        busy_s_by_kind=dict(sorted(busy_s.items())),
        busy_gpu_s=busy,
        rented_gpu_s=rented,
        redone_gpu_s=redone,
    )


def _gone_ms(box: Box, end_ms: int) -> int:
    return box.gone_ms if box.gone_ms else end_ms


def microseconds(taken_ns: list[int]) -> tuple[float, float, float]:
    """Median, 99th percentile and mean of what calls took; zeros for none."""
    if not taken_ns:
        return 0.0, 0.0, 0.0
    array = np.asarray(taken_ns, dtype=np.float64) / 1000
    p50, p99 = (float(one) for one in np.percentile(array, (50, 99)))
    return p50, p99, float(array.mean())
