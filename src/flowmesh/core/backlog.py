"""What waits, and what there is to do it with: the two sides that renting weighs.

Both are fluid: tasks of keys that load the same models are one group of work, machines that are
equal are one kind with a number of slots, and all slots share what fits them. That is coarse,
but renting decides over minutes; which batch runs where is the placement's to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from flowmesh.base.ids import InstanceId, LeaseId, StepId, WorkerId
from flowmesh.core import arrivals, estimate, needs, pool
from flowmesh.core.estimate import Amounts, Coefficients
from flowmesh.core.fleet import Device, InstanceStatus, Offer, Worker
from flowmesh.core.knowledge import Fit
from flowmesh.core.records import Demand, Task
from flowmesh.core.state import ReadyKey, State

#: Most keys, groups and kinds that one look takes in: those with most tasks, and the first.
KEYS = 64
GROUPS = 16
KINDS = 48
#: A prediction is made anew when its fit was learnt from so many times as many batches, or its
#: mean amounts have changed by that factor.
STALE = 1.25
#: Tasks of a key that stand for all who wait for it.
HEADS = 16
#: Share of an estimate's doubt that is added to it: kinds that are known come first.
DOUBT = 0.5
#: For so long predicted load times are kept.
LOADS_MS = 60_000
#: How much a task counts that is foreseen.
FORESIGHT = 0.5

Predict = Callable[[State, str, Device], Coefficients]
Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Load:
    """The ready tasks of one batch key and equal needs, by their means.

    Attributes:
        batch: most tasks of one lease.
        prompt_tokens: less what shared prefixes save; with `output_tokens` (the limit) and
            `work`, of one task.
    """

    batch_key: str
    tasks: float
    batch: int
    prompt_tokens: float
    output_tokens: float
    work: float


@dataclass(frozen=True, slots=True)
class Group:
    """Work that a machine does without loading anything else.

    Attributes:
        oldest_ms: since when its oldest known task waits.
        due_ms: the earliest deadline among those who wait longest; 0 if none has one.
        steps: parts that somebody waits for as a whole, as far as the pool shows.
        objectives: of the runs that wait longest.
    """

    runtime: str
    devices: int
    memory_bytes: int
    demand: Demand
    loads: tuple[Load, ...]
    oldest_ms: int
    due_ms: int
    steps: int
    objectives: tuple[str, ...]

    @property
    def tasks(self) -> float:
        return sum(load.tasks for load in self.loads)


@dataclass(frozen=True, slots=True)
class Kind:
    """Machines that are equal in all that renting looks at.

    Attributes:
        slots: batches that all of them run at once.
        taken_s: seconds of slots until they are free, all together.
        starts_s: until the mean of them takes work.
        machines: instances among them that are rented and keep taking work.
        warm: batch keys whose engine is loaded on some of them.
    """

    worker: Worker
    slots: int
    taken_s: float
    starts_s: float
    machines: tuple[InstanceId, ...]
    warm: Mapping[str, None]


@dataclass(frozen=True, slots=True)
class _Part:
    """One key's part of a group; `steps` and what follows are of those who wait longest."""

    loads_like: tuple[object, ...]
    runtime: str
    devices: int
    memory_bytes: int
    load: Load
    since_ms: int
    due_ms: int
    steps: tuple[StepId, ...]
    objectives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """Seconds of a task in a full batch, and alone."""

    seconds: float
    alone_s: float
    fit: Fit | None
    load: Load


