"""Options: batches on workers, with what they should take. Reads the state, changes nothing.

What tasks ask of an engine adds up, but for the longest output and for shared prefixes: a
`Batch`. `Engine` is what one kind of worker makes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from zlib import crc32

from flowmesh.base.ids import StepId
from flowmesh.core import estimate, pool
from flowmesh.core.estimate import Amounts
from flowmesh.core.fleet import Device, Offer, Worker
from flowmesh.core.records import Demand, Expected, Task
from flowmesh.core.state import State
from flowmesh.core.utility import Knobs, Quantity, checkpoint_interval_s

GB = 1e9
#: What a checkpoint takes, where nothing is known: its interval follows by Young's rule.
CHECKPOINT_S = 20.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What batches of one batch key take on one kind of worker in one place.

    Attributes:
        seconds: for each feature of `Amounts`.
        sigma: of a batch's time, relative.
        rows: that run at once.
        load_s: to make it warm.
        fetch_s: for all its trees, where none is held.
        watts, idle_w: while it executes, and while it loads.
        fits: whether the device's memory holds the model.
    """

    seconds: tuple[float, ...]
    sigma: float
    rows: int
    load_s: float
    fetch_s: float
    watts: float
    idle_w: float
    fits: bool

    def exec_s(self, amounts: Amounts) -> Quantity:
        features = zip(self.seconds, amounts.each(), strict=True)
        return sum((each * amount for each, amount in features), start=0.0)


def engine(
    state: State, batch_key: str, device: Device, place: str, tokens_per_row: float, knobs: Knobs
) -> Engine:
    demand = state.demands.get(batch_key) or Demand()
    known = estimate.coefficients(state, batch_key, device, learning=knobs.learning)
    wrong = misjudged(batch_key, device.kind, knobs)
    size_bytes = sum(tree.size_bytes for tree in demand.trees)
    return Engine(
        seconds=tuple(each * wrong for each in known.seconds),
        sigma=known.sigma,
        rows=estimate.concurrency(demand, device, tokens_per_row),
        load_s=estimate.load_s(state, demand, device),
        fetch_s=estimate.fetch_s(state, size_bytes, device, place),
        watts=known.watts,
        idle_w=float(estimate.joules(device, known, 0.0, 1.0)),
        fits=estimate.fits(demand, device, tokens_per_row),
    )


def misjudged(batch_key: str, kind: str, knobs: Knobs) -> float:
    """By what times are taken wrong, to see what wrong estimates cost."""
    if knobs.misjudge == 1.0:
        return 1.0
    over = crc32(f"{batch_key}|{kind}".encode()) & 1
    return knobs.misjudge if over else 1 / knobs.misjudge


def output_share(state: State, task: Task) -> float:
    """Expected share of its limit that a task's output takes."""
    limit = task.spec.output_tokens
    return estimate.expected_output(state, task.spec.batch_key, limit) / limit if limit else 0.0


