"""Nobody is starved: shares over any ten minutes, and single requests beside a backlog."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from random import Random

import pytest

from flowmesh.base.ids import RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.events import RunSubmitted, StepAssembled, StepExpanded, TaskResult, WorkerSynced
from flowmesh.core.machine import ControlPlane
from flowmesh.core.records import Run, Step, TaskSpec

WINDOW_MS = 600_000
SAMPLE_MS = 20_000


@dataclass
class Shop:
    """Workers that take batches for about as long as expected, on a clock of their own."""

    seed: int
    workers: int = 3
    now_ms: int = 0
    granted: list[tuple[int, GrantLease]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.plane = ControlPlane(lease_ms=10**12)
        self.ends: list[tuple[int, int, GrantLease]] = []
        #: Reference USD that each tenant was granted.
        self.received: dict[str, float] = {}
        self.runs = 0
        for number in range(self.workers):
            self.sync(WorkerId(f"w{number}"))

    def sync(self, worker: WorkerId, results: tuple[TaskResult, ...] = ()) -> None:
        known = self.plane.state.workers.get(worker)
        warm = known.warm if known else ()
        if results:
            warm = (self.granted_to(results[0].lease).batch_key,)
        price = 1.0 + int(worker[1:]) % 2
        self.take(
            self.plane.step(WorkerSynced(self.now_ms, worker, ("models",), 1, price, warm, results))
        )
        for step in tuple(self.plane.state.todo):
            self.take(self.plane.step(StepAssembled(self.now_ms, step)))

    def granted_to(self, lease: int) -> GrantLease:
        return next(grant for _, grant in reversed(self.granted) if grant.lease == lease)

    def take(self, decisions: list[Decision]) -> None:
        for choice in decisions:
            assert isinstance(choice, GrantLease)
            self.granted.append((self.now_ms, choice))
            tasks = [self.plane.state.tasks[task] for task in choice.tasks]
            work = sum(task.spec.work for task in tasks)
            for task in tasks:
                usd = choice.expected.reference_usd * task.spec.work / work
                self.received[task.tenant] = self.received.get(task.tenant, 0.0) + usd
            took_ms = int(1000 * choice.expected.total_s * self.rng.uniform(0.7, 1.4)) + 1
            heappush(self.ends, (self.now_ms + took_ms, choice.lease, choice))

    def submit(self, tenant: str, key: str, count: int, **run: float) -> RunId:
        self.runs += 1
        name = RunId(f"r{self.runs}")
        step = StepId(f"{name}/only")
        record = Run(name, TenantId(tenant), int(run.get("priority", 0)), (step,), self.now_ms)
        record = Run(*[getattr(record, one) for one in Run.__slots__[:5]], run.get("weight", 1.0))
        self.take(self.plane.step(RunSubmitted(self.now_ms, record, (Step(step, name, ()),))))
        work = run.get("work", 20.0)
        wanted = tuple(
            TaskSpec(TaskId(f"{name}-{n}"), key, "models", work, 64, "p", n) for n in range(count)
        )
        self.take(self.plane.step(StepExpanded(self.now_ms, step, count, wanted=wanted)))
        return name

    def run(self, until_ms: int) -> None:
        """Let batches end until then; wake the plane where it asks for it."""
        while True:
            due_ms = self.plane.policy.wakes_ms(self.plane.state)
            next_ms = self.ends[0][0] if self.ends else until_ms + 1
            if due_ms is not None and due_ms < next_ms:
                if due_ms > until_ms:
                    break
                self.now_ms = max(due_ms, self.now_ms)
                self.sync(WorkerId("w0"))
            elif next_ms > until_ms:
                break
            else:
                self.now_ms, _, grant = heappop(self.ends)
                results = tuple(TaskResult(grant.lease, task) for task in grant.tasks)
                self.sync(grant.worker, results)
        self.now_ms = until_ms

    def ready(self, tenant: str) -> int:
        queues = (key.queues.get(TenantId(tenant), {}) for key in self.plane.state.ready.values())
        return sum(len(lot) for queue in queues for lots in queue.values() for lot in lots.values())


Samples = list[dict[str, tuple[int, float]]]


def backlogs(shop: Shop, weights: dict[str, float], until_ms: int) -> Samples:
    """Keep all but the last tenant busy, and let that one come in bursts.

    Samples of what is ready by tenant, and what each has received, in reference USD.
    """
    samples: Samples = []
    *steady, bursty = weights
    keys = {one: [f"k{(n + i) % 3}" for i in range(1 + n % 2)] for n, one in enumerate(weights)}
    while shop.now_ms < until_ms:
        rng = shop.rng
        for tenant in steady:
            while shop.ready(tenant) < 600:
                shop.submit(
                    tenant,
                    rng.choice(keys[tenant]),
                    300,
                    weight=weights[tenant],
                    priority=rng.choice((0, 0, 10)),
                    work=rng.choice((5.0, 20.0, 60.0)),
                )
        if rng.random() < 0.1:
            shop.submit(bursty, rng.choice(keys[bursty]), 200, weight=weights[bursty], priority=20)
        shop.run(shop.now_ms + SAMPLE_MS)
        samples.append({one: (shop.ready(one), shop.received.get(one, 0.0)) for one in weights})
    return samples


def present(window: Samples, name: str) -> float:
    """Share of a window's samples in which a tenant had work, or was given some."""
    pairs = [(one[name], other[name]) for one, other in pairwise(window)]
    return sum(one[0] > 0 or other[1] > one[1] for one, other in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(6))
def test_a_backlogged_tenant_gets_its_share_of_any_ten_minutes_less_one_batch(seed: int) -> None:
    rng = Random(seed)
    shop = Shop(seed, workers=rng.choice((2, 5)))
    names = [f"t{n}" for n in range(rng.choice((3, 4, 6)))]
    weights = {name: rng.choice((1.0, 1.0, 2.0, 5.0)) for name in names}
    samples = backlogs(shop, weights, 2 * WINDOW_MS)
    batch_usd = max(grant.expected.reference_usd for _, grant in shop.granted)
    length, checked = WINDOW_MS // SAMPLE_MS, 0
    for first in range(len(samples) - length):
        window = samples[first : first + length + 1]
        got = {name: window[-1][name][1] - window[0][name][1] for name in names}
        there = {name: present(window, name) for name in names}
        weight = sum(weights[name] * there[name] for name in names)
        total = sum(got.values())
        for name in names:
            if all(one[name][0] for one in window):
                checked += 1
                share = total * weights[name] / weight
                assert got[name] >= share - batch_usd, (name, first, got, weights)
    assert checked > 10 and len(shop.granted) > 100


@pytest.mark.parametrize("key", ["bulk", "other"])
@pytest.mark.parametrize("seed", range(4))
def test_a_single_request_goes_before_a_backlog_at_the_next_free_slot(key: str, seed: int) -> None:
    """Of another tenant, in the same batch key or another, again and again.

    So far apart that none is better off waiting for the engine that the last one has loaded.
    """
    shop = Shop(seed, workers=2)
    shop.submit("busy", "bulk", 20_000)
    shop.submit("also", "more", 20_000)
    shop.run(60_000)
    for _ in range(20):
        shop.run(shop.now_ms + shop.rng.randrange(15_000, 30_000))
        before = len(shop.granted)
        name = shop.submit("one", key, 1, work=1.0)
        while len(shop.granted) == before:
            shop.run(shop.now_ms + 100)
        _, first = shop.granted[before]
        assert TaskId(f"{name}-0") in first.tasks, (shop.now_ms, first.batch_key)
