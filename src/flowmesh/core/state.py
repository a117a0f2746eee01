"""All control-plane state. Only `apply` and what it calls may change it.

Plain dicts only: their order is insertion order, so every iteration is deterministic.
"""

from dataclasses import dataclass, field, replace

from flowmesh.base.ids import (
    InstanceId,
    LeaseId,
    OfferId,
    RunId,
    StepId,
    TaskId,
    TenantId,
    WorkerId,
)
from flowmesh.core.events import BatchTiming, TaskResult
from flowmesh.core.fleet import Instance, Offer, Worker
from flowmesh.core.knowledge import Arrivals, Fit, Lengths, Rate
from flowmesh.core.records import (
    Demand,
    Hold,
    Lease,
    Left,
    Run,
    Step,
    Stop,
    Task,
    Tenant,
)


@dataclass(slots=True)
class ReadyKey:
    """The ready tasks of one batch key and equal needs, by tenant, priority and lot.

    A lot is of one step and one prefix, see `pool.lot_of`; it has the oldest task first.

    Attributes:
        work, prompt_tokens, output_tokens, prefix_tokens: sums over its tasks.
        prefixes: lots that have a prefix.
    """

    runtime: str
    devices: int = 1
    memory_bytes: int = 0
    count: int = 0
    work: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix_tokens: int = 0
    prefixes: int = 0
    queues: dict[TenantId, dict[int, dict[str, dict[TaskId, None]]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A result that counted, the runs it was for, and what it cost."""

    result: TaskResult
    spec_pack: str
    spec_line: int
    batch_key: str
    worker: WorkerId
    runs: tuple[RunId, ...]
    steps: tuple[StepId, ...]
    usd: float
    final: bool


@dataclass(frozen=True, slots=True)
class Spent:
    """What an attempt that ended without a result has cost the runs that waited for it."""

    runs: tuple[RunId, ...]
    usd: float


@dataclass(frozen=True, slots=True)
class Progressed:
    """Progress that counted. `checkpoint` replaces what the task had before, if it is given."""

    task: TaskId
    step: int
    checkpoint: str
    record: str
    runs: tuple[RunId, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a batch took, beside what was expected of it: the error of the estimates."""

    lease: Lease
    timing: BatchTiming


@dataclass(slots=True)
class Changes:
    """What `apply` changed since it was last drained: the read models are made from it."""

    runs: dict[RunId, Run] = field(default_factory=dict)
    steps: dict[StepId, Step] = field(default_factory=dict)
    granted: list[tuple[Lease, tuple[RunId, ...]]] = field(default_factory=list)
    ended: list[tuple[Lease, str]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    progressed: list[Progressed] = field(default_factory=list)
    #: Checkpoints that were told and are of no use: a newer one is known.
    stale: list[str] = field(default_factory=list)
    #: Predicted and measured, of batches that told what they took.
    measured: list[Measured] = field(default_factory=list)
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    #: Instances that the provider lists no more.
    gone: list[Instance] = field(default_factory=list)
    #: Tasks whose progress and checkpoint are given up.
    forgotten: list[TaskId] = field(default_factory=list)
    #: Workers of leases that became smaller.
    trimmed: list[WorkerId] = field(default_factory=list)
    #: Whether the event itself took effect: late and repeated ones do not.
    heard: bool = False


@dataclass(slots=True)
class Touched:
    """Names of what changed since a policy looked: keys of the pool, workers, estimates.

    `estimates` are batch keys. A policy that meets a state for the first time looks at all of it.
    """

    ready: dict[str, None] = field(default_factory=dict)
    workers: dict[WorkerId, None] = field(default_factory=dict)
    estimates: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class State:
    """Everything the control plane knows of unsettled work.

    Attributes:
        dependents: steps that wait for a step.
        todo: steps that the driver must expand or assemble.
        wants: who waits for a task; a task that nobody wants is dropped.
        tasks_of: the unsettled tasks that a step waits for.
        ready: the ready pool, by batch key and needs, see `pool.key_of`.
        delayed: tasks that back off, by the time at which they are due.
        lease_left: tasks of a lease that have not ended.
        idle: workers with a free slot.
        failing: steps that a failed task fails; empty between records.
        done: tasks in memory that succeeded, by the second in which they did. They are kept
            for `RETAIN_MS`, so that an expansion that looked the action cache up just before
            still finds them.
        ended: leases that ended, by the second in which they did; kept for `RETAIN_MS`, as
            a late result counts only under a lease that was granted for its task.
        settled_ms: when a run settled; kept for `RETAIN_MS`, so that a repeated
            submission is known.
        left: checkpoints of tasks that were dropped or failed, the oldest first; kept for
            `RETAIN_MS`, so that an expansion that looked into the tables before misses none.
        stopping: leases that have ended and may still leave a checkpoint.
        holds: by run and lease, what is held for the run's share, see `money.py`.
        lease_tenants: by lease and tenant, how many runs of the tenant wait for its tasks.
        budgeted: runs with a budget.
        demands: what the tasks of a batch key ask of a machine.
        fits, lengths, rates: what was learnt, see `knowledge.py`.
        offers: what could be rented now, and from whom.
        instances: what is rented.
        hosted: workers by the machine that they say they run on, rented by us or not.
        arrivals: how tasks of each batch key have come in, see `knowledge.Arrivals`.
        touched: what a policy that keeps its own index must look at again.
    """

    now_ms: int = 0
    next_lease: int = 1
    runs: dict[RunId, Run] = field(default_factory=dict)
    steps: dict[StepId, Step] = field(default_factory=dict)
    dependents: dict[StepId, dict[StepId, None]] = field(default_factory=dict)
    todo: dict[StepId, None] = field(default_factory=dict)
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    wants: dict[TaskId, dict[StepId, None]] = field(default_factory=dict)
    tasks_of: dict[StepId, dict[TaskId, None]] = field(default_factory=dict)
    ready: dict[str, ReadyKey] = field(default_factory=dict)
    delayed: dict[int, dict[TaskId, None]] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    lease_left: dict[LeaseId, dict[TaskId, None]] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    idle: dict[WorkerId, None] = field(default_factory=dict)
    failing: dict[StepId, None] = field(default_factory=dict)
    tenants: dict[TenantId, Tenant] = field(default_factory=dict)
    holds: dict[RunId, dict[LeaseId, Hold]] = field(default_factory=dict)
    lease_tenants: dict[LeaseId, dict[TenantId, int]] = field(default_factory=dict)
    budgeted: dict[RunId, None] = field(default_factory=dict)
    demands: dict[str, Demand] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)
    offers: dict[OfferId, Offer] = field(default_factory=dict)
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    next_instance: int = 1
    hosted: dict[InstanceId, dict[WorkerId, None]] = field(default_factory=dict)
    arrivals: dict[str, Arrivals] = field(default_factory=dict)
    done: dict[int, dict[TaskId, None]] = field(default_factory=dict)
    ended: dict[int, dict[LeaseId, Lease]] = field(default_factory=dict)
    settled_ms: dict[RunId, int] = field(default_factory=dict)
    left: dict[TaskId, Left] = field(default_factory=dict)
    stopping: dict[LeaseId, Stop] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes, compare=False)
    touched: Touched = field(default_factory=Touched, compare=False)

    def drain(self) -> Changes:
        """Hand over what has changed, and start anew."""
        drained, self.changes = self.changes, Changes()
        return drained

    def put_run(self, run: Run) -> None:
        self.runs[run.id] = self.changes.runs[run.id] = run

    def put_step(self, step: Step) -> None:
        self.steps[step.id] = self.changes.steps[step.id] = step

    def put_worker(self, worker: Worker) -> None:
        old = self.workers.get(worker.id)
        if old is not None and old.instance != worker.instance:
            self._unhost(old)
        self.workers[worker.id] = worker
        self.touched.workers[worker.id] = None
        if worker.takes_work:
            self.idle[worker.id] = None
        else:
            self.idle.pop(worker.id, None)
        if worker.instance:
            self.hosted.setdefault(worker.instance, {})[worker.id] = None
            self.note_quiet(worker.instance)

    def remove_worker(self, worker_id: WorkerId) -> None:
        self._unhost(self.workers.pop(worker_id))
        self.idle.pop(worker_id, None)
        self.touched.workers[worker_id] = None

    def put_instance(self, instance: Instance) -> None:
        self.instances[instance.id] = self.changes.instances[instance.id] = instance

    def note_quiet(self, instance_id: InstanceId) -> None:
        """Keep `Instance.quiet_ms` right. No news for the read models: it changes too often."""
        instance = self.instances.get(instance_id)
        if instance is None:
            return
        hosted = self.hosted.get(instance_id, {})
        busy = any(self.workers[worker].leases for worker in hosted)
        if busy or not instance.running_ms:
            quiet_ms = 0
        else:
            quiet_ms = instance.quiet_ms or max(1, self.now_ms)
        if quiet_ms != instance.quiet_ms:
            self.instances[instance_id] = replace(instance, quiet_ms=quiet_ms)

    def _unhost(self, worker: Worker) -> None:
        if worker.instance:
            hosted = self.hosted[worker.instance]
            del hosted[worker.id]
            if not hosted:
                del self.hosted[worker.instance]
            self.note_quiet(worker.instance)
