"""Money in any history: nothing is lost, nothing is held for nothing, no budget is overspent."""

from collections import defaultdict
from math import isclose

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flowmesh.base.ids import RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.budgets import in_words
from flowmesh.core.events import (
    RunCancelled,
    RunSubmitted,
    StepAssembled,
    StepExpanded,
    StepReopened,
    TenantChanged,
    Tick,
    WorkerGone,
)
from flowmesh.core.machine import ControlPlane
from flowmesh.core.money import DAY_MS, day_usd
from flowmesh.core.records import Failure, Quota, Run, RunStatus, Step
from support.core import Bench, spec
from support.frugal import TASK_S, Frugal

workers = st.sampled_from(["v", "w"])
numbers = st.integers(0, 4)
tenants = st.sampled_from("tu")
#: A task costs 0.01 or 0.02 dollars.
PRICES = {"v": 36.0, "w": 72.0}
budgets = st.sampled_from([0.0, 0.015, 0.03, 0.1])


class AnyMoney(RuleBasedStateMachine):
    """Shared tasks, joins, cancels, lost workers and quotas; results cost what was expected."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(ControlPlane(Frugal()), now_ms=DAY_MS - 60_000)
        self.paid: dict[RunId, float] = defaultdict(float)
        self.by_day: dict[tuple[str, int], float] = defaultdict(float)
        self.budgets: dict[RunId, float] = {}

    def note(self) -> None:
        """What the step before has cost, as the read models are told."""
        changes, state = self.bench.last, self.bench.plane.state
        costs = [(one.runs, one.usd) for one in (*changes.accepted, *changes.spent)]
        for runs, usd in costs:
            for run in runs:
                self.paid[run] += usd / len(runs)
                day = state.now_ms // DAY_MS
                self.by_day[self.bench.runs[run].tenant, day] += usd / len(runs)

    @rule(run=numbers, tasks=st.sets(numbers, max_size=4), tenant=tenants, budget_usd=budgets)
    def submit(self, run: int, tasks: set[int], tenant: str, budget_usd: float) -> None:
        """Two steps that want the same tasks, expanded one after the other."""
        name, now_ms = RunId(f"r{run}"), self.bench.now_ms
        if name in self.budgets:
            return
        self.budgets[name] = budget_usd
        steps = tuple(Step(StepId(f"{name}/{one}"), name, ()) for one in "ab")
        ids = tuple(step.id for step in steps)
        record = Run(name, TenantId(tenant), 0, ids, now_ms, budget_usd=budget_usd)
        self.bench.step(RunSubmitted(now_ms, record, steps))
        self.note()
        self.expand(run, "a", tasks)

    @rule(run=numbers, step=st.sampled_from("ab"), tasks=st.sets(numbers, max_size=4))
    def expand(self, run: int, step: str, tasks: set[int]) -> None:
        wanted = tuple(spec(f"x{one}", key=f"k{one % 2}", max_batch=1 + one) for one in tasks)
        step_id = StepId(f"r{run}/{step}")
        turn = self.bench.plane.state.steps[step_id].turn if self.has(step_id) else 0
        event = StepExpanded(self.bench.now_ms, step_id, len(wanted), wanted=wanted, turn=turn)
        self.bench.step(event)
        self.note()

    def has(self, step_id: StepId) -> bool:
        return step_id in self.bench.plane.state.steps

    @rule(run=numbers, step=st.sampled_from("ab"))
    def assemble(self, run: int, step: str) -> None:
        step_id = StepId(f"r{run}/{step}")
        turn = self.bench.plane.state.steps[step_id].turn if self.has(step_id) else 0
        self.bench.step(StepAssembled(self.bench.now_ms, step_id, turn=turn))
        self.note()

    @rule(run=numbers, step=st.sampled_from("ab"))
    def reopen(self, run: int, step: str) -> None:
        step_id = StepId(f"r{run}/{step}")
        turn = self.bench.plane.state.steps[step_id].turn if self.has(step_id) else 0
        self.bench.step(StepReopened(self.bench.now_ms, step_id, "lost", step_id, turn))
        self.note()

    @rule(
        worker=workers,
        end=st.sampled_from([None, None, Failure.TRANSIENT, Failure.INPUT, Failure.CRASH]),
        seconds=st.sampled_from([0.0, 0.3, TASK_S]),
        first=st.booleans(),
    )
    def report(self, worker: str, end: Failure | None, seconds: float, first: bool) -> None:
        held = [task for batch in self.bench.running(worker) for task in batch]
        told = held[:1] if first else held
        self.sync(worker, told, end, seconds)

    def sync(self, worker: str, told: list[str], end: Failure | None, seconds: float) -> None:
        ends = {"done": told} if end is None else {"failed": dict.fromkeys(told, end)}
        price = PRICES[worker]
        self.bench.sync(worker, slots=2, seconds=seconds, usd_per_hour=price, **ends)  # type: ignore[arg-type]
        self.note()

    @rule(worker=workers)
    def leave(self, worker: str) -> None:
        self.bench.sync(worker, slots=2, usd_per_hour=PRICES[worker], leaving=True)
        self.note()

    @rule(worker=workers)
    def end(self, worker: str) -> None:
        self.bench.step(WorkerGone(self.bench.now_ms, WorkerId(worker)))
        self.note()

    @rule(run=numbers)
    def cancel(self, run: int) -> None:
        self.bench.step(RunCancelled(self.bench.now_ms, RunId(f"r{run}")))
        self.note()

    @rule(
        tenant=tenants,
        leases=st.sampled_from([0, 1]),
        usd_per_day=st.sampled_from([0.0, 0.02, 0.05]),
    )
    def set_quota(self, tenant: str, leases: int, usd_per_day: float) -> None:
        quota = Quota(leases=leases, usd_per_day=usd_per_day)
        self.bench.step(TenantChanged(self.bench.now_ms, TenantId(tenant), 1.0, quota))
        self.note()

    @rule(gap_ms=st.sampled_from([1, 1_000, 16_000, 130_000]))
    def wait(self, gap_ms: int) -> None:
        self.bench.now_ms += gap_ms
        self.bench.step(Tick(self.bench.now_ms))
        self.note()

    @invariant()
    def spent_is_what_was_told(self) -> None:
        """By run, and by tenant and day; `check` compares what is held after each step."""
        state = self.bench.plane.state
        for run in {**self.bench.runs, **state.runs}.values():
            assert isclose(run.spent_usd, self.paid[run.id], abs_tol=1e-9), run
        for tenant in state.tenants.values():
            told = self.by_day[tenant.id, state.now_ms // DAY_MS]
            assert isclose(day_usd(tenant, state.now_ms), told, abs_tol=1e-9), tenant

    @invariant()
    def a_quiet_plane_holds_nothing(self) -> None:
        state = self.bench.plane.state
        if not state.leases:
            assert not state.holds and not state.lease_tenants
            assert all(run.held_usd == 0.0 for run in state.runs.values())
            assert all(one.held_usd == 0.0 and not one.leases for one in state.tenants.values())

    def teardown(self) -> None:
        later = ControlPlane()
        later.replay(self.bench.journal)
        assert later.state == self.bench.plane.state


class NoBudgetIsOverspent(AnyMoney):
    @invariant()
    def no_budget_is_overspent(self) -> None:
        for run, budget_usd in self.budgets.items():
            if budget_usd:
                assert self.paid[run] <= budget_usd + 1e-9, run
        for run_ in self.bench.runs.values():
            if run_.status is RunStatus.FAILED and in_words(run_.budget_usd) in run_.message:
                assert run_.budget_usd > 0

    @invariant()
    def whoever_has_no_budget_is_not_stopped_for_money(self) -> None:
        for run in self.bench.runs.values():
            if not run.budget_usd:
                assert "budget" not in run.message


class CostsThatNobodyExpected(AnyMoney):
    """Late results, attempts that are paid for as far as they were heard of, any seconds."""

    @rule(worker=workers, task=numbers, seconds=st.sampled_from([0.5, 700.0]))
    def report_late(self, worker: str, task: int, seconds: float) -> None:
        self.sync(worker, [f"x{task}"], None, seconds)

    @rule(worker=workers, task=numbers, step=st.integers(1, 5), saves=st.booleans())
    def progress(self, worker: str, task: int, step: int, saves: bool) -> None:
        self.bench.progress(worker, TaskId(f"x{task}"), step, f"t{step}" if saves else "")
        self.note()


TestNoBudgetIsOverspent = NoBudgetIsOverspent.TestCase
TestNoBudgetIsOverspent.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCostsThatNobodyExpected = CostsThatNobodyExpected.TestCase
TestCostsThatNobodyExpected.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