class Backlog:
    """Reads groups and kinds off a state. Keeps predictions and what it has seen of each key."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Device], _Known] = {}
        self._seen: dict[str, _Part] = {}
        self._loads: dict[tuple[str, Device], float] = {}
        self._loads_ms = 0

    def groups(
        self, state: State, more: Mapping[str, float] | None = None, *, ready: float = 1.0
    ) -> list[Group]:
        """What is ready, by what it loads; the groups with most tasks.

        Args:
            more: tasks of batch keys that are not ready, but foreseen.
            ready: what counts as one task for each that is ready.
        """
        left = dict(more or {})
        keys = list(state.ready.values())
        if len(keys) > KEYS:
            keys = sorted(keys, key=lambda key: -key.count)[:KEYS]
        found: dict[tuple[object, ...], list[_Part]] = {}
        for key in keys:
            part = _part(state, key)
            self._seen[part.load.batch_key] = part
            tasks = ready * part.load.tasks + left.pop(part.load.batch_key, 0.0)
            part = replace(part, load=replace(part.load, tasks=tasks))
            found.setdefault(part.loads_like, []).append(part)
        for batch_key, tasks in left.items():
            seen = self._seen.get(batch_key)
            if seen is not None and tasks:
                load = replace(seen.load, tasks=tasks)
                part = replace(seen, load=load, since_ms=state.now_ms, due_ms=0, steps=())
                found.setdefault(part.loads_like, []).append(part)
        if len(self._seen) > 20 * KEYS:
            self._seen.clear()
        groups = [_group(state, parts) for parts in found.values()]
        groups.sort(key=lambda group: -group.tasks)
        return groups[:GROUPS]

    def seconds(
        self, state: State, groups: list[Group], workers: list[Worker], predict: Predict
    ) -> Table:
        """`[groups, workers]`: seconds that one slot takes for all of a group, loads apart.

        Infinite where it does not fit.
        """
        table = np.full((len(groups), len(workers)), np.inf)
        for row, group in enumerate(groups):
            alike: dict[tuple[object, ...], float] = {}
            for column, worker in enumerate(workers):
                name = _name(worker)
                if name not in alike:
                    alike[name] = np.inf
                    if feasible(group, worker):
                        known = self._each(state, group, worker, predict)
                        pairs = zip(group.loads, known, strict=True)
                        alike[name] = sum(load.tasks * one.seconds for load, one in pairs)
                table[row, column] = alike[name]
        return table

    def spread(
        self,
        state: State,
        groups: list[Group],
        workers: list[Worker],
        predict: Predict,
        counts: Table,
    ) -> Table:
        """`[groups, workers, counts]`: by what `seconds` is multiplied when so many share a group.

        Each has a part of it only, so its batches are smaller.
        """
        table = np.ones((len(groups), len(workers), len(counts)))
        for row, group in enumerate(groups):
            tasks = np.array([load.tasks for load in group.loads])[:, None]
            most = np.array([load.batch for load in group.loads])[:, None]
            rows = np.maximum(1.0, np.minimum(most, tasks))
            shorter = tasks * (1 / np.clip(tasks / counts, 1.0, rows) - 1 / rows)
            shorter *= rows / np.maximum(rows - 1, 1.0)
            alike: dict[tuple[object, ...], Table] = {}
            for column, worker in enumerate(workers):
                name = _name(worker)
                if name not in alike:
                    alike[name] = np.ones(len(counts))
                    if feasible(group, worker):
                        known = self._each(state, group, worker, predict)
                        full_s = np.array([one.seconds for one in known])
                        # A batch takes so much, and so much more for each of its tasks.
                        fixed_s = np.array([one.alone_s for one in known]) - full_s
                        more = fixed_s @ shorter / (full_s @ tasks[:, 0])
                        alike[name] = np.maximum(1.0, 1 + more)
                table[row, column] = alike[name]
        return table

    def _each(self, state: State, group: Group, worker: Worker, predict: Predict) -> list[_Known]:
        return [self._per_task_s(state, group, load, worker, predict) for load in group.loads]

    def load_s(self, state: State, groups: list[Group], devices: list[Device]) -> Table:
        """`[groups, devices]`: seconds until a machine that holds nothing is warm."""
        if state.now_ms - self._loads_ms > LOADS_MS:
            self._loads.clear()
            self._loads_ms = state.now_ms
        table = np.zeros((len(groups), len(devices)))
        for row, group in enumerate(groups):
            for column, device in enumerate(devices):
                name = (group.loads[0].batch_key, device)
                if name not in self._loads:
                    self._loads[name] = demand_load_s(state, group.demand, device)
                table[row, column] = self._loads[name]
        return table

    def cold_s(self, state: State, groups: list[Group], kinds: list[Kind]) -> Table:
        """`[groups, kinds]`: the same of machines that are there; 0 where one of them is warm."""
        table = self.load_s(state, groups, [kind.worker.device for kind in kinds])
        for row, group in enumerate(groups):
            for column, kind in enumerate(kinds):
                if any(load.batch_key in kind.warm for load in group.loads):
                    table[row, column] = 0.0
        return table

    def _per_task_s(
        self, state: State, group: Group, load: Load, worker: Worker, predict: Predict
    ) -> _Known:
        device = worker.device
        fit = state.fits.get(estimate.fit_key(load.batch_key, device.kind))
        name = (load.batch_key, device)
        known = self._known.get(name)
        if known is None or _is_stale(known, fit, load):
            if len(self._known) > 20 * KEYS * KINDS:
                self._known.clear()
            coefficients = predict(state, load.batch_key, device)
            full, alone = (
                _per_task_s(state, group.demand, one, device, coefficients)
                for one in (load, replace(load, batch=1))
            )
            known = self._known[name] = _Known(full, max(full, alone), fit, load)
        return known


def _name(worker: Worker) -> tuple[object, ...]:
    """Workers of one name are equal in what fits them and how long it takes."""
    device = worker.device
    return (
        device.kind,
        device.flops_per_s,
        device.memory_bytes,
        worker.runtimes,
        worker.devices,
        worker.memory_bytes,
        worker.place,
    )


def _is_stale(known: _Known, fit: Fit | None, load: Load) -> bool:
    old = known.load
    if (known.fit is None) != (fit is None):
        return True
    if known.fit and fit and fit.seen > STALE * known.fit.seen:
        return True
    pairs = (
        (old.prompt_tokens, load.prompt_tokens),
        (old.output_tokens, load.output_tokens),
        (old.work, load.work),
        (min(old.batch, old.tasks), min(load.batch, load.tasks)),
    )
    return any(max(one, other) > STALE * min(one, other) for one, other in pairs)


def _load(state: State, key: ReadyKey, head: Task) -> Load:
    spec = head.spec
    demand = state.demands.get(spec.batch_key) or Demand()
    prompt_tokens = key.prompt_tokens
    if demand.shares_prefixes and key.prefixes:
        # Each batch reads a prefix once.
        batches = max(key.prefixes, key.count / spec.max_batch)
        prompt_tokens -= int(key.prefix_tokens * max(0.0, 1 - batches / key.count))
    return Load(
        batch_key=spec.batch_key,
        tasks=float(key.count),
        batch=spec.max_batch,
        prompt_tokens=prompt_tokens / key.count,
        output_tokens=key.output_tokens / key.count,
        work=key.work / key.count,
    )


def _part(state: State, key: ReadyKey) -> _Part:
    heads = [state.tasks[task_id] for task_id in islice(pool.heads(key), HEADS)]
    demand = state.demands.get(heads[0].spec.batch_key) or Demand()
    runs = [state.runs[state.steps[task.owner].run] for task in heads]
    return _Part(
        loads_like=(key.runtime, key.devices, key.memory_bytes, demand.trees, demand.weights_bytes),
        runtime=key.runtime,
        devices=key.devices,
        memory_bytes=key.memory_bytes,
        load=_load(state, key, heads[0]),
        since_ms=min(task.since_ms for task in heads),
        due_ms=min((run.deadline_ms for run in runs if run.deadline_ms), default=0),
        steps=tuple(task.owner for task in heads),
        objectives=tuple(run.objective for run in runs),
    )


def _group(state: State, parts: list[_Part]) -> Group:
    first = parts[0]
    steps = dict.fromkeys(step for part in parts for step in part.steps)
    return Group(
        runtime=first.runtime,
        devices=first.devices,
        memory_bytes=first.memory_bytes,
        demand=state.demands.get(first.load.batch_key) or Demand(),
        loads=tuple(part.load for part in parts),
        oldest_ms=min(part.since_ms for part in parts),
        due_ms=min((part.due_ms for part in parts if part.due_ms), default=0),
        steps=max(1, len(steps)),
        objectives=tuple(dict.fromkeys(name for part in parts for name in part.objectives)),
    )


def feasible(group: Group, worker: Worker) -> bool:
    """Whether a worker could do the work of a group: its needs, and its device's memory."""
    if not needs.fits(worker, group):
        return False
    tokens = max(load.prompt_tokens + load.output_tokens for load in group.loads)
    return estimate.fits(group.demand, worker.device, tokens)


