"""The law of money: what runs and tenants have spent, and what is held for what is running.

What a batch is expected to cost, with a margin, is held from its grant on: an equal share of
each task for every run that waits for it. When runs join or leave, the shares of the others
become smaller or larger; when a task's part in the lease ends, its share is let go, and what
it has cost is spent, in equal shares too. Called by `apply` and `tasks` alone.

All that is held is a multiple of `GRAIN_USD`, whose sums are exact up to two million dollars:
what was held is let go to the last bit, and a quiet plane holds exactly nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from flowmesh.base.ids import LeaseId, RunId, TaskId, TenantId
from flowmesh.base.replacing import replace
from flowmesh.core.events import TenantChanged
from flowmesh.core.records import Expected, Hold, Lease, Run, Task, Tenant
from flowmesh.core.state import State

GRAIN_USD = 2.0**-32
#: Standard deviations of its time that are held for a batch beyond its expected cost.
MARGIN_SIGMAS = 2.0
DAY_MS = 86_400_000
_NOTHING = Hold(0, 0.0)


def waiting_runs(state: State, task_id: TaskId) -> tuple[RunId, ...]:
    """The distinct runs that wait for a task, in the order in which they asked."""
    wanted = state.wants[task_id]
    if len(wanted) == 1:
        return (state.steps[next(iter(wanted))].run,)
    return tuple(dict.fromkeys([state.steps[step].run for step in wanted]))


def upper_usd(expected: Expected) -> float:
    """What a whole batch should cost at most, as far as its estimate knows."""
    if not expected.total_s:
        return expected.usd
    return expected.usd * (1 + MARGIN_SIGMAS * expected.sigma_s / expected.total_s)


def share_usd(usd: float, runs: int) -> float:
    """The share of each of so many runs, rounded up to the grain."""
    return ceil(usd / runs / GRAIN_USD) * GRAIN_USD


def task_usd(lease: Lease) -> float:
    """What is held for each task of a lease."""
    return upper_usd(lease.expected) / len(lease.tasks)


def day_usd(tenant: Tenant, now_ms: int) -> float:
    """What a tenant has spent on this day, UTC."""
    return tenant.day_usd if tenant.day == now_ms // DAY_MS else 0.0


def changed(state: State, event: TenantChanged) -> None:
    """A tenant's weight and quota are set; its queues are worth another look."""
    known = state.tenants.get(event.tenant, Tenant(event.tenant))
    state.tenants[event.tenant] = replace(known, weight=event.weight, quota=event.quota)
    for name, key in state.ready.items():
        if event.tenant in key.queues:
            state.touched.ready[name] = None


def day_began(state: State) -> None:
    """What had to wait for the day's quota may run."""
    state.touched.ready |= dict.fromkeys(state.ready)


def granted(state: State, lease: Lease, waiting: Iterable[tuple[RunId, ...]]) -> None:
    """Hold what a new lease should cost; `waiting`: who waits for each of its tasks."""
    counts: dict[RunId, dict[int, int]] = {}
    for runs, tasks in Counter(waiting).items():
        for run in runs:
            mine = counts.setdefault(run, {})
            mine[len(runs)] = mine.get(len(runs), 0) + tasks
    for run, mine in counts.items():
        more = _NOTHING
        for many, tasks in mine.items():
            share = _share(lease, many)
            more = _sum(more, Hold(tasks, tasks * share.usd, tasks * share.part))
        _change(state, run, lease.id, more, 0.0)


def shared_anew(state: State, task: Task, before: Sequence[RunId]) -> None:
    """Other runs wait for a task now than `before`: what is held for it is split among them."""
    if task.lease is None:
        return
    after, lease = waiting_runs(state, task.id), state.leases[task.lease]
    left = _share(lease, len(before))
    shares = dict.fromkeys(before, Hold(-left.tasks, -left.usd, -left.part))
    for run in after:
        shares[run] = _sum(shares.get(run, _NOTHING), _share(lease, len(after)))
    for run, more in shares.items():
        _change(state, run, lease.id, more, 0.0)


def released(state: State, task: Task, runs: Sequence[RunId]) -> None:
    """A task's part in its lease is over without a result: nothing is held for it any more."""
    if task.lease is not None:
        less = _released(state.leases[task.lease], len(runs))
        for run in runs:
            _change(state, run, task.lease, less, 0.0)


def spend(state: State, lease: LeaseId, runs: Sequence[RunId], usd: float) -> None:
    """Runs have spent something together on a lease."""
    for run in runs if usd else ():
        _change(state, run, lease, _NOTHING, usd / len(runs))


def succeeded(state: State, task: Task, lease: LeaseId, runs: Sequence[RunId], usd: float) -> None:
    """A task has its result, by a lease that may have ended: it is paid, and nothing is held."""
    if task.lease != lease:
        spend(state, lease, runs, usd)
        released(state, task, runs)
        return
    less = _released(state.leases[lease], len(runs))
    for run in runs:
        _change(state, run, lease, less, usd / len(runs))


@dataclass(slots=True)
class _Account:
    """A run and its share of a lease, while a till is open. `tasks` is 0 if nothing is held."""

    run: Run
    purse: "_Purse"
    hold: Hold
    tasks: int
    usd: float
    paid_usd: float
    spent_usd: float
    held_usd: float


@dataclass(slots=True)
class _Purse:
    """A tenant, while a till is open."""

    held_usd: float
    day_usd: float
    pays: bool = False


