"""`throughput-matrix`: what a heterogeneity-aware scheduler of training clusters does.

Stands for Gavel (OSDI'20): a matrix of normalised throughputs of job classes on worker types,
a linear program over it that says which share of its time each type gives to each class, and a
round mechanism that hands out workers so that the shares come true. Classes are batch keys.

It knows the true throughputs, and what waits. Tuned: the program is solved anew whenever
another class waits or the fleet changes, not only every six minutes as in the paper, and what
the shares leave free is given away by throughput; both shorten its queues.
"""

from collections.abc import Sequence

import numpy as np

from flowmesh.core import pool
from flowmesh.core.fleet import Device, Worker
from flowmesh.core.state import ReadyKey, State
from flowmesh.sim.baselines.base import Autoscaler, Baseline
from flowmesh.sim.baselines.choices import waiting
from flowmesh.sim.baselines.known import Known
from flowmesh.sim.baselines.simplex import maximise

#: A solution holds for so long, if nothing changes.
ROUND_MS = 60_000
#: What a class may get beyond what waits now: more will come.
HORIZON_S = 600.0


class ThroughputMatrix(Baseline):
    def __init__(self, known: Known, autoscaler: Autoscaler | None = None) -> None:
        super().__init__(known, autoscaler)
        self._shares: dict[tuple[str, str], float] = {}
        self._given_s: dict[tuple[str, str], float] = {}
        self._solved_for: tuple[object, ...] = ()

    def pick(
        self, state: State, batch_key: str, key: ReadyKey, workers: Sequence[Worker]
    ) -> Worker | None:
        """The free worker that this class is due the most time of; classes compete for it."""
        self._solve(state)
        wanted = waiting(state)

        def rank(worker: Worker) -> tuple[float, float, bool, str]:
            kind = worker.device.kind
            norm = self._normalised(batch_key, worker.device, _devices(state))
            return -self._due(batch_key, kind), -norm, batch_key not in worker.warm, worker.id

        def yields(worker: Worker) -> bool:
            """Whether another class that waits is due more of this worker than ours."""
            due = self._due(batch_key, worker.device.kind)
            others = [name for name in wanted if self._could(state, name, worker)]
            return any(self._due(name, worker.device.kind) > due for name in others)

        worker = min(workers, key=rank)
        if yields(worker):
            return None
        rows = min(key.count, self.known.rows(batch_key, worker.device))
        pair = batch_key, worker.device.kind
        took_s = self.known.batch_s(batch_key, worker.device, rows)
        self._given_s[pair] = self._given_s.get(pair, 0.0) + took_s
        return worker

    def _could(self, state: State, batch_key: str, worker: Worker) -> bool:
        keys = [one for one in state.ready.values() if pool.batch_key(state, one) == batch_key]
        return any(self.may(state, worker, batch_key, key) for key in keys)

    def _due(self, batch_key: str, kind: str) -> float:
        """Share that it should have, over what it has had: the paper's priority."""
        pair = batch_key, kind
        return self._shares.get(pair, 0.0) / (self._given_s.get(pair, 0.0) + 1.0)

    def _normalised(self, batch_key: str, device: Device, devices: dict[str, Device]) -> float:
        """Throughput on `device` as a share of that on the class's best kind."""
        if not self.known.fits(batch_key, device):
            return 0.0
        fit = [one for one in devices.values() if self.known.fits(batch_key, one)]
        least_s = min(self.known.row_s(batch_key, one) for one in fit)
        return least_s / self.known.row_s(batch_key, device)

    def _solve(self, state: State) -> None:
        """Maximise the summed normalised throughput; no class gets more than it could use."""
        wanted, devices, counts = waiting(state), _devices(state), _counts(state)
        marker = (tuple(sorted(wanted)), tuple(sorted(counts.items())), state.now_ms // ROUND_MS)
        if marker == self._solved_for:
            return
        self._solved_for, self._given_s = marker, {}
        pairs = [(name, kind) for name in sorted(wanted) for kind in sorted(counts)]
        gain = np.array([self._normalised(name, devices[kind], devices) for name, kind in pairs])
        rows = [[float(pair[1] == kind) for pair in pairs] for kind in sorted(counts)]
        limits = [float(counts[kind]) for kind in sorted(counts)]
        for name in sorted(wanted):
            rows.append(
                [share * (pair[0] == name) for pair, share in zip(pairs, gain, strict=True)]
            )
            limits.append(self._backlog(name, wanted[name], devices))
        x = maximise(gain, np.array(rows), np.array(limits))
        self._shares = dict(zip(pairs, x.tolist(), strict=True))

    def _backlog(self, batch_key: str, count: int, devices: dict[str, Device]) -> float:
        """Workers of its best kind that a class could keep busy over the horizon."""
        fit = [one for one in devices.values() if self.known.fits(batch_key, one)]
        if not fit:
            return 0.0
        least_s = min(self.known.row_s(batch_key, one) for one in fit)
        return 1.0 + count * least_s / HORIZON_S


def _devices(state: State) -> dict[str, Device]:
    return {worker.device.kind: worker.device for worker in state.workers.values()}


def _counts(state: State) -> dict[str, int]:
    """Workers by kind."""
    counts: dict[str, int] = {}
    for worker in state.workers.values():
        counts[worker.device.kind] = counts.get(worker.device.kind, 0) + 1
    return counts
