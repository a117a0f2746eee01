"""Made-up workers: they sync by state, run batches, crash, pause and leave."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowmesh.base.ids import InstanceId, LeaseId, TaskId, WorkerId
from flowmesh.core.events import TaskProgressed, TaskResult, WorkerGone, WorkerSynced
from flowmesh.core.plan import LEASE_MS
from flowmesh.core.records import Failure
from flowmesh.sim.workload import SAVE_EVERY, STEPS, is_long, step_of, tree_at

if TYPE_CHECKING:
    from flowmesh.sim.world import World

SYNC_MS = 5_000
#: Leases, their open tasks, and by task what to go on from.
Desired = tuple[tuple[LeaseId, tuple[TaskId, ...], dict[TaskId, str]], ...]
Saved = dict[tuple[LeaseId, TaskId], int]


class SimWorker:
    """A place where one worker process after another runs.

    `running` holds the open tasks of each lease it works on; `reports` what it has
    finished and the plane has not settled yet, `saved` the steps of checkpoints likewise.
    `at` is the step at which each long task is. `instance` is the rented machine it is on.
    """

    def __init__(self, world: "World", number: int, instance: str = "") -> None:
        self.world = world
        self.number = number
        self.instance = InstanceId(instance)
        self.draining = False
        self.generation = 0
        self.units_per_s = world.rng.choice([0.2, 1.0, 8.0])
        self.slots = world.rng.choice([1, 1, 2])
        #: The first worker can do everything, so that no run waits for a runtime for ever.
        offers = [("models", "tables"), ("models",), ("tables",)]
        self.runtimes = offers[0] if number == 0 else world.rng.choice(offers)
        self.lives = True
        self.silent_until_ms = 0
        self.warm: dict[str, None] = {}
        self.running: dict[LeaseId, tuple[TaskId, ...]] = {}
        #: Which start of a lease goes on; one that was stopped in between does not.
        self._starts = 0
        self._start_of: dict[LeaseId, int] = {}
        self.reports: dict[tuple[LeaseId, TaskId], TaskResult] = {}
        self.saved: Saved = {}
        self.at: dict[tuple[LeaseId, TaskId], int] = {}
        world.after(world.rng.randrange(10_000), self._beat)

    @property
    def id(self) -> WorkerId:
        return WorkerId(f"w{self.number}.{self.generation}")

    def heal(self, *, lives: bool) -> None:
        """After the faults: go on or be gone. One that lives on can do everything."""
        self.lives = lives
        self.silent_until_ms = 0
        self.runtimes = ("models", "tables")

    def _beat(self) -> None:
        world, faults = self.world, self.world.faults
        if not self.lives:
            return
        if world.hit(faults.crash_worker):
            gone = self.id
            self._replaced()
            if world.hit(0.5):
                world.step(lambda now_ms: WorkerGone(now_ms, gone))
        if world.hit(faults.pause_worker):
            self.silent_until_ms = world.now_ms + world.rng.randint(1_000, 4 * LEASE_MS)
        if world.hit(faults.leave_worker):
            self._save(self.at)
            self._sync(leaving=True)
            self._replaced()
        self._sync()
        world.after(SYNC_MS, self._beat)

    def _replaced(self) -> None:
        self.generation += 1
        self.warm.clear()
        self.running.clear()
        self._start_of.clear()
        self.reports.clear()
        self.saved.clear()
        self.at.clear()

    def _sync(self, *, leaving: bool = False) -> None:
        if not self.lives or self.world.now_ms < self.silent_until_ms:
            return
        worker, generation = self.id, self.generation
        warm, reports, saved = tuple(self.warm), tuple(self.reports.values()), dict(self.saved)

        def make(now_ms: int) -> WorkerSynced:
            runtimes, price = self.runtimes, 0.3 * self.units_per_s
            return WorkerSynced(
                now_ms,
                worker,
                runtimes,
                self.slots,
                price,
                warm,
                reports,
                leaving,
                draining=self.draining,
                instance=self.instance,
            )

        def receive() -> None:
            for (lease, task), step in saved.items():
                if not self.world.step(_telling(worker, lease, task, step)):
                    return
            if not self.world.step(make):
                return
            plane = self.world.plane
            desired: Desired = tuple(
                (one.id, left, dict(zip(one.tasks, one.checkpoints, strict=True)))
                for one, left in plane.desired(worker)
            )
            stops = [lease for lease, _ in plane.stopping(worker)]
            self.world.send(lambda: self._obey(generation, desired, reports, saved, stops))

        self.world.send(receive)

    def _obey(
        self,
        generation: int,
        desired: Desired,
        settled: tuple[TaskResult, ...],
        saved: Saved,
        stops: list[LeaseId],
    ) -> None:
        """Stop what is not desired, start what is, forget what was settled.

        What is stopped with time for it leaves a checkpoint.
        """
        if generation != self.generation or not self.lives:
            return
        for result in settled:
            self.reports.pop((result.lease, result.task), None)
        for key in [key for key, step in saved.items() if self.saved.get(key) == step]:
            del self.saved[key]
        stopped = {key: step for key, step in self.at.items() if key[0] in stops}
        wanted = {lease: tasks for lease, tasks, _ in desired}
        self.running = {
            lease: tuple(task for task in tasks if task in wanted[lease])
            for lease, tasks in self.running.items()
            if lease in wanted
        }
        self._start_of = {k: start for k, start in self._start_of.items() if k in wanted}
        self.at = {key: step for key, step in self.at.items() if key[0] in wanted}
        for lease, tasks, trees in desired:
            todo = tuple(task for task in tasks if (lease, task) not in self.reports)
            if lease not in self.running and todo:
                self.running[lease] = todo
                self._starts += 1
                self._start_of[lease] = self._starts
                for task in filter(is_long, todo):
                    self.at[lease, task] = step_of(trees[task])
                self._next(self._starts, lease, len(todo))
        if stopped:
            self._save(stopped)
            self._sync()

    def _save(self, steps: Saved) -> None:
        """Leave checkpoints of long tasks that have come further than their last ones."""
        for key, step in steps.items():
            if step > self.saved.get(key, 0):
                self.saved[key] = step

    def _climb(self, start: int, lease: LeaseId, task: TaskId, batch_size: int) -> None:
        """Take the next step of a long task; the last one is its end."""
        step = self.at.get((lease, task))
        if self._start_of.get(lease) != start or step is None:
            return
        spec = self.world.workload.spec(task)
        if step >= STEPS:
            del self.at[lease, task]
            self._finish(start, lease, task, spec.work / self.units_per_s, batch_size)
            return
        if step and step % SAVE_EVERY == 0:
            self._save({(lease, task): step})
            self._sync()
        self.at[lease, task] = step + 1
        step_ms = int(1000 * spec.work / STEPS / self.units_per_s)
        self.world.after(step_ms, lambda: self._climb(start, lease, task, batch_size))

    def _next(self, start: int, lease: LeaseId, batch_size: int) -> None:
        """Run the lease's tasks one by one, so that a batch completes partially."""
        if self._start_of.get(lease) != start or not self.running.get(lease):
            return
        task = self.running[lease][0]
        spec = self.world.workload.spec(task)
        self.warm[spec.batch_key] = None
        if is_long(task):
            self._climb(start, lease, task, batch_size)
            return
        seconds = spec.work / self.units_per_s
        self.world.after(
            int(1000 * seconds), lambda: self._finish(start, lease, task, seconds, batch_size)
        )

    def _finish(
        self, start: int, lease: LeaseId, task: TaskId, seconds: float, batch_size: int
    ) -> None:
        if self._start_of.get(lease) != start:
            return
        if task in self.running.get(lease, ()):
            failure = self._failure(task, batch_size)
            output = "" if failure else f"output of {task}"
            result = TaskResult(lease, task, failure, output, str(failure or ""), seconds=seconds)
            self.reports[lease, task] = result
            self.running[lease] = tuple(one for one in self.running[lease] if one != task)
            self._sync()
        self._next(start, lease, batch_size)

    def _failure(self, task: TaskId, batch_size: int) -> Failure | None:
        world, faults = self.world, self.world.faults
        if world.workload.is_bad(task):
            return Failure.INPUT
        rates = {
            Failure.TRANSIENT: faults.transient,
            Failure.MEMORY: faults.memory * batch_size,
            Failure.INTERNAL: faults.internal,
            Failure.CRASH: faults.crash_child,
        }
        return next((failure for failure, rate in rates.items() if world.hit(rate)), None)


def _telling(
    worker: WorkerId, lease: LeaseId, task: TaskId, step: int
) -> Callable[[int], TaskProgressed]:
    tree = tree_at(task, step)
    return lambda now_ms: TaskProgressed(now_ms, worker, lease, task, step, tree)
