"""What a task that waits is waiting for, and its options now. Reads the state, changes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from flowmesh.core import budgets, needs, pool, utility
from flowmesh.core.fleet import Worker
from flowmesh.core.forecast import time_left_s
from flowmesh.core.plan import Policy, Utility, score_of
from flowmesh.core.records import Demand, Task, TaskStatus
from flowmesh.core.state import State
from flowmesh.core.story import Alternative

#: Options that are told, and the shortest time that counts when they are put in order.
SHOWN, FLOOR_S = 4, 0.05


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of one task that is not done.

    Attributes:
        waits_for: in words; empty for a task that runs.
        options: workers that could run it, the best first, at the size its queue would fill.
        excluded: workers that could not, by reason; counted.
    """

    waits_for: str
    options: tuple[Alternative, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)


def outlook(state: State, task: Task, policy: Policy) -> Outlook:
    """How it stands with a task now; options only by the policy that knows what they are worth."""
    if task.status is TaskStatus.LEASED:
        return Outlook("")
    open_to, excluded = _open_to(state, task)
    words = _waits_for(state, task, open_to, policy)
    if not isinstance(policy, Utility) or task.status is not TaskStatus.READY:
        return Outlook(words, (), excluded)
    scored = list(_scored(state, _batch(state, task), open_to, policy))
    scored.sort(key=lambda one: (-float(utility.rate(one.score, FLOOR_S)), one.worker))
    return Outlook(words, tuple(scored[:SHOWN]), excluded)


def waits_for(state: State, task: Task, policy: Policy) -> str:
    """What a task that is not leased waits for, in words."""
    return _waits_for(state, task, _open_to(state, task)[0], policy)


def _open_to(state: State, task: Task) -> tuple[list[Worker], dict[str, int]]:
    """Workers that could run a task; and of the others, how many could not for which reason."""
    excluded: dict[str, int] = {}
    open_to = []
    for worker in state.workers.values():
        if words := needs.why_not_now(state, worker, task):
            excluded[words] = excluded.get(words, 0) + 1
        else:
            open_to.append(worker)
    return open_to, excluded


def _batch(state: State, task: Task) -> list[Task]:
    """The task with those of its own queue that could go along."""
    key = state.ready.get(pool.key_of(task.spec))
    queues = key.queues.get(task.tenant, {}) if key else {}
    others = chain.from_iterable(queues.get(task.priority, {}).values())
    names = dict.fromkeys((task.id, *islice(others, task.batch_limit)))
    return [state.tasks[name] for name in islice(names, task.batch_limit)]


def _scored(
    state: State, batch: list[Task], open_to: list[Worker], policy: Utility
) -> Iterator[Alternative]:
    """An option for each kind of worker that differs in anything that counts."""
    key = batch[0].spec.batch_key
    demand = state.demands.get(key) or Demand()
    alike: dict[tuple[object, ...], tuple[float, Worker]] = {}
    for worker in open_to:
        missing = sum(one.size_bytes for one in demand.trees if one.digest not in worker.holds)
        name = (worker.device, worker.usd_per_hour, worker.place, key in worker.warm, missing)
        wait_s = _wait_s(state, worker)
        if name not in alike or wait_s < alike[name][0]:
            alike[name] = (wait_s, worker)
    names = [task.id for task in batch]
    for wait_s, worker in alike.values():
        score = replace(score_of(state, policy, worker, names), wait_s=wait_s)
        yield Alternative(key, worker.id, worker.device.kind, len(batch), score)


def _wait_s(state: State, worker: Worker) -> float:
    """Until a worker should have a free slot."""
    if worker.takes_work:
        return 0.0
    return min((time_left_s(state, lease) for lease in worker.leases), default=0.0)


def _waits_for(state: State, task: Task, open_to: list[Worker], policy: Policy) -> str:
    if task.status is TaskStatus.DELAYED:
        left_s = max(0, task.due_ms - state.now_ms) / 1000
        return f"its next attempt, in {left_s:.1f} s: the last one failed"
    if not state.workers:
        return "a worker: there is none"
    if not open_to:
        return f"a worker that fits: none of {len(state.workers)} does"
    if words := budgets.Purse(state).why_not(task.id, 0.0):
        return f"money or room: {words}" if words == "budget" else f"its tenant's {words}"
    if isinstance(policy, Utility) and (held := policy.board.waits.get(pool.key_of(task.spec))):
        return f"something better: {held}"
    if any(worker.takes_work for worker in open_to):
        return "its turn: there is a worker with a free slot that fits"
    soonest_s = min(_wait_s(state, worker) for worker in open_to)
    who = "the one worker that fits is" if len(open_to) == 1 else f"all {len(open_to)} that fit are"
    return f"a free slot: {who} busy, for about {soonest_s:.1f} s more"
