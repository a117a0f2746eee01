"""One machine of a simulated fleet: what it runs, holds, has loaded, has drawn and wasted."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flowmesh.base.ids import InstanceId, LeaseId, TaskId, WorkerId
from flowmesh.core.events import BatchTiming, TaskResult, WorkerSynced
from flowmesh.core.fleet import Device
from flowmesh.core.records import Failure
from flowmesh.sim.devices import Machine
from flowmesh.sim.engines import LOAD_POWER, Rows, Truth
from flowmesh.sim.market import Rented, runtimes
from flowmesh.sim.workflows import Content, Kind

Floats = npt.NDArray[np.float64]

#: A lease that takes longer than this tells of its rows in so many parts.
LONG_S, PARTS = 20.0, 4
#: What uploading a checkpoint takes beside its bytes; an adapter's state is small.
CHECKPOINT_S = 5.0


@dataclass(slots=True)
class Running:
    """A lease that a machine works on.

    Attributes:
        order: positions of its tasks, the first to end first; `ends_s` is when, from the start.
        told: how many of `order` have been reported; `told_ms` when that was, or a checkpoint.
        prepare_s: fetching and loading, before the first row.
        step, steps: of a training task: where it began, and how many it has left.
        interval_s: between its checkpoints; 0 for none.
    """

    lease: LeaseId
    tasks: tuple[TaskId, ...]
    outputs: list[int]
    order: list[int]
    ends_s: Floats
    start_ms: int
    prepare_s: float
    timing: BatchTiming
    busy_j: float
    told: int = 0
    told_ms: int = 0
    failure: Failure | None = None
    step: int = 0
    interval_s: float = 0.0
    saved: int = 0

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.timing.exec_s

    def at_ms(self, place: int) -> int:
        """When the task at a place of `order` has ended."""
        return self.start_ms + round(1000 * (self.prepare_s + float(self.ends_s[place])))

    def parts(self) -> list[int]:
        """How many of its tasks have ended each time that it reports."""
        count = len(self.order)
        if self.timing.exec_s < LONG_S or count < PARTS:
            return [count]
        marks = [self.timing.exec_s * part / PARTS for part in range(1, PARTS)]
        ended = np.searchsorted(self.ends_s, marks, side="right").tolist()
        return [*dict.fromkeys(n for n in ended if 0 < n < count), count]


@dataclass(slots=True)
class Box:
    """A machine with its worker. `born_ms`: since when it is there, and draws power."""

    worker: WorkerId
    machine: Machine
    device: Device
    place: str
    usd_per_hour: float
    born_ms: int
    slots: int = 1
    rented: Rented | None = None
    part: int = -1  #: of the fixed fleet, which of the machines it stands for
    interruptible: bool = False
    interruptions_per_hour: float = 0.0
    gone_ms: int = 0  #: when it went; 0 while it is there
    draining: bool = False
    running: dict[LeaseId, Running] = field(default_factory=dict)
    warm: dict[str, None] = field(default_factory=dict)
    #: By warm batch key, the engine behind it: several operators may share one.
    loaded: dict[str, tuple[object, ...]] = field(default_factory=dict)
    holds: dict[str, None] = field(default_factory=dict)
    busy_s: float = 0.0
    drawn_j: float = 0.0
    redone_s: float = 0.0
    fetched_bytes: int = 0

    def synced(
        self, now_ms: int, results: tuple[TaskResult, ...] = (), leaving: bool = False
    ) -> WorkerSynced:
        """Everything that it tells the control plane."""
        return WorkerSynced(
            now_ms,
            self.worker,
            runtimes(self.machine),
            self.slots,
            self.usd_per_hour,
            warm=tuple(self.warm),
            results=results,
            leaving=leaving,
            devices=self.machine.gpus,
            draining=self.draining,
            device=self.device,
            place=self.place,
            holds=tuple(self.holds),
            instance=self.rented.instance if self.rented else InstanceId(""),
            interruptions_per_hour=self.interruptions_per_hour,
        )

    def prepare(self, kind: Kind, adapters: dict[str, int], truth: Truth) -> tuple[float, ...]:
        """Fetch what is missing and load the engine: (fetch s, bytes, load s, bytes)."""
        wanted = {tree.digest: tree.size_bytes for tree in kind.demand.trees} | adapters
        missing = sum(size for digest, size in wanted.items() if digest not in self.holds)
        self.holds |= dict.fromkeys(wanted)
        self.fetched_bytes += missing
        fetch_s = missing / self.device.fetch_bytes_per_s if missing else 0.0
        if kind.key in self.warm or kind.engine.kind == "tool":
            self.warm[kind.key] = None
            return fetch_s, missing, 0.0, 0
        engine = (kind.engine.kind, kind.engine.model, kind.engine.resident_bytes)
        if engine in (self.loaded[key] for key in self.warm if key in self.loaded):
            # Another operator on what is loaded already.
            self.warm[kind.key], self.loaded[kind.key] = None, engine
            return fetch_s, missing, 0.0, 0
        # An engine takes what memory there is: the one that was loaded first has to go.
        spec = truth.spec(self.machine)
        stays = (spec.engines if spec else 1) - 1
        loaded = [key for key in self.warm if not key.startswith("tool")]
        for key in loaded[: max(0, len(loaded) - stays)]:
            del self.warm[key]
        self.warm[kind.key], self.loaded[kind.key] = None, engine
        rate = self.device.load_bytes_per_s or 1e9
        load_s = truth.load_s(kind.engine, self.machine, rate)
        model = kind.engine.model
        size = model.weights_bytes if model is not None and load_s else 0
        self.drawn_j += load_s * LOAD_POWER * (self.machine.busy_w - self.machine.idle_w)
        return fetch_s, missing, load_s, size

    def begin(
        self,
        now_ms: int,
        lease: LeaseId,
        tasks: tuple[TaskId, ...],
        rows: list[tuple[Content, int]],
        how: tuple[Truth, float, int],
    ) -> Running:
        """Start a lease. `how`: the truth, this batch's noise, the step to go on from."""
        truth, noise, step = how
        kind = rows[0][0].kind
        batch, outputs = _gathered(rows, step)
        tokens = float(batch.prompt.sum() + batch.output.sum()) / len(rows)
        adapters = {tree.digest: tree.size_bytes for one, _ in rows for tree in one.trees}
        fetch_s, fetched, load_s, loaded = self.prepare(kind, adapters, truth)
        failure = None
        if truth.fits(kind.engine, self.machine, tokens):
            took = truth.batch(kind.engine, self.machine, batch)
            exec_s, ends_s, joules = took.exec_s, took.ends_s, took.busy_j
            decode_steps = took.decode_steps
        else:
            failure, exec_s, joules, decode_steps = Failure.MEMORY, 1.0, 0.0, 0
            ends_s = np.ones(len(rows))
        exec_s, ends_s, joules = exec_s * noise, ends_s * noise, joules * noise
        order = np.argsort(ends_s, kind="stable")
        timing = BatchTiming(
            tasks=len(rows),
            fetch_s=fetch_s,
            fetch_bytes=int(fetched),
            load_s=load_s,
            load_bytes=int(loaded),
            exec_s=exec_s,
            prompt_tokens=int(batch.prompt.sum()) - batch.saved,
            decode_steps=decode_steps,
            output_tokens=int(batch.output.sum()),
            work=batch.work,
            joules=joules + self.machine.idle_w * exec_s,
        )
        started = Running(
            lease, tasks, outputs, order.tolist(), ends_s[order], now_ms, fetch_s + load_s,
            timing, joules, told_ms=now_ms, failure=failure, step=step,
        )  # fmt: skip
        self.running[lease] = started
        return started

    def report(self, running: Running, upto: int) -> tuple[TaskResult, ...]:
        """Results of the tasks that have ended since the last report."""
        count = len(running.order)
        share_s = running.total_s / count
        joules = running.timing.joules / count
        last = upto == count
        places = running.order[running.told : upto]
        running.told = upto
        return tuple(
            TaskResult(
                running.lease,
                running.tasks[at],
                running.failure,
                message="out of memory" if running.failure else "",
                seconds=share_s,
                output_tokens=running.outputs[at],
                joules=joules,
                batch=running.timing if last and n + 1 == len(places) else None,
            )
            for n, at in enumerate(places)
        )

    def stop(self, running: Running, now_ms: int, *, wasted: bool) -> None:
        """A lease is over, or was cut off: account for what it took."""
        del self.running[running.lease]
        gone_s = min(running.total_s, (now_ms - running.start_ms) / 1000)
        self.busy_s += gone_s
        done = max(0.0, gone_s - running.prepare_s) / max(running.timing.exec_s, 1e-9)
        self.drawn_j += running.busy_j * min(1.0, done)
        if wasted:
            self.redone_s += max(0.0, (now_ms - running.told_ms) / 1000)


def _gathered(rows: list[tuple[Content, int]], step: int) -> tuple[Rows, list[int]]:
    """The rows of a batch as the engine sees them; a prefix that they share is read once."""
    prompt = np.asarray([int(one.prompt[row]) for one, row in rows], dtype=np.int64)
    output = np.asarray([int(one.output[row]) for one, row in rows], dtype=np.int64)
    first = rows[0][0]
    if first.step.kind == "tool":
        work = sum(one.step.work for one, _ in rows)
        return Rows(prompt, output, work), [0] * len(rows)
    if step:
        prompt = np.maximum(1, prompt * (1000 - step) // 1000)
    totals: dict[str, tuple[int, int]] = {}
    for one, row in rows:
        if one.prefixes:
            total, most = totals.get(one.prefixes[row], (0, 0))
            tokens = one.prefix_tokens[row]
            totals[one.prefixes[row]] = (total + tokens, max(most, tokens))
    saved = sum(total - most for total, most in totals.values())
    return Rows(prompt, output, saved=saved), output.tolist()
