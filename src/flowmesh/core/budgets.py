"""Spending is stopped before it happens: what may be granted, and which runs cannot go on.

For the policy. While it puts a batch together, a `Purse` says which tasks can be paid for
(or `affordable`, of a whole batch); `Watch` finds the runs that must be stopped, and tells when
to look again. A run pays an equal share of every task that it waits for (`money.py`), so a
shared task may run as soon as the runs that can pay their shares cover it, and the others are
stopped: nobody waits for somebody else's budget.

The day's quota of a tenant stops no run: its tasks wait for the next day, UTC.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId, TenantId
from flowmesh.core import estimate, needs, options, pool
from flowmesh.core.decisions import StopRun
from flowmesh.core.fleet import Worker
from flowmesh.core.money import (
    DAY_MS,
    day_usd,
    share_usd,
    upper_usd,
    waiting_runs,
)
from flowmesh.core.records import Demand, Hold, Run, Task, TaskStatus
from flowmesh.core.state import State
from flowmesh.core.utility import Knobs

#: A run whose costs grow is looked at so often, and stopped so long before its budget is spent.
LOOK_MS = 500
AHEAD_MS = 1_000
#: A run that waits for its turn is looked at less often.
WAITING_LOOK_MS = 2_000
#: Of a run's ready tasks, how many are tried before it is said that it can pay for none.
TRIED_TASKS = 100
#: Ready tasks that cannot be paid for, of which so many are passed over for one batch.
PASSED_TASKS = 1_000
#: Costs are told apart from a budget down to this: sums of binary fractions are not exact.
TOLERANCE = 1e-9

#: All parts of the policy are on.
KNOBS = Knobs()

_NO_LIMIT, _BUDGET, _DAY, _LEASES = "", "budget", "daily quota", "leases quota"


class Purse:
    """What runs and tenants can still pay for, while one batch is put together."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._runs: dict[RunId, float] = {}
        self._tenants: dict[TenantId, float] = {}
        #: Steps whose run and tenant know no limit.
        self._free: dict[StepId, bool] = {}

    def takes(self, task_id: TaskId, usd: float) -> bool:
        """Whether a task that costs up to `usd` may join the batch; if so, it is paid for."""
        wanted = self.state.wants[task_id]
        if all(map(self._is_free, wanted)):
            return True
        payers = self._payers(waiting_runs(self.state, task_id), usd)
        for run in payers:
            share, tenant = share_usd(usd, len(payers)), self.state.runs[run].tenant
            self._runs[run] -= share
            self._tenants[tenant] -= share
        return bool(payers)

    def why_not(self, task_id: TaskId, usd: float) -> str:
        """`budget`, `daily quota` or `leases quota`: why it does not take a task; or nothing."""
        runs = waiting_runs(self.state, task_id)
        if self._payers(runs, usd):
            return _NO_LIMIT
        # Whoever could pay by its budget is held up by its tenant's quota.
        able = [run for run in runs if self._run_usd(run) + TOLERANCE >= share_usd(usd, len(runs))]
        if not able:
            return _BUDGET
        full = (self._has_leases_left(self.state.runs[run].tenant) for run in able)
        return _DAY if any(full) else _LEASES

    def _is_free(self, step: StepId) -> bool:
        known = self._free.get(step)
        if known is None:
            run = self.state.runs[self.state.steps[step].run]
            quota = self.state.tenants[run.tenant].quota
            known = not (run.budget_usd or quota.leases or quota.usd_per_day)
            self._free[step] = known
        return known

    def _payers(self, runs: Sequence[RunId], usd: float) -> Sequence[RunId]:
        """The most of these runs that can pay for a task if they alone share it."""
        while runs:
            share = share_usd(usd, len(runs))
            tenants = [self.state.runs[run].tenant for run in runs]
            able = [
                run
                for run, tenant in zip(runs, tenants, strict=True)
                if self._run_usd(run) + TOLERANCE >= share
                and self._tenant_usd(tenant) + TOLERANCE >= share * tenants.count(tenant)
            ]
            if len(able) == len(runs):
                break
            runs = able
        return runs

    def _run_usd(self, run_id: RunId) -> float:
        if run_id not in self._runs:
            self._runs[run_id] = left_usd(self.state.runs[run_id])
        return self._runs[run_id]

    def _tenant_usd(self, tenant_id: TenantId) -> float:
        if tenant_id not in self._tenants:
            left = -inf
            if self._has_leases_left(tenant_id):
                left = left_today_usd(self.state, tenant_id)
            self._tenants[tenant_id] = left
        return self._tenants[tenant_id]

    def _has_leases_left(self, tenant_id: TenantId) -> bool:
        tenant = self.state.tenants[tenant_id]
        return not tenant.quota.leases or tenant.leases < tenant.quota.leases


