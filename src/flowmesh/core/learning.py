"""The law of learning: what results teach of times, lengths and rates.

Called by `apply` for each result before it is taken. Only what the lease that holds a task
says of a success counts.
"""

from collections.abc import Sequence
from math import log
from typing import TypeVar

from flowmesh.base.ids import WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import estimate, lengths, regression, roofline
from flowmesh.core.events import BatchTiming, TaskResult
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.knowledge import Rate
from flowmesh.core.records import Demand, Failure, Lease, Task
from flowmesh.core.roofline import Amounts
from flowmesh.core.state import Measured, State

#: Most fits, histograms and rates; at the limit the one that was learnt least recently goes.
KEPT = 10_000
#: What the past of a rate still weighs after one more observation.
MEMORY = 0.95
#: Hours of machines after which half of what was seen of interruptions before is forgotten.
MEMORY_HOURS = 200.0
#: Weight of the newest batch in the mean power.
WATTS_WEIGHT = 0.1
#: Seconds, bytes, tokens: figures beyond it are errors.
MOST = 1e15
#: Estimates of prompt tokens are not further off than this factor.
MOST_TOKENS = 10.0
#: Shorter loads and fetches say more of the clock than of the machine.
LEAST_S = 0.001
#: Fetching less tells of the way to the store and back, not of how wide it is.
LEAST_BYTES = 1_000_000

Kept = TypeVar("Kept")


def learn(state: State, result: TaskResult, worker_id: WorkerId) -> None:
    """Take in what a result tells."""
    task = state.tasks.get(result.task)
    lease = state.leases.get(result.lease)
    if task is None or lease is None or task.lease != lease.id or lease.worker != worker_id:
        return
    if result.failure not in (None, Failure.INPUT):
        return
    if result.batch is not None and _sane(result.batch):
        # A row that could not be used took its time with the others.
        state.changes.measured.append(Measured(lease, result.batch))
        _learn_batch(state, lease, result.batch)
    if result.failure is not None:
        return
    if result.output_tokens and task.spec.output_tokens:
        spec = task.spec
        learn_lengths(state, spec.batch_key, spec.output_tokens, (result.output_tokens,))
    if result.batch is None and len(state.lease_left[lease.id]) == 1:
        # A worker that never tells of whole batches: its last task stands for a batch of one.
        alone = _alone(task, result)
        if _sane(alone):
            _learn_batch(state, lease, alone)


def _sane(timing: BatchTiming) -> bool:
    """Whether all figures are ones that a machine could tell: not negative, finite, not absurd."""
    figures = (
        timing.fetch_s, timing.fetch_bytes, timing.load_s, timing.load_bytes, timing.exec_s,
        timing.prompt_tokens, timing.decode_steps, timing.output_tokens, timing.work,
        timing.joules, timing.tasks,
    )  # fmt: skip
    return all(0 <= one <= MOST for one in figures)


def _alone(task: Task, result: TaskResult) -> BatchTiming:
    return BatchTiming(
        tasks=1,
        exec_s=result.seconds,
        prompt_tokens=task.spec.prompt_tokens,
        decode_steps=result.output_tokens,
        output_tokens=result.output_tokens,
        work=task.spec.work,
        joules=result.joules,
    )


def learn_lengths(state: State, batch_key: str, limit: int, outputs: Sequence[int]) -> None:
    """Take in how long outputs got that might have had `limit` tokens, one after another."""
    one, all_limits = lengths.key(batch_key, limit), lengths.key(batch_key, 0)
    pooled, known = state.lengths.get(all_limits), state.lengths.get(one)
    keep(state.lengths, one, lengths.learnt_all(known, pooled, outputs, limit))
    keep(state.lengths, all_limits, lengths.learnt_all(pooled, None, outputs, limit))
    state.touched.estimates[batch_key] = None


def _learn_batch(state: State, lease: Lease, timing: BatchTiming) -> None:
    worker = state.workers[lease.worker]
    demand = state.demands.get(lease.batch_key) or Demand()
    device = worker.device
    if device.kind != lease.kind:
        device = replace(device, kind=lease.kind)
    _learn_moves(state, demand, device, worker.place, timing)
    # The rest of what was begun elsewhere says nothing of what the whole takes.
    if timing.exec_s > 0 and not any(lease.checkpoints):
        _learn_times(state, lease, device, timing)
        _learn_tokens(state, lease, timing)
    state.touched.estimates[lease.batch_key] = None


def amounts_of(demand: Demand, device: Device, timing: BatchTiming) -> Amounts:
    """The features of a batch that was executed."""
    tokens = timing.prompt_tokens + timing.output_tokens
    rows = roofline.concurrency(demand, device, tokens / max(timing.tasks, 1))
    steps = max(timing.decode_steps, timing.output_tokens / rows)
    work = 0.0 if demand.flops_per_token else timing.work
    return Amounts(timing.prompt_tokens, steps, timing.output_tokens, work)


