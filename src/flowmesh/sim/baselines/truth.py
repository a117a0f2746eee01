"""The true means that baselines are told, from the workload and the engines of a simulation."""

from dataclasses import dataclass

import numpy as np

from flowmesh.base.ids import RunId
from flowmesh.core.fleet import Device
from flowmesh.sim.baselines.known import Stage
from flowmesh.sim.devices import Machine
from flowmesh.sim.engines import Engine, Rows, concurrency
from flowmesh.sim.market import Market, machine_of
from flowmesh.sim.policies import OF_RUN, Setting
from flowmesh.sim.workflows import MAX_BATCH, Content, Kind

#: Leases of a long queue that a full batch's time is taken over.
FULL_ROWS = 512


@dataclass(slots=True)
class Mean:
    """The rows of one batch key: how many, and a sample of them for the times of batches."""

    kind: Kind
    prompt: np.ndarray[tuple[int], np.dtype[np.int64]]
    output: np.ndarray[tuple[int], np.dtype[np.int64]]
    prefix_tokens: float
    work: float
    max_batch: int
    tokens: float  #: of a whole row, each weighted by the steps that it stays


class TrueMeans:
    """Implements `Known` for one simulation; answers are kept, as they never change."""

    def __init__(self, setting: Setting) -> None:
        self._truth = setting.truth
        self._scenario = setting.scenario
        self._plan = setting.plan
        self._market = Market(setting.scenario)
        self._means: dict[str, Mean] = {}
        self._machines: dict[str, Machine] = {}
        self._batches: dict[tuple[str, str, int], float] = {}
        self._fits: dict[tuple[str, str], bool] = {}
        self._loads: dict[tuple[str, str, float, float], float] = {}
        self._stages: dict[RunId, tuple[Stage, ...]] = {}
        self._read()

    def _read(self) -> None:
        contents: dict[str, list[Content]] = {}
        known: dict[str, None] = {}
        for submission in self._plan.submissions:
            stages = []
            for step in submission.steps:
                content = self._plan.library.content(step.fingerprint)
                key = content.kind.key
                stages.append(Stage(key, len(content)))
                if step.fingerprint not in known:
                    known[step.fingerprint] = None
                    contents.setdefault(key, []).append(content)
            self._stages[submission.run] = tuple(stages)
        self._means = {key: _mean(found) for key, found in contents.items()}

    def _mean(self, batch_key: str) -> Mean:
        return self._means[batch_key.partition(OF_RUN)[0]]

    def _machine(self, device: Device) -> Machine:
        if device.kind not in self._machines:
            self._machines[device.kind] = machine_of(self._scenario, device.kind)
        return self._machines[device.kind]

    def _engine(self, batch_key: str) -> Engine:
        return self._mean(batch_key).kind.engine

    def fits(self, batch_key: str, device: Device) -> bool:
        mean = self._mean(batch_key)
        at = mean.kind.key, device.kind
        if at not in self._fits:
            machine = self._machine(device)
            self._fits[at] = self._truth.fits(mean.kind.engine, machine, mean.tokens)
        return self._fits[at]

    def rows(self, batch_key: str, device: Device) -> int:
        mean, machine = self._mean(batch_key), self._machine(device)
        spec = self._truth.spec(machine)
        if spec is not None:
            return min(spec.concurrency or mean.max_batch, mean.max_batch)
        if mean.kind.engine.kind != "generate":
            return mean.max_batch
        return max(1, concurrency(mean.kind.engine, machine, mean.tokens))

    def row_s(self, batch_key: str, device: Device) -> float:
        rows = min(self._mean(batch_key).max_batch, FULL_ROWS)
        return self.batch_s(batch_key, device, rows) / rows

    def batch_s(self, batch_key: str, device: Device, rows: int) -> float:
        """Beyond the longest lease, leases follow one another."""
        mean = self._mean(batch_key)
        most = min(rows, mean.max_batch)
        at = mean.kind.key, device.kind, most
        if at not in self._batches:
            prompt, output = np.resize(mean.prompt, most), np.resize(mean.output, most)
            saved = int(mean.prefix_tokens * (most - 1))
            batch = Rows(prompt, output, mean.work * most, saved)
            took = self._truth.batch(mean.kind.engine, self._machine(device), batch)
            self._batches[at] = took.exec_s
        return self._batches[at] * rows / most

    def load_s(self, batch_key: str, device: Device) -> float:
        kind, fetch = self._mean(batch_key).kind, device.fetch_bytes_per_s
        load = device.load_bytes_per_s or 1e9
        at = kind.key, device.kind, fetch, load
        if at not in self._loads:
            size = sum(tree.size_bytes for tree in kind.demand.trees)
            load_s = self._truth.load_s(kind.engine, self._machine(device), load)
            self._loads[at] = load_s + (size / fetch if fetch else 0.0)
        return self._loads[at]

    def reference_usd(self, batch_key: str) -> float:
        """Of a mean row on the cheapest kind there is, at its list price."""
        key = self._mean(batch_key).kind.key
        at = f"reference {key}", "", 0
        if at not in self._batches:
            costs = [
                price * self.row_s(key, device) / 3600
                for price, device in self._prices()
                if self.fits(key, device)
            ]
            self._batches[at] = min(costs, default=1e-6)
        return self._batches[at]

    def _prices(self) -> list[tuple[float, Device]]:
        found = [(offer.usd_per_hour, offer.device) for offer in self._market.listed()]
        for part in self._scenario.fleet:
            machine = machine_of(self._scenario, part.kind, part.gpus)
            price = self._market.fixed_usd_per_hour(part, machine)
            found.append((price, machine.device(1.25e9)))
        return found

    def stages(self, run: RunId) -> tuple[Stage, ...]:
        return self._stages[run]


def _mean(contents: list[Content]) -> Mean:
    """A sample of the rows of one key, evenly from all of its steps."""
    first = contents[0]
    each = max(1, FULL_ROWS // len(contents))
    prompt = np.concatenate([one.prompt[:each] for one in contents])
    output = np.concatenate([one.output[:each] for one in contents])
    rows = sum(len(one) for one in contents)
    shared = sum(sum(one.prefix_tokens) for one in contents) / rows
    most = min(one.step.max_batch or MAX_BATCH[one.step.kind] for one in contents)
    tool = first.step.kind == "tool"
    work = sum(one.step.work * len(one) for one in contents) / rows if tool else 0.0
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(prompt))
    tokens = float(np.average(prompt + output, weights=np.maximum(1, output)))
    return Mean(first.kind, prompt[order], output[order], shared, work, most, tokens)