def _per_task_s(
    state: State, demand: Demand, load: Load, device: Device, coefficients: Coefficients
) -> float:
    """Seconds of a task in a full batch."""
    rows = max(1, min(load.batch, int(load.tasks)))
    tokens, steps = 0.0, 0.0
    if load.output_tokens:
        limit = int(load.output_tokens)
        tokens = estimate.expected_output(state, load.batch_key, limit)
        longest = estimate.longest_output(state, load.batch_key, limit, rows)
        at_once = estimate.concurrency(demand, device, load.prompt_tokens + tokens)
        steps = float(np.max(estimate.decode_steps(longest, tokens * rows, at_once, rows)))
    work = 0.0 if demand.flops_per_token else load.work * rows
    amounts = Amounts(load.prompt_tokens * rows, steps, tokens * rows, work)
    doubted = 1 + DOUBT * coefficients.sigma
    return max(doubted * float(coefficients.exec_s(amounts)) / rows, 1e-6)


def demand_load_s(state: State, demand: Demand, device: Device) -> float:
    """Seconds until a machine that holds nothing is warm for a batch key."""
    size_bytes = sum(tree.size_bytes for tree in demand.trees)
    fetch_s = estimate.fetch_s(state, size_bytes, device)
    return fetch_s + (estimate.load_s(state, demand, device) if demand.weights_bytes else 0.0)