def _learn_times(state: State, lease: Lease, device: Device, timing: BatchTiming) -> None:
    demand = state.demands.get(lease.batch_key) or Demand()
    amounts = amounts_of(demand, device, timing)
    features = [float(one) for one in amounts.each()]
    known = estimate.counted(state, lease.batch_key, device)
    name = estimate.fit_key(lease.batch_key, lease.kind)
    old = state.fits.get(name)
    # A lease that became smaller is held against what is known, not against what was expected.
    whole = timing.tasks == len(lease.tasks)
    predicted = lease.expected.exec_s if whole else 0.0
    predicted = predicted or float(known.exec_s(amounts))
    sigma = estimate.prior_sigma(demand, device)
    new = regression.learnt(old, known.seconds, sigma, features, timing.exec_s)
    seen = new.seen - 1
    error = regression.blamed(old.error if old else 0.0, seen, predicted, timing.exec_s)
    new = replace(new, error=error, watts=_watts(new.watts, timing))
    keep(state.fits, name, new)
    _learn_prior(state, lease, demand, device, timing.exec_s, amounts)


def _learn_prior(
    state: State, lease: Lease, demand: Demand, device: Device, exec_s: float, amounts: Amounts
) -> None:
    """How far data sheets are off, for kinds of machine that have not run the key yet."""
    sheet = estimate.Coefficients(roofline.seconds(demand, device), 0.0, 0, 0.0)
    ratio = exec_s / float(sheet.exec_s(amounts))
    for name in estimate.pace_names(lease.batch_key, demand.operator, lease.kind):
        _learn_pace(state, name, ratio)


def _learn_tokens(state: State, lease: Lease, timing: BatchTiming) -> None:
    """By how much the prompts of a whole batch were longer, or shorter, than was estimated."""
    if timing.tasks != len(lease.tasks) or not (lease.prompt_tokens and timing.prompt_tokens):
        return
    ratio = timing.prompt_tokens / lease.prompt_tokens
    ratio = min(max(ratio, 1 / MOST_TOKENS), MOST_TOKENS)
    _learn_pace(state, estimate.tokens_name(lease.batch_key), ratio)


def _watts(old: float, timing: BatchTiming) -> float:
    """Mean power, of batches that executed most of the time that they took."""
    busy_s = timing.exec_s + timing.load_s + timing.fetch_s
    if timing.joules <= 0 or busy_s < LEAST_S or busy_s > 2 * timing.exec_s:
        return old
    watts = timing.joules / busy_s
    return old + WATTS_WEIGHT * (watts - old) if old else watts


def _learn_moves(
    state: State, demand: Demand, device: Device, place: str, timing: BatchTiming
) -> None:
    """Loading and fetching."""
    if timing.load_s > LEAST_S:
        pace = timing.load_s / roofline.load_s(demand, device)
        for name in estimate.load_names(demand, device.kind):
            _learn_pace(state, name, pace)
    if timing.fetch_s > LEAST_S and timing.fetch_bytes >= LEAST_BYTES:
        pace = timing.fetch_s / roofline.fetch_s(timing.fetch_bytes, device)
        for name in estimate.fetch_names(device.kind, place):
            _learn_pace(state, name, pace)


def started(state: State, offer: Offer, seconds: float) -> None:
    """The worker of a machine rented from `offer` took work so long after its launch."""
    if seconds > LEAST_S and offer.startup_s > 0:
        name = f"startup|{offer.provider}|{offer.device.kind}"
        _learn_pace(state, name, seconds / offer.startup_s)


def released(state: State, offer: Offer, hours: float) -> None:
    """A machine ran for so long and was not taken away."""
    _learn_interruptions(state, offer, hours, 0)


def interrupted(state: State, offer: Offer, hours: float) -> None:
    """A machine ran for so long and was then taken away."""
    _learn_interruptions(state, offer, hours, 1)


def _learn_interruptions(state: State, offer: Offer, hours: float, times: int) -> None:
    kind = offer.device.kind
    for name in (f"interruptions|{kind}", f"interruptions|{offer.provider}|{kind}"):
        old = state.rates.get(name) or Rate(0.0)
        kept = old.weight * MEMORY_HOURS / (MEMORY_HOURS + max(hours, 0.0))
        weight = kept + max(hours, 1e-3)
        mean = (old.mean * kept + times) / weight
        keep(state.rates, name, Rate(mean, old.seen + 1, 0.0, weight))


def _learn_pace(state: State, name: str, ratio: float) -> None:
    old = state.rates.get(name) or Rate(0.0)
    value = log(min(max(ratio, 1e-6), 1e6))
    weight = old.weight * MEMORY + 1
    mean = old.mean + (value - old.mean) / weight
    variance = old.variance + ((value - old.mean) * (value - mean) - old.variance) / weight
    keep(state.rates, name, Rate(mean, old.seen + 1, max(variance, 0.0), weight))


def keep(kept: dict[str, Kept], name: str, value: Kept) -> None:
    """Put what was learnt; the order is that of the last lesson, and the oldest goes."""
    kept.pop(name, None)
    kept[name] = value
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