def left_usd(run: Run) -> float:
    """What a run's budget still allows beside what is held."""
    return run.budget_usd - run.spent_usd - run.held_usd if run.budget_usd else inf


def left_today_usd(state: State, tenant_id: TenantId) -> float:
    """What a tenant's daily quota still allows beside what is held."""
    tenant = state.tenants[tenant_id]
    if not tenant.quota.usd_per_day:
        return inf
    return tenant.quota.usd_per_day - day_usd(tenant, state.now_ms) - tenant.held_usd


def affordable(
    state: State,
    tasks: Iterable[TaskId],
    batch_usd: Callable[[Sequence[TaskId]], float],
    limit: int = 1 << 30,
) -> Sequence[TaskId]:
    """The first `limit` of some tasks that can be paid for together; no more than are asked for.

    `batch_usd` is what a batch of these tasks costs, margin included (`money.upper_usd`). Fewer
    tasks may cost more each, so they are asked for again until all of them are taken. Tasks that
    cannot be paid for do not stand in the way of those behind them.
    """
    waiting, taken = iter(tasks), list[TaskId]()
    refused: dict[RunId, None] = {}
    passed = 0
    while True:
        for task_id in waiting:
            if not all(run in refused for run in waiting_runs(state, task_id)):
                limit = min(limit, state.tasks[task_id].batch_limit)
                taken += [task_id] if len(taken) < limit else []
            else:
                passed += 1
            if len(taken) >= limit or passed >= PASSED_TASKS:
                break
        if not taken:
            return []
        purse, usd = Purse(state), batch_usd(taken) / len(taken)
        paid = [task_id for task_id in taken if _takes(purse, task_id, usd, refused)]
        if len(paid) == len(taken):
            return taken
        taken = paid


def _takes(purse: Purse, task_id: TaskId, usd: float, refused: dict[RunId, None]) -> bool:
    """Whether a purse takes a task; if not, the runs that wait for it are `refused`."""
    takes = purse.takes(task_id, usd)
    if not takes:
        refused |= dict.fromkeys(waiting_runs(purse.state, task_id))
    return takes


# Stopping


def alone_usd(state: State, task: Task, worker: Worker) -> float:
    """What a batch of one task should cost at most on a worker."""
    batch = options.Batch((task,), (0.0,))
    return float(upper_usd(options.expected(state, batch, worker, KNOBS)[0]))


Alone = Callable[[State, Task, Worker], float]


