"""The policy: what to do next. Reads the state, changes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flowmesh.base.ids import LeaseId, TaskId
from flowmesh.core import estimate, needs, pool
from flowmesh.core.apply import VIRTUAL_USD_PER_S
from flowmesh.core.decisions import GrantLease, LoseWorker
from flowmesh.core.records import Worker
from flowmesh.core.state import ReadyKey, State
from flowmesh.core.utility import Option, Score, Weights, importance, score

#: A worker that is silent for so long is lost.
LEASE_MS = 15_000
#: How long a task waits for another worker than the one it failed on.
AVOID_MS = 5_000


def expire(state: State) -> Iterator[LoseWorker]:
    for worker in state.workers.values():
        if state.now_ms - worker.heard_ms >= LEASE_MS:
            yield LoseWorker(state.now_ms, worker.id)


#: What the score depends on in a worker, beside the batch key.
Kind = tuple[tuple[str, ...], float, tuple[str, ...], int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key of the pool on idle workers that are alike, the longest idle first."""

    workers: tuple[Worker, ...]
    key: str
    score: Score


def _rank(candidate: Candidate) -> tuple[float, str, str]:
    """Total first; ids after it, so that equal scores give one answer everywhere."""
    return (candidate.score.total, candidate.workers[0].id, candidate.key)


def _kinds(state: State) -> dict[Kind, list[Worker]]:
    kinds: dict[Kind, list[Worker]] = {}
    for worker_id in state.idle:
        worker = state.workers[worker_id]
        has = (worker.devices, worker.memory_bytes)
        kind = (worker.runtimes, worker.usd_per_hour, worker.warm, *has)
        kinds.setdefault(kind, []).append(worker)
    return kinds


def place(state: State, weights: Weights) -> GrantLease | None:
    """Choose the best batch and worker, or None where nothing fits.

    Keys are compared by their totals and equal workers are one candidate, so no task is
    looked at before its key has won, and no worker before its kind has.
    """
    if not state.ready or not state.idle:
        return None
    served_usd = best_served_usd(state)
    kinds = _kinds(state)
    for best in sorted(_candidates(state, kinds, served_usd, weights), key=_rank, reverse=True):
        for worker in best.workers:
            tasks = batch(state, worker, best.key)
            if tasks:
                batch_key = pool.batch_key(state, state.ready[best.key])
                option = option_of(state, worker, batch_key, tasks, served_usd)
                return GrantLease(
                    at_ms=state.now_ms,
                    lease=LeaseId(state.next_lease),
                    worker=worker.id,
                    batch_key=batch_key,
                    tasks=tasks,
                    score=score(option, weights),
                )
    return None


def _candidates(
    state: State, kinds: dict[Kind, list[Worker]], served_usd: float, weights: Weights
) -> Iterator[Candidate]:
    for name, key in state.ready.items():
        heads, batch_key = tuple(pool.heads(key)), pool.batch_key(state, key)
        for workers in kinds.values():
            if needs.fits(workers[0], key):
                sample = option_of(state, workers[0], batch_key, heads, served_usd)
                option = _outline(state, key, sample)
                yield Candidate(tuple(workers), name, score(option, weights))


def _outline(state: State, key: ReadyKey, sample: Option) -> Option:
    """A full batch of a key, from the key's totals and the option of the heads of its queues."""
    first = state.tasks[next(pool.heads(key))]
    size = min(key.count, first.batch_limit)
    unit_s = state.estimates.get(first.spec.batch_key, estimate.PRIOR).unit_s
    return replace(sample, work_s=size * key.work / key.count * unit_s)


def option_of(
    state: State,
    worker: Worker,
    batch_key: str,
    tasks: tuple[TaskId, ...],
    served_usd: float,
) -> Option:
    """The option of running exactly these tasks on this worker."""
    unit_s = state.estimates.get(batch_key, estimate.PRIOR).unit_s
    chosen = [state.tasks[task_id] for task_id in tasks]
    weight = sum(importance(state.tenants[t.tenant].weight, t.priority) for t in chosen)
    return Option(
        work_s=sum(task.spec.work for task in chosen) * unit_s,
        importance=weight / len(chosen),
        start_s=estimate.start_s(warm=batch_key in worker.warm),
        wait_s=(state.now_ms - min(task.since_ms for task in chosen)) / 1000,
        lag_usd=served_usd - min(state.tenants[t.tenant].virtual_usd for t in chosen),
        usd_per_hour=worker.usd_per_hour,
    )


def best_served_usd(state: State) -> float:
    """The virtual time of the tenant with open runs that has received the most."""
    return max(tenant.virtual_usd for tenant in state.tenants.values() if tenant.open_runs)


def batch(state: State, worker: Worker, name: str) -> tuple[TaskId, ...]:
    """The tasks of one batch out of a key of the pool, in fair order, as many as each allows."""
    key = state.ready[name]
    unit_s = state.estimates.get(pool.batch_key(state, key), estimate.PRIOR).unit_s
    others = any(
        other.id != worker.id and needs.fits(other, key) and not other.draining
        for other in state.workers.values()
    )
    picked: list[TaskId] = []
    limit: int | None = None
    for task_id in pool.in_fair_order(state, key, unit_s * VIRTUAL_USD_PER_S):
        task = state.tasks[task_id]
        if others and task.avoid == worker.id and state.now_ms < task.due_ms + AVOID_MS:
            continue
        limit = task.batch_limit if limit is None else min(limit, task.batch_limit)
        if len(picked) >= limit:
            break
        picked.append(task_id)
    return tuple(picked)
