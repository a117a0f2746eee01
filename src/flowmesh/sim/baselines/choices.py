"""Policies that look at one thing only: the single terms of a utility, each on its own.

All of them take the oldest work first, in full batches over steps, runs and tenants, and are
work-conserving: a free worker that fits is never left without work.
"""

from collections.abc import Sequence

from flowmesh.base.ids import WorkerId
from flowmesh.core import pool
from flowmesh.core.fleet import Worker
from flowmesh.core.state import ReadyKey, State
from flowmesh.sim.baselines.base import Autoscaler, Baseline
from flowmesh.sim.baselines.known import Known


class FirstFit(Baseline):
    """`fifo`: what job queues do. The oldest step first, on the first worker that fits.

    Knows the order of arrival and what fits. A batch is of one step, as a queue does not look
    into its jobs; a step with many rows may have several workers, as an array job has.
    """

    within_step = True

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        return workers[0]


class BinPack(Baseline):
    """`bin-pack`: the worker that is left with the least room, so that large ones stay free.

    Room is memory of devices, then slots. Among equals the one that has work already.
    """

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        def room(worker: Worker) -> tuple[float, int, str]:
            return worker.device.memory_bytes, worker.slots - len(worker.leases), worker.id

        return min(workers, key=room)


class Fastest(Baseline):
    """`fastest`: the free worker that would be done first, by the true times, loading included."""

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        def done_s(worker: Worker) -> tuple[float, str]:
            load_s = (
                0.0 if batch_key in worker.warm else self.known.load_s(batch_key, worker.device)
            )
            rows = min(key.count, self.known.rows(batch_key, worker.device))
            return load_s + self.known.batch_s(batch_key, worker.device, rows), worker.id

        return min(workers, key=done_s)


class Cheapest(Baseline):
    """`cheapest`: the free worker with the lowest price an hour; among equals a warm one."""

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        return min(workers, key=lambda one: (one.usd_per_hour, batch_key not in one.warm, one.id))


class Locality(Baseline):
    """`locality`: where the engine is warm, else where the most of its files are on disk.

    Among equals the one that runs the fewest other engines, so that models stay apart.
    """

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        demand = state.demands.get(batch_key)
        trees = demand.trees if demand else ()

        def distance(worker: Worker) -> tuple[bool, int, int, str]:
            missing = sum(tree.size_bytes for tree in trees if tree.digest not in worker.holds)
            return batch_key not in worker.warm, missing, len(worker.warm), worker.id

        return min(workers, key=distance)


class RoundRobin(Baseline):
    """`round-robin`: one worker after the other, in the order of their names."""

    def __init__(self, known: Known, autoscaler: Autoscaler | None = None) -> None:
        super().__init__(known, autoscaler)
        self._last = WorkerId("")

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        after = [worker for worker in workers if worker.id > self._last]
        chosen = min(after or workers, key=lambda worker: worker.id)
        self._last = chosen.id
        return chosen


class BestFit(Baseline):
    """`best-fit`: what the public prototype of FlowMesh does, see `docs/evaluation.md`.

    A worker's score is `size_share` times its normalised size, less the rest times its
    normalised price. Size is memory and number of devices. The task has no part in the score,
    but for what fits. Batches are of at most four tasks.

    `rows_most=None` gives it full batches, to tell the score's part in its result from the
    batches'. `size_share` was tuned: the evaluation tries several and takes the best.
    """

    def __init__(
        self,
        known: Known,
        autoscaler: Autoscaler | None = None,
        *,
        size_share: float = 0.5,
        rows_most: int | None = 4,
    ) -> None:
        super().__init__(known, autoscaler)
        self._size_share = size_share
        self.rows_most = rows_most

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        fleet = list(state.workers.values())
        memory = max(worker.device.memory_bytes for worker in fleet) or 1
        devices = max(worker.devices for worker in fleet) or 1
        price = max(worker.usd_per_hour for worker in fleet) or 1.0

        def score(worker: Worker) -> tuple[float, str]:
            size = (worker.device.memory_bytes / memory + worker.devices / devices) / 2
            share = self._size_share
            return -(share * size - (1 - share) * worker.usd_per_hour / price), worker.id

        return min(workers, key=score)


def waiting(state: State) -> dict[str, int]:
    """Ready tasks by batch key."""
    counts: dict[str, int] = {}
    for key in state.ready.values():
        name = pool.batch_key(state, key)
        counts[name] = counts.get(name, 0) + key.count
    return counts