def as_worker(offer: Offer) -> Worker:
    """The worker that a machine rented from `offer` would become."""
    return Worker(
        id=WorkerId(offer.id),
        runtimes=offer.runtimes,
        slots=offer.slots,
        usd_per_hour=offer.usd_per_hour,
        warm=(),
        heard_ms=0,
        devices=offer.devices,
        memory_bytes=offer.memory_bytes,
        device=offer.device,
        place=offer.place,
        interruptions_per_hour=offer.interruptions_per_hour,
    )


def kinds(state: State) -> list[Kind]:
    """The machines that take work or are starting to, those that are equal together."""
    found: dict[tuple[object, ...], list[tuple[Worker, float, float, InstanceId]]] = {}
    for worker in state.workers.values():
        if not worker.draining:
            taken_s = sum([_left_s(state, lease) for lease in worker.leases])
            rented = worker.instance if worker.instance in state.instances else InstanceId("")
            found.setdefault(_like(worker), []).append((worker, taken_s, 0.0, rented))
    for instance in state.instances.values():
        if instance.status is InstanceStatus.LAUNCHING:
            worker = as_worker(instance.offer)
            since_s = (state.now_ms - instance.launched_ms) / 1000
            starts_s = max(1.0, estimate.startup_s(state, instance.offer) - since_s)
            found.setdefault(_like(worker), []).append((worker, 0.0, starts_s, instance.id))
    return [_kind(part) for part in found.values()][:KINDS]


def _like(worker: Worker) -> tuple[object, ...]:
    return (*_name(worker), worker.usd_per_hour, worker.slots)


def _kind(part: list[tuple[Worker, float, float, InstanceId]]) -> Kind:
    return Kind(
        worker=part[0][0],
        slots=sum(max(1, worker.slots) for worker, *_ in part),
        taken_s=sum(taken_s for _, taken_s, _, _ in part),
        starts_s=sum(starts_s for _, _, starts_s, _ in part) / len(part),
        machines=tuple(instance for *_, instance in part if instance),
        warm=dict.fromkeys(key for worker, *_ in part for key in worker.warm),
    )


def _left_s(state: State, lease_id: LeaseId) -> float:
    """What a lease should still take; a tenth of what was expected once it is late."""
    lease = state.leases[lease_id]
    total_s = lease.expected.total_s
    return max(total_s - (state.now_ms - lease.granted_ms) / 1000, 0.1 * total_s)


def soon(state: State, lead_s: float) -> dict[str, float]:
    """Tasks that are foreseen within `lead_s`, by batch key, where they come like clockwork."""
    found: dict[str, float] = {}
    for batch_key in islice(reversed(state.arrivals), KEYS):
        known = state.arrivals[batch_key]
        even = arrivals.regular(known, state.now_ms)
        if even and arrivals.next_s(state, batch_key) <= lead_s:
            found[batch_key] = FORESIGHT * known.size
    return found


def flow(state: State, within_s: float) -> dict[str, float]:
    """Tasks that come in within so long, at the rate of late, by batch key."""
    keys = islice(reversed(state.arrivals), KEYS)
    return {key: arrivals.rate_per_s(state, key) * within_s for key in keys}
