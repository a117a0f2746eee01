"""A whole deployment on a virtual clock: the real control plane, everything around it made up.

`simulate` is the door. The same scenario, policy and seed give the same Report, but for the
times that the simulation itself takes.
"""

import gc
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId
from flowmesh.core.check import check
from flowmesh.core.decisions import Decision, LaunchInstance, TerminateInstance
from flowmesh.core.events import Event, RunSubmitted, StepAssembled, StepExpanded, Tick
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Policy
from flowmesh.core.records import Lease, Run, RunStatus, Step, StepStatus
from flowmesh.core.state import Changes, State
from flowmesh.sim import data, policies
from flowmesh.sim.baselines import catalog
from flowmesh.sim.engines import Truth
from flowmesh.sim.fleet import Fleet
from flowmesh.sim.ledger import Ledger, microseconds
from flowmesh.sim.machines import Box
from flowmesh.sim.profiles import efficiencies
from flowmesh.sim.report import Report
from flowmesh.sim.scenario import Scenario
from flowmesh.sim.tenants import Plan, Submission, planned, stream
from flowmesh.sim.workflows import Content

#: Between a step's being due and its rows' being known, and likewise at its end.
DRIVER_MS = 20
#: Machines are heard of whenever something happens; none is silent in this world.
LEASE_MS = 10**13
#: After the last run, a policy has so long to give its machines back; then we look at the bill.
AFTERWARDS_MS = 1_800_000
Handler = Callable[[Any], None]

catalog.register_all()


@dataclass(slots=True)
class Timed:
    """A policy with a stop-watch."""

    policy: Policy
    taken_ns: array  # type: ignore[type-arg]
    made: int = 0

    def decide(self, state: State) -> Decision | None:
        began_ns = perf_counter_ns()
        choice = self.policy.decide(state)
        self.taken_ns.append(perf_counter_ns() - began_ns)
        self.made += choice is not None
        return choice

    def wakes_ms(self, state: State) -> int | None:
        return self.policy.wakes_ms(state)


