"""`isolated`: every run has machines of its own, from its start to its end, and shares nothing.

Stands for pipelines as teams run them today: a script, its own machines, its own engines. It is
given all that a careful user could know: the sizes of all steps beforehand and the true times,
from which the machines are chosen that make the whole run cheapest, starting and loading
included; of choices that cost nearly the same, the quickest. Within a step it has full batches.

Fingerprints are salted by run (`Scenario.sharing`), so that two equal rows of one run are still
done once, and equal rows of two runs twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil

from flowmesh.base.ids import InstanceId, RunId, StepId, TaskId
from flowmesh.core import needs, renting
from flowmesh.core.decisions import Decision, GrantLease, LaunchInstance, TerminateInstance
from flowmesh.core.fleet import Offer, Worker
from flowmesh.core.records import Run, StepStatus, TaskStatus
from flowmesh.core.state import State
from flowmesh.sim.baselines.base import Batches
from flowmesh.sim.baselines.known import Known, Stage

#: Numbers of equal machines that are tried.
REPLICAS = (1, 2, 3, 4, 6, 8)
#: What may be paid for being quicker, as a multiple of the least cost.
NEARLY = 1.05
#: After a machine could not be had, a run tries again so much later.
RETRY_MS = 10_000


@dataclass(frozen=True, slots=True)
class Provision:
    """Machines for one run: `offers`, each as often as `counts` says."""

    offers: tuple[Offer, ...]
    counts: tuple[int, ...]
    usd: float
    seconds: float


def provision(known: Known, stages: Sequence[Stage], offers: Sequence[Offer]) -> Provision | None:
    """The cheapest machines for a run, of one kind or of two; None if none fit.

    All machines are paid for from launch to the end of the run. A stage runs on that of the two
    kinds which is quicker; its rows are split evenly over the machines of it.
    """
    best = list(_cheapest_by_kind(offers).values())
    sets = [*((one,) for one in best), *combinations(best, 2)]
    options: list[Provision] = []
    for chosen in sets:
        for counts in product(REPLICAS, repeat=len(chosen)):
            seconds = _seconds(known, stages, chosen, counts)
            if seconds is not None:
                pairs = zip(chosen, counts, strict=True)
                usd = sum(one.usd_per_hour * n for one, n in pairs) * seconds / 3600
                options.append(Provision(chosen, counts, usd, seconds))
    if not options:
        return None
    least_usd = min(option.usd for option in options)
    nearly = [option for option in options if option.usd <= NEARLY * least_usd]
    return min(nearly, key=lambda option: (option.seconds, option.usd))


def _cheapest_by_kind(offers: Sequence[Offer]) -> dict[str, Offer]:
    found: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda one: (one.usd_per_hour, one.id)):
        found.setdefault(offer.device.kind, offer)
    return found


def _seconds(
    known: Known, stages: Sequence[Stage], offers: Sequence[Offer], counts: Sequence[int]
) -> float | None:
    """From launch to the end, steps one after the other; None if one of them fits nowhere."""
    seconds = max(offer.startup_s for offer in offers)
    loaded: dict[tuple[str, str], None] = {}
    for stage in stages:
        quickest: tuple[float, str] | None = None
        for offer, count in zip(offers, counts, strict=True):
            if not known.fits(stage.batch_key, offer.device):
                continue
            rows = ceil(stage.rows / count)
            took_s = known.batch_s(stage.batch_key, offer.device, rows)
            if (stage.batch_key, offer.id) not in loaded:
                took_s += known.load_s(stage.batch_key, offer.device)
            if quickest is None or took_s < quickest[0]:
                quickest = took_s, offer.id
        if quickest is None:
            return None
        seconds += quickest[0]
        loaded[stage.batch_key, quickest[1]] = None
    return seconds


class Isolated(Batches):
    """See the module. It rents by itself: there is no queue to scale by."""

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._plans: dict[RunId, Provision] = {}
        self._run_of: dict[InstanceId, RunId] = {}
        self._tried_ms: dict[RunId, int] = {}
        self._memory: dict[tuple[tuple[Stage, ...], tuple[str, ...]], Provision | None] = {}

    def decide(self, state: State) -> Decision | None:
        return self._place(state) or self._give_back(state) or self._launch(state)

    def wakes_ms(self, state: State) -> int | None:
        waits = [due + RETRY_MS for due in self._tried_ms.values() if due + RETRY_MS > state.now_ms]
        return min(waits, default=None)

    def _place(self, state: State) -> GrantLease | None:
        if not state.ready:
            return None
        for worker_id in state.idle:
            worker = state.workers[worker_id]
            run = state.runs.get(self._run_of.get(worker.instance, RunId("")))
            choice = self._for(state, worker, run) if run else None
            if choice is not None:
                return choice
        return None

    def _for(self, state: State, worker: Worker, run: Run) -> GrantLease | None:
        machines = sum(held == run.id for held in self._run_of.values())
        for step_id in run.steps:
            step = state.steps[step_id]
            if step.status is not StepStatus.RUNNING:
                continue
            tasks = _ready(state, step_id)
            first = next(tasks, None)
            if first is None or not self._may_run(state, worker, first):
                continue
            self.rows_most = max(1, ceil(step.pending / machines))
            batch_key = state.tasks[first].spec.batch_key
            return self.lease(state, worker.id, batch_key, _ready(state, step_id))
        return None

    def _may_run(self, state: State, worker: Worker, task_id: TaskId) -> bool:
        spec = state.tasks[task_id].spec
        return needs.fits(worker, spec) and self.known.fits(spec.batch_key, worker.device)

    def _give_back(self, state: State) -> TerminateInstance | None:
        for instance_id, run in list(self._run_of.items()):
            instance = state.instances.get(instance_id)
            if instance is None:
                del self._run_of[instance_id]
            elif run not in state.runs and instance.takes_work:
                return TerminateInstance(state.now_ms, instance_id, "its run has ended")
        for run in [run for run in self._plans if run not in state.runs]:
            del self._plans[run]
            self._tried_ms.pop(run, None)
        return None

    def _launch(self, state: State) -> LaunchInstance | None:
        for run in state.runs:
            if self._tried_ms.get(run, -RETRY_MS) + RETRY_MS > state.now_ms:
                continue
            offer = self._missing(state, run)
            if offer is not None:
                instance = renting.next_id(state)
                self._run_of[instance] = run
                return LaunchInstance(state.now_ms, instance, offer, reason=f"for {run}")
        return None

    def _missing(self, state: State, run: RunId) -> Offer | None:
        """A machine of the run's plan that it does not have."""
        plan = self._plan(state, run)
        if plan is None:
            self._tried_ms[run] = state.now_ms
            return None
        held = [
            state.instances[one].offer.id
            for one, owner in self._run_of.items()
            if owner == run and one in state.instances
        ]
        for offer, count in zip(plan.offers, plan.counts, strict=True):
            if held.count(offer.id) < count:
                now = state.offers.get(offer.id)
                if now is not None and now.count > 0:
                    return now
                self._tried_ms[run] = state.now_ms
                if not held:
                    del self._plans[run]
        return None

    def _plan(self, state: State, run: RunId) -> Provision | None:
        if run not in self._plans:
            offers = [offer for offer in state.offers.values() if offer.count > 0]
            stages = self.known.stages(run)
            key = stages, tuple(sorted(f"{one.id} {one.usd_per_hour}" for one in offers))
            if key not in self._memory:
                self._memory[key] = provision(self.known, stages, offers)
            plan = self._memory[key]
            if plan is None:
                return None
            self._plans[run] = plan
        return self._plans[run]


def _ready(state: State, step_id: StepId) -> Iterator[TaskId]:
    for task_id in state.tasks_of.get(step_id, ()):
        if state.tasks[task_id].status is TaskStatus.READY:
            yield task_id
