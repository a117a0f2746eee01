"""What tasks need of a worker, and what to say where no worker has it."""

from typing import Protocol

from flowmesh.base.ids import StepId
from flowmesh.core.fleet import Worker
from flowmesh.core.records import TaskStatus
from flowmesh.core.state import State

#: A task is ready for so long before anybody is told that no worker fits: one may be starting.
PATIENCE_MS = 10_000


class Needs(Protocol):
    """`devices` and `memory_bytes` are of the whole worker, whatever else it runs."""

    @property
    def runtime(self) -> str: ...

    @property
    def devices(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...


def fits(worker: Worker, needs: Needs) -> bool:
    """Whether a worker could run a task, if it had nothing else to do."""
    roomy = not worker.memory_bytes or needs.memory_bytes <= worker.memory_bytes
    return needs.runtime in worker.runtimes and needs.devices <= worker.devices and roomy


def unmet(state: State, step_id: StepId, now_ms: int) -> str:
    """What a step waits for in vain, in words; nothing if a worker could run its tasks.

    All tasks of a step need the same, and if no worker fits, none is leased: the first one
    speaks for all.
    """
    first = next(iter(state.tasks_of.get(step_id, ())), None)
    if first is None:
        return ""
    task = state.tasks[first]
    if task.status is not TaskStatus.READY or now_ms - task.since_ms < PATIENCE_MS:
        return ""
    if any(fits(worker, task.spec) for worker in state.workers.values()):
        return ""
    return f"waits for a worker {_in_words(task.spec)}; {_who(state)}"


def _in_words(needs: Needs) -> str:
    words = [f"that offers {needs.runtime}"]
    if needs.devices > 1:
        words.append(f"has {needs.devices} devices")
    if needs.memory_bytes:
        words.append(f"may take {needs.memory_bytes / 1e9:.1f} GB of memory")
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def _who(state: State) -> str:
    count = len(state.workers)
    if not count:
        return "there is no worker"
    return "the only worker does not fit" if count == 1 else f"none of {count} workers fits"