class Watch:
    """Finds the runs that must be stopped; each is looked at when something of it has changed.

    A policy's memory: it may be forgotten at any time. `alone_usd` is what a task costs alone
    on a worker, by the policy's estimate, margin included.
    """

    def __init__(self, alone_usd: Alone = alone_usd) -> None:
        self._alone_usd = alone_usd
        self._seen: dict[RunId, Run] = {}
        self._due_ms: dict[RunId, int] = {}

    def decide(self, state: State) -> StopRun | None:
        """The next run to stop."""
        for run_id in state.budgeted:
            run = state.runs[run_id]
            if self._seen.get(run_id) is run and state.now_ms < self._due_ms[run_id]:
                continue
            if reason := stop_reason(state, run, self._alone_usd):
                return StopRun(state.now_ms, run_id, reason)
            self._seen[run_id] = run
            self._due_ms[run_id] = _next_look_ms(state, run)
        if len(self._seen) > 2 * len(state.budgeted):
            self._seen = {one: run for one, run in self._seen.items() if one in state.budgeted}
            self._due_ms = {one: self._due_ms[one] for one in self._seen}
        return None

    def wakes_ms(self, state: State) -> int | None:
        """When to look again: costs have grown, or a new day gives new quotas."""
        due = [self._due_ms.get(run, state.now_ms) for run in state.budgeted]
        if any(one.quota.usd_per_day and one.open_runs for one in state.tenants.values()):
            due.append((state.now_ms // DAY_MS + 1) * DAY_MS)
        return min(due, default=None)


def stop_reason(state: State, run: Run, alone: Alone = alone_usd) -> str:
    """Why a run cannot go on within its budget, in words; nothing if it can."""
    spent, budget = in_words(run.spent_usd), in_words(run.budget_usd)
    running = running_usd(state, run)
    # What would be spent before anybody looks again counts as spent.
    soon = _growth_usd_per_s(state, run) * AHEAD_MS / 1000
    if run.spent_usd + running + soon > run.budget_usd * (1 + TOLERANCE) + TOLERANCE:
        return (
            f"stopped before it spends more than its budget of {budget}: {spent} is spent, and "
            f"what runs for it now would cost {in_words(running)}; {_ADVICE}"
        )
    if state.holds.get(run.id):
        return ""
    least = _least_out_of_reach_usd(state, run, alone)
    if least is None:
        return ""
    return (
        f"its budget of {budget} does not allow its next task: {spent} is spent, and the cheapest "
        f"worker would take about {in_words(least)} for it; {_ADVICE}"
    )


_ADVICE = "what is done is kept, so submit it again with a larger budget to go on"


def in_words(usd: float) -> str:
    """An amount of money: cents from a dollar on, else four digits."""
    if usd >= 1:
        return f"${usd:,.2f}"
    text = f"{usd:.4g}"
    if "e" in text:
        return f"${usd:.10f}".rstrip("0")
    return f"${text}0" if len(text) == len("0.2") else f"${text}"


def running_usd(state: State, run: Run) -> float:
    """What a run's leases will cost it yet: what is held, or what outgrew that by now."""
    mine = state.holds.get(run.id, {})
    return run.held_usd + sum(
        max(0.0, _accrued_usd(state, hold, lease) - hold.usd) for lease, hold in mine.items()
    )


def _usd_per_s(state: State, hold: Hold, lease_id: LeaseId) -> float:
    """What a lease costs a run by the second."""
    worker = state.workers[state.leases[lease_id].worker]
    return min(1.0, hold.part) * worker.usd_per_hour / 3600


def _accrued_usd(state: State, hold: Hold, lease_id: LeaseId) -> float:
    """What a lease has cost a run by now that is not paid yet."""
    seconds = (state.now_ms - state.leases[lease_id].granted_ms) / 1000
    return max(0.0, _usd_per_s(state, hold, lease_id) * seconds - hold.paid_usd)


def _growth_usd_per_s(state: State, run: Run) -> float:
    """By how much a run's leases that have outgrown what is held for them grow."""
    return sum(
        _usd_per_s(state, hold, lease)
        for lease, hold in state.holds.get(run.id, {}).items()
        if _accrued_usd(state, hold, lease) >= hold.usd
    )


def _next_look_ms(state: State, run: Run) -> int:
    """When a run could have to be stopped, if nothing else happens."""
    mine = state.holds.get(run.id)
    if not mine:
        return state.now_ms + WAITING_LOOK_MS
    rates = {lease: _usd_per_s(state, hold, lease) for lease, hold in mine.items()}
    if _growth_usd_per_s(state, run):
        left = max(0.0, run.budget_usd - run.spent_usd - running_usd(state, run))
        seconds = left / sum(rates.values())
        return state.now_ms + max(LOOK_MS, _ms(seconds) - AHEAD_MS)
    outgrow_ms = [
        state.leases[lease].granted_ms + _ms((hold.usd + hold.paid_usd) / rates[lease])
        for lease, hold in mine.items()
        if rates[lease] > 0
    ]
    return max(state.now_ms + LOOK_MS, min(outgrow_ms, default=state.now_ms + DAY_MS))


def _ms(seconds: float) -> int:
    """Of a span; at most a day, as a price may be next to nothing."""
    return int(min(seconds * 1000, DAY_MS))


def _least_out_of_reach_usd(state: State, run: Run, alone: Alone) -> float | None:
    """The cost of the cheapest of a run's ready tasks, if its budget allows none of them.

    None if it can go on: one of them may be granted, or somebody else can pay for it, or what
    holds it up is no matter of its budget.
    """
    least = inf
    kinds: dict[str, list[Worker]] = {}
    for step_id in run.steps:
        for task_id in _first(state.tasks_of.get(step_id, {})):
            task = state.tasks[task_id]
            if task.status is not TaskStatus.READY:
                return None
            usd = _least_usd(state, task, kinds, alone)
            if usd is None or Purse(state).why_not(task_id, usd) != _BUDGET:
                return None
            least = min(least, usd)
    return None if least == inf else least


def _first(tasks: dict[TaskId, None]) -> Iterator[TaskId]:
    for _, task_id in zip(range(TRIED_TASKS), tasks, strict=False):
        yield task_id


def _least_usd(
    state: State, task: Task, kinds: dict[str, list[Worker]], alone: Alone
) -> float | None:
    """What a task costs alone on the cheapest worker that fits, margin included.

    None if none fits. `kinds` keeps the workers that fit by key of the pool, one of a kind.
    """
    key = pool.key_of(task.spec)
    if key not in kinds:
        kinds[key] = _unlike(state, task)
    return min((alone(state, task, one) for one in kinds[key]), default=None)


def _unlike(state: State, task: Task) -> list[Worker]:
    """The workers that a task fits on, one of those that would cost the same."""
    spec = task.spec
    demand = state.demands.get(spec.batch_key) or Demand()
    tokens = float(spec.prompt_tokens + spec.output_tokens)
    found: dict[object, Worker] = {}
    for worker in state.workers.values():
        if needs.fits(worker, spec) and estimate.fits(demand, worker.device, tokens):
            warm = spec.batch_key in worker.warm
            kind = (worker.device, worker.place, worker.usd_per_hour, warm, worker.holds)
            found.setdefault(kind, worker)
    return list(found.values())


def waits_for(state: State, step_id: StepId) -> str:
    """By which quota the tasks of a step are held up, in words; or nothing."""
    first = next(_first(state.tasks_of.get(step_id, {})), None)
    if first is None or state.tasks[first].status is not TaskStatus.READY:
        return ""
    tenant = state.tenants[state.runs[state.steps[step_id].run].tenant]
    if not tenant.quota.usd_per_day and not tenant.quota.leases:
        return ""
    usd = _least_usd(state, state.tasks[first], {}, alone_usd)
    why = Purse(state).why_not(first, usd or 0.0)
    if why == _DAY:
        used = in_words(day_usd(tenant, state.now_ms) + tenant.held_usd)
        limit = in_words(tenant.quota.usd_per_day)
        return f"waits for the next day (UTC): tenant {tenant.id} has used {used} of its {limit}"
    if why == _LEASES:
        return f"waits for its turn: tenant {tenant.id} runs {tenant.leases} batches, its limit"
    return ""