class Cluster:
    """One simulation. `run` it, then read `report`.

    Events wait in a heap as (millisecond, number, handler, argument): the number breaks ties in
    the order in which they were made.
    """

    def __init__(self, scenario: Scenario, entry: policies.Entry, seed: int) -> None:
        self.scenario, self.entry, self.seed = scenario, entry, seed
        self.plan: Plan = planned(scenario, seed)
        profiles = scenario.files.profiles
        self._profiles = data.given(profiles) if profiles else data.find(data.VIDUR)
        self.truth = Truth(efficiencies(self._profiles), scenario.devices)
        setting = policies.Setting(scenario, self.plan, self.truth)
        self.policy = Timed(entry.make(setting), array("q"))
        self.plane = ControlPlane(self.policy, lease_ms=LEASE_MS)
        self.ledger = Ledger()
        self.now_ms = 0
        self.events = 0
        self._queue: list[tuple[int, int, Handler, Any]] = []
        self._order = 0
        self._contents: dict[StepId, Content] = {}
        self._salts: dict[StepId, tuple[str, str]] = {}
        self._rows: dict[TaskId, tuple[Content, int]] = {}
        self._tick_ms = 0
        self._ticked_ms = 0
        self._pace_ms = round(1000 * scenario.tick_s)
        self._last_ms = 0
        self.fleet = Fleet(self)

    def after(self, delay_ms: float, handler: Handler, argument: Any = None) -> None:
        """Call `handler(argument)` so much later."""
        self._order += 1
        at_ms = self.now_ms + max(0, round(delay_ms))
        heappush(self._queue, (at_ms, self._order, handler, argument))

    def run(self) -> Report:
        began_s = perf_counter()
        self.fleet.start()
        for submission in self.plan.submissions:
            self.after(submission.at_ms, self._submit, submission)
        last_ms = self.plan.submissions[-1].at_ms + round(1000 * self.scenario.limit_s)
        while self._queue and self._queue[0][0] <= last_ms and not self._over():
            self.now_ms, _, handler, argument = heappop(self._queue)
            handler(argument)
        return self._report(perf_counter() - began_s)

    def _over(self) -> bool:
        """All runs have settled, and what was rented is back or was kept for long."""
        if len(self.ledger.settled) < len(self.plan.submissions):
            return False
        idle_ms = self.now_ms - self._last_ms
        return not self.fleet.rented or idle_ms > AFTERWARDS_MS

    def step(self, event: Event) -> None:
        """Give the plane an event, and do what it calls for."""
        self.events += 1
        decisions = self.plane.step(event)
        changes = self.plane.state.drain()
        self.ledger.take(changes)
        self._runs(changes)
        self._steps(changes)
        for lease, reason in changes.ended:
            self.fleet.ended(lease, reason)
        for lease, _ in changes.granted:
            self._start(lease)
        for decision in decisions:
            if isinstance(decision, LaunchInstance):
                self.fleet.launch(decision)
            elif isinstance(decision, TerminateInstance):
                self.fleet.terminate(decision.instance)
        self.fleet.take(changes)
        if self.scenario.check_every and self.events % self.scenario.check_every == 0:
            check(self.plane.state)
        self._plan_tick()

    def _plan_tick(self) -> None:
        """The plane is asked again when its policy wants it, or a task's back-off is over."""
        state = self.plane.state
        wakes_ms = self.policy.wakes_ms(state)
        due = [*state.delayed, *(() if wakes_ms is None else (wakes_ms,))]
        if not due:
            return
        at_ms = max(min(due), self.now_ms + 1, self._ticked_ms + self._pace_ms)
        if self._tick_ms <= self.now_ms or at_ms < self._tick_ms:
            self._tick_ms = at_ms
            self.after(at_ms - self.now_ms, self._tick, at_ms)

    def _tick(self, at_ms: int) -> None:
        if at_ms == self._tick_ms:
            self._tick_ms, self._ticked_ms = 0, self.now_ms
            self.step(Tick(self.now_ms))

    def _submit(self, one: Submission) -> None:
        names = [StepId(f"{one.run}/{step.name}") for step in one.steps]
        owner = one.run if self.entry.scope == "run" else one.tenant
        salt = "" if self.entry.dedup else f"{owner}."
        key_salt = f"{policies.OF_RUN}{owner}" if self.entry.isolated else ""
        steps = []
        for name, step in zip(names, one.steps, strict=True):
            content = self.plan.library.content(step.fingerprint)
            self._contents[name], self._salts[name] = content, (salt, key_salt)
            upstream = tuple(names[at] for at in step.upstream)
            steps.append(Step(name, one.run, upstream, operator=content.kind.engine.operator))
        run = Run(
            id=one.run,
            tenant=one.tenant,
            priority=one.priority,
            steps=tuple(names),
            submitted_ms=one.at_ms,
            weight=one.weight,
            deadline_ms=one.deadline_ms,
        )
        self.ledger.submitted[one.run] = one
        self.step(RunSubmitted(self.now_ms, run, tuple(steps)))

    def _runs(self, changes: Changes) -> None:
        for run in changes.runs.values():
            if run.status is not RunStatus.RUNNING:
                self.ledger.run_settled(run, self.now_ms)
                self._last_ms = self.now_ms
                self._forget(run.id, run.steps)

    def _forget(self, run: RunId, steps: tuple[StepId, ...]) -> None:
        for step in steps:
            self._contents.pop(step, None)
            self._salts.pop(step, None)

    def _steps(self, changes: Changes) -> None:
        todo = self.plane.state.todo
        for step in changes.steps.values():
            if step.id not in todo:
                continue
            if step.status is StepStatus.EXPANDING:
                self.after(DRIVER_MS, self._expand, step)
            elif step.status is StepStatus.ASSEMBLING:
                self.after(DRIVER_MS, self._assemble, step)

    def _expand(self, step: Step) -> None:
        content = self._contents.get(step.id)
        if content is None:
            return
        salt, key_salt = self._salts[step.id]
        specs = content.specs(salt, key_salt, content.step.linger_ms)
        cache, rows = self.ledger.cache, self._rows
        wanted = tuple(spec for spec in specs if spec.id not in cache)
        if self.ledger.expanded(salt + content.fingerprint, len(specs)) and content.prefixes:
            for spec in specs:
                self.ledger.could_share(spec.batch_key, spec.prefix, spec.prefix_tokens)
        for spec in wanted:
            if spec.id not in rows:
                rows[spec.id] = (content, spec.line)
        wanted = self.fleet.with_checkpoints(wanted, content)
        found = len(specs) - len(wanted)
        demand = content.kind.demand
        event = StepExpanded(
            self.now_ms, step.id, len(specs), found, wanted, turn=step.turn, demand=demand
        )
        self.step(event)

    def _assemble(self, step: Step) -> None:
        self.step(StepAssembled(self.now_ms, step.id, turn=step.turn))

    def _start(self, lease: Lease) -> None:
        self.fleet.begin(lease, [self._rows[task] for task in lease.tasks])

    def noise(self, lease: LeaseId) -> float:
        """What this batch takes beside its model, from the seed and the lease alone."""
        sigma = self.scenario.noise
        return float(np.exp(sigma * stream(self.seed, 1000 + lease).normal())) if sigma else 1.0

    def _report(self, real_s: float) -> Report:
        p50, p99, mean = microseconds(self.policy.taken_ns.tolist())
        submitted = self.plan.submissions[0].at_ms
        end_ms = self.now_ms if self.fleet.rented else max(self._last_ms, submitted)
        last_ms = self._last_ms if not self.ledger.open_runs else self.now_ms
        if self.ledger.open_runs:
            end_ms = self.now_ms
        profiles = "traces" if self._profiles else "fitted"
        bare = Report(
            scenario=self.scenario.name,
            policy=self.entry.name,
            seed=self.seed,
            data={**self.plan.sources, **self.fleet.sources, "profiles": profiles},
            makespan_s=(last_ms - submitted) / 1000,
            interruptions=self.fleet.interruptions,
            launches=self.fleet.launches,
            failed_launches=self.fleet.failed_launches,
            decisions=self.policy.made,
            decide_us_p50=p50,
            decide_us_p99=p99,
            decide_us_mean=mean,
            events=self.events,
            real_s=real_s,
        )
        boxes: list[Box] = self.fleet.all
        return self.ledger.told(bare, self.scenario, boxes, end_ms)


def simulate(
    scenario: Scenario,
    policy: str | policies.Factory | policies.Entry = "flowmesh",
    seed: int = 1,
    knobs: dict[str, bool | float] | None = None,
) -> Report:
    """Run a scenario to its end.

    `policy` is a name that `policies` knows, an entry, or a factory; `knobs` are put over the
    scenario's. Raises SpecError where names or files do not exist.
    """
    if knobs:
        scenario = scenario.model_copy(update={"knobs": {**scenario.knobs, **knobs}})
    if isinstance(policy, str):
        entry = policies.find(policy)
    elif isinstance(policy, policies.Entry):
        entry = policy
    else:
        entry = policies.Entry(getattr(policy, "__name__", "policy"), policy)
    collects = gc.isenabled()
    gc.disable()
    try:
        return Cluster(scenario, entry, seed).run()
    finally:
        if collects:
            gc.enable()