class Batch:
    """Tasks of one batch key, and what they come to.

    Attributes:
        usd: reference cost.
        by_step: of each step, the reference cost and the number of its tasks.
        prompt, output: tokens, outputs as they are limited; `most` is the highest limit.
        shared: prompt tokens that need no reading, as an earlier task has the same prefix.
        trees: beside those of the batch key.
        resumes: some task goes on from a checkpoint, and so leaves others.
    """

    def __init__(self, tasks: Sequence[Task], usd: Sequence[float]) -> None:
        """`usd`: what each of the tasks costs for reference."""
        specs = [task.spec for task in tasks]
        self.tasks = tasks
        self.usd = sum(usd, 0.0)
        self.by_step = _by_step(tasks, usd)
        self.prompt = sum([spec.prompt_tokens for spec in specs])
        outputs = [spec.output_tokens for spec in specs]
        self.output, self.most = sum(outputs), max(outputs, default=0)
        self.work = sum([spec.work for spec in specs], 0.0)
        self.shared = pool.shared_tokens(specs)
        trees = [spec.trees for spec in specs if spec.trees]
        self.trees = {tree.digest: tree.size_bytes for some in trees for tree in some}
        self.resumes = any([task.checkpoint for task in tasks])

    @property
    def batch_key(self) -> str:
        return self.tasks[0].spec.batch_key

    def tokens_per_row(self, state: State) -> float:
        """Of the mean row, with the output that is expected of it."""
        output = self.output * output_share(state, self.tasks[0]) if self.output else 0.0
        return (self.prompt + output) / len(self.tasks)

    def amounts(self, state: State, rows: int) -> Amounts:
        """What an engine has to do that runs `rows` at once."""
        demand = state.demands.get(self.batch_key) or Demand()
        output = longest = 0.0
        if self.output:
            size = float(len(self.tasks))
            mean = estimate.expected_output(state, self.batch_key, self.most)
            output = mean / self.most * self.output
            longest = float(estimate.longest_output(state, self.batch_key, self.most, size))
        return Amounts(
            prompt_tokens=float(self.prompt - (self.shared if demand.shares_prefixes else 0)),
            decode_steps=float(estimate.decode_steps(longest, output, rows, len(self.tasks))),
            output_tokens=output,
            work=0.0 if demand.flops_per_token else self.work,
        )

    def missing_bytes(self, state: State, worker: Worker | Offer) -> int:
        """What must be fetched first; of an offer's worker nothing is there."""
        holds = worker.holds if isinstance(worker, Worker) else ()
        demand = state.demands.get(self.batch_key) or Demand()
        trees = {tree.digest: tree.size_bytes for tree in demand.trees} | self.trees
        return sum(size_bytes for digest, size_bytes in trees.items() if digest not in holds)

    def redo_s(self, busy_s: float, interruptions_per_hour: float) -> float:
        """Time that an interruption should waste: half of it, or of a checkpoint's interval."""
        if not self.resumes:
            return busy_s / 2
        return min(busy_s, checkpoint_interval_s(CHECKPOINT_S, interruptions_per_hour)) / 2


def _by_step(tasks: Sequence[Task], usd: Sequence[float]) -> dict[StepId, tuple[float, int]]:
    """Of each step, the reference cost and the number of its tasks."""
    found: dict[StepId, tuple[float, int]] = {}
    first = 0
    for owner, alike in groupby([task.owner for task in tasks]):
        many = len(list(alike))
        step_usd, count = found.get(owner, (0.0, 0))
        found[owner] = sum(usd[first : first + many], step_usd), count + many
        first += many
    return found


def expected(
    state: State, batch: Batch, worker: Worker | Offer, knobs: Knobs
) -> tuple[Expected, int]:
    """What exactly this batch should take there; and the bytes that it moves."""
    tokens = batch.tokens_per_row(state)
    made = engine(state, batch.batch_key, worker.device, worker.place, tokens, knobs)
    exec_s = float(made.exec_s(batch.amounts(state, made.rows)))
    warm = isinstance(worker, Worker) and is_warm(state, worker, batch.batch_key)
    missing = batch.missing_bytes(state, worker)
    load_s = 0.0 if warm else made.load_s
    fetch_s = estimate.fetch_s(state, missing, worker.device, worker.place)
    total_s = load_s + fetch_s + exec_s
    return Expected(
        load_s=load_s,
        fetch_s=fetch_s,
        exec_s=exec_s,
        sigma_s=made.sigma * exec_s,
        usd=worker.usd_per_hour * total_s / 3600,
        joules=made.watts * exec_s + made.idle_w * (load_s + fetch_s),
        reference_usd=batch.usd,
    ), missing


def is_warm(state: State, worker: Worker, batch_key: str) -> bool:
    """Whether its engine is loaded, or is being loaded for another slot."""
    if batch_key in worker.warm:
        return True
    return any(state.leases[lease].batch_key == batch_key for lease in worker.leases)