class Till:
    """What `succeeded` does for tasks of one lease, which they leave, and booked at `close`.

    Until then nothing else may change the books of their runs and tenants.
    """

    def __init__(self, state: State, lease: Lease) -> None:
        self._state = state
        self._lease = lease
        self._shares: dict[int, float] = {}
        self._accounts: dict[RunId, _Account] = {}
        self._purses: dict[TenantId, _Purse] = {}

    def succeeded(self, runs: Sequence[RunId], usd: float) -> None:
        """A task has its result: its runs pay for it together, and hold nothing for it."""
        many = len(runs)
        share = self._shares.get(many)
        if share is None:
            share = self._shares[many] = share_usd(task_usd(self._lease), many)
        paid_usd = usd / many
        for run in runs:
            account = self._accounts.get(run) or self._open(run)
            purse = account.purse
            if account.tasks:
                account.tasks -= 1
                account.usd -= share
                account.paid_usd += paid_usd
                account.held_usd -= share
                purse.held_usd -= share
            if paid_usd:
                account.spent_usd += paid_usd
                purse.day_usd += paid_usd
                purse.pays = True

    def _open(self, run_id: RunId) -> _Account:
        state = self._state
        run, hold = state.runs[run_id], state.holds.get(run_id, {}).get(self._lease.id, _NOTHING)
        purse = self._purses.get(run.tenant)
        if purse is None:
            tenant = state.tenants[run.tenant]
            purse = _Purse(tenant.held_usd, day_usd(tenant, state.now_ms))
            self._purses[run.tenant] = purse
        account = _Account(
            run, purse, hold, hold.tasks, hold.usd, hold.paid_usd, run.spent_usd, run.held_usd
        )
        self._accounts[run_id] = account
        return account

    def close(self) -> None:
        """Book it all."""
        state, lease = self._state, self._lease.id
        for tenant_id, purse in self._purses.items():
            tenant = replace(state.tenants[tenant_id], held_usd=purse.held_usd)
            if purse.pays:
                tenant = replace(tenant, day=state.now_ms // DAY_MS, day_usd=purse.day_usd)
            state.tenants[tenant_id] = tenant
        for run_id, account in self._accounts.items():
            state.runs[run_id] = replace(
                account.run, spent_usd=account.spent_usd, held_usd=account.held_usd
            )
            if account.tasks:
                hold = Hold(account.tasks, account.usd, account.hold.part, account.paid_usd)
                state.holds[run_id][lease] = hold
            elif account.hold.tasks:
                _let_go(state, run_id, lease)
                _count_lease(state, run_id, lease, -1)


def _share(lease: Lease, runs: int) -> Hold:
    """What each of so many runs holds for one task of a lease."""
    return Hold(1, share_usd(task_usd(lease), runs), 1 / len(lease.tasks) / runs)


def _released(lease: Lease, runs: int) -> Hold:
    return Hold(-1, -share_usd(task_usd(lease), runs))


def _sum(one: Hold, other: Hold) -> Hold:
    return Hold(one.tasks + other.tasks, one.usd + other.usd, one.part + other.part, one.paid_usd)


def _change(state: State, run_id: RunId, lease: LeaseId, more: Hold, paid_usd: float) -> None:
    """A run holds more, or less, for a lease, and has paid for a part of it."""
    held_usd = _hold(state, run_id, lease, more, paid_usd)
    if not held_usd and not paid_usd:
        return
    run = state.runs[run_id]
    state.runs[run_id] = replace(
        run, spent_usd=run.spent_usd + paid_usd, held_usd=run.held_usd + held_usd
    )
    tenant, day = state.tenants[run.tenant], state.now_ms // DAY_MS
    state.tenants[run.tenant] = replace(
        tenant,
        held_usd=tenant.held_usd + held_usd,
        day=day if paid_usd else tenant.day,
        day_usd=day_usd(tenant, state.now_ms) + paid_usd if paid_usd else tenant.day_usd,
    )


def _hold(state: State, run_id: RunId, lease: LeaseId, more: Hold, paid_usd: float) -> float:
    """Keep what a run holds for a lease; by how much the dollars held have changed."""
    mine = state.holds.get(run_id, {})
    old = mine.get(lease, _NOTHING)
    tasks = old.tasks + more.tasks
    if tasks < 0 or not (tasks or old.tasks):
        return 0.0  # the lease has ended, or is of a version that held nothing
    if tasks:
        paid = old.paid_usd + paid_usd
        state.holds.setdefault(run_id, mine)[lease] = Hold(
            tasks, old.usd + more.usd, old.part + more.part, paid
        )
    else:
        _let_go(state, run_id, lease)
    if not old.tasks:
        _count_lease(state, run_id, lease, 1)
    elif not tasks:
        _count_lease(state, run_id, lease, -1)
    return more.usd


def _let_go(state: State, run_id: RunId, lease: LeaseId) -> None:
    mine = state.holds[run_id]
    del mine[lease]
    if not mine:
        del state.holds[run_id]


def _count_lease(state: State, run_id: RunId, lease: LeaseId, by: int) -> None:
    """Keep count of a tenant's leases: those with a task that one of its runs waits for."""
    tenant = state.tenants[state.runs[run_id].tenant]
    runs = state.lease_tenants.setdefault(lease, {})
    runs[tenant.id] = runs.get(tenant.id, 0) + by
    if by > 0 and runs[tenant.id] == 1:
        state.tenants[tenant.id] = replace(tenant, leases=tenant.leases + 1)
    if not runs[tenant.id]:
        state.tenants[tenant.id] = replace(tenant, leases=tenant.leases - 1)
        del runs[tenant.id]
        if not runs:
            del state.lease_tenants[lease]
