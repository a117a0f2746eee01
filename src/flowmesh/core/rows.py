"""A row of the policy's table: one key of the ready pool, as its totals and its heads tell it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from flowmesh.base.ids import TenantId
from flowmesh.core import estimate, options, pool
from flowmesh.core.options import Engine
from flowmesh.core.records import Demand, Task
from flowmesh.core.state import ReadyKey, State
from flowmesh.core.utility import Quantity, Weights
from flowmesh.core.worth import StepWorth, Worths

Floats = NDArray[np.float64]

#: Batch sizes that are scored: 1, 2, 4 … 4,096.
SIZES: Floats = np.exp2(np.arange(13, dtype=np.float64))
#: Tenants whose next tasks speak for a row.
SPOKESMEN = 8
NOBODY, NO_DEMAND = TenantId(""), Demand()


@dataclass(slots=True, eq=False)
class Row:
    """What a key of the pool is, as far as the policy knows it.

    Attributes:
        limit: most tasks of a batch.
        prompt, output, work: of its mean task.
        prefix: tokens that its mean task shares with others, `spread` distinct ones by task.
        share: of the limit of its output that is expected.
        longest: of so many outputs as `SIZES` says, as shares of the limit.
        reference: USD of a task: fixed, by prompt token, by output token, by unit of work.
        task_usd: reference cost of the mean task, of which a second costs `usd_per_s`.
        next_usd: by tenant, reference cost of its next batch of this key.
        neediest: the tenant whose turn it is.
        importance, path_usd, submitted_ms, deadline_ms, objective: of its next tasks, see
            `worth.StepWorth`; `rest_s` is what the rest of their runs takes; `next_s` is that of
            the run whose turn it is, of whose step `next_tasks` are open.
        linger_until_ms: until when its tasks may wait for others.
        possible: some worker could run its tasks.
    """

    name: str
    index: int
    batch_key: str
    count: int = 0
    limit: int = 1
    prompt: float = 0.0
    output: float = 0.0
    work: float = 0.0
    prefix: float = 0.0
    spread: float = 0.0
    share: float = 0.0
    longest: Floats = field(default_factory=lambda: np.zeros(len(SIZES)))
    demand: Demand = NO_DEMAND
    reference: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    task_usd: float = 0.0
    usd_per_s: float = 1.0
    next_usd: dict[TenantId, float] = field(default_factory=dict)
    neediest: TenantId = NOBODY
    importance: float = 1.0
    path_usd: float = 0.0
    submitted_ms: float = 0.0
    rest_s: float = 0.0
    next_s: float = 0.0
    next_tasks: int = 0
    deadline_ms: float = inf
    objective: str = ""
    linger_until_ms: int = 0
    possible: bool = True

    @property
    def tokens(self) -> float:
        """That the mean task's row is expected to take."""
        return self.prompt + self.share * self.output

    @property
    def cap(self) -> int:
        """Most tasks that a batch could have now."""
        return min(self.limit, self.count)

    def sizes(self, *, batching: bool) -> Floats:
        return np.minimum(SIZES, self.cap if batching else 1)

    def features(
        self, tasks: Quantity, longest: Quantity
    ) -> tuple[Quantity, Quantity, Quantity, Quantity]:
        """Prompt tokens, longest output, output tokens and work of batches of mean tasks."""
        prompt = self.prompt * tasks
        if self.demand.shares_prefixes:
            prefixes = np.maximum(1.0, np.ceil(self.spread * tasks))
            prompt = prompt - self.prefix * np.maximum(0.0, tasks - prefixes)
        work = (0.0 if self.demand.flops_per_token else self.work) * tasks
        return prompt, longest * self.output, self.share * self.output * tasks, work

    def reference_usd(self, tasks: Sequence[Task]) -> list[float]:
        """What each task costs alone, at a full batch's efficiency, where that is cheapest."""
        fixed, prompt, output, work = self.reference
        return [
            fixed + (prompt * spec.prompt_tokens + output * spec.output_tokens) + work * spec.work
            for spec in [task.spec for task in tasks]
        ]


def measure(row: Row, state: State, key: ReadyKey, *, learnt: bool) -> None:
    """Take in what a key holds now; `learnt`: estimates have changed too."""
    first = state.tasks[next(pool.heads(key))]
    row.count = key.count
    limit_tokens = first.spec.output_tokens
    row.prompt = key.prompt_tokens / key.count
    row.work = key.work / key.count
    row.prefix = key.prefix_tokens / key.count
    row.spread = key.prefixes / key.count
    if learnt or row.limit != first.batch_limit or bool(row.output) != bool(limit_tokens):
        row.limit = first.batch_limit
        row.demand = state.demands.get(row.batch_key) or Demand()
        row.share, row.longest = 0.0, np.zeros(len(SIZES))
        if limit_tokens:
            sizes = np.minimum(SIZES, row.limit)
            many = np.asarray(
                estimate.longest_output(state, row.batch_key, limit_tokens, sizes), dtype=float
            )
            row.longest = many / limit_tokens
            row.share = options.output_share(state, first)
    row.output = key.output_tokens / key.count


def refer(row: Row, engines: Iterable[tuple[Engine, float]], weights: Weights) -> None:
    """Find the cheapest kind of worker; `engines` come with their prices in USD an hour."""
    tasks = np.array([float(row.limit)])
    longest = row.longest[-1:]
    prompt, steps, output, work = (float(one[0]) for one in row.features(tasks, longest))
    best = inf
    for engine, usd_per_hour in engines:
        usd_per_s = max(usd_per_hour, weights.floor_usd_per_hour) / 3600
        fixed, by_prompt, by_step, by_output, by_work = engine.seconds
        rounds = steps + max(0.0, output / engine.rows - output / row.limit)
        tokens_s = by_prompt * prompt + by_step * rounds + by_output * output
        total_s = fixed + tokens_s + by_work * work
        if usd_per_s * total_s < best:
            best = usd_per_s * total_s
            row.usd_per_s = usd_per_s
            output_usd = (by_step * rounds / output if output else 0.0) + by_output
            row.reference = (
                usd_per_s * fixed / row.limit,
                usd_per_s * by_prompt * (prompt / (row.prompt * row.limit) if row.prompt else 1),
                usd_per_s * output_usd * row.share,
                0.0 if row.demand.flops_per_token else usd_per_s * by_work,
            )
    fixed_usd, prompt_usd, output_usd, work_usd = row.reference
    row.task_usd = (
        fixed_usd + prompt_usd * row.prompt + output_usd * row.output + work_usd * row.work
    )


def value(
    row: Row, state: State, key: ReadyKey, worths: Worths, virtual_usd: Callable[[TenantId], float]
) -> None:
    """Work out what the row's next tasks are worth, from the next lots of the neediest tenants."""
    neediest = sorted(key.queues, key=lambda tenant: (virtual_usd(tenant), tenant))
    row.neediest, row.next_usd = neediest[0], {}
    spoken: list[tuple[StepWorth, float]] = []
    for tenant in neediest:
        lot = pool.head(key, tenant)
        row.next_usd[tenant] = row.task_usd * min(len(lot), row.limit)
        if len(spoken) < SPOKESMEN:
            task = state.tasks[next(iter(lot))]
            worth = worths.of(state, task.owner, row.task_usd)
            spoken.append((worth, state.tenants[tenant].weight))
            if len(spoken) == 1:
                row.objective = worth.objective
                row.linger_until_ms = task.since_ms + task.spec.linger_ms
    total = sum(weight for _, weight in spoken)
    row.importance = sum(one.importance * weight for one, weight in spoken) / total
    row.path_usd = sum(one.path_usd * weight for one, weight in spoken) / total
    row.submitted_ms = sum(one.submitted_ms * weight for one, weight in spoken) / total
    rest_usd = sum(one.rest_usd * weight for one, weight in spoken) / total
    row.rest_s = rest_usd / row.usd_per_s
    row.next_s = spoken[0][0].rest_usd / row.usd_per_s
    row.next_tasks = spoken[0][0].pending
    row.deadline_ms = min(one.deadline_ms for one, _ in spoken)
