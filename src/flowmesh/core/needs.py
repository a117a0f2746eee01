"""What tasks need of a worker, and what to say where no worker has it."""

from itertools import islice
from typing import Protocol

from flowmesh.base.ids import StepId
from flowmesh.core import roofline
from flowmesh.core.fleet import Worker
from flowmesh.core.records import Demand, Task, TaskStatus
from flowmesh.core.state import State

#: A task is ready for so long before anybody is told that no worker fits: one may be starting.
PATIENCE_MS = 10_000
#: Tasks of a step that are looked through for one that is ready.
LOOKED_AT = 100


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


def why_not(worker: Worker, asked: Needs, demand: Demand, tokens: float) -> str:
    """What keeps a worker from ever running such tasks, in words; empty if nothing does.

    `tokens` are those of one row, read and written.
    """
    if asked.runtime not in worker.runtimes:
        return f"does not offer {asked.runtime}"
    if asked.devices > worker.devices:
        return f"has {worker.devices} of {asked.devices} devices"
    if not fits(worker, asked):
        return f"has too little memory: a task takes {asked.memory_bytes / 1e9:.1f} GB"
    if not roofline.fits(demand, worker.device, tokens):
        room, needed = worker.device.memory_bytes / 1e9, demand.weights_bytes / 1e9
        return f"has {room:.1f} GB on its device, too few for the model's {needed:.1f} GB"
    return ""


def why_not_now(state: State, worker: Worker, task: Task) -> str:
    """What keeps a worker from a task, in words: it is going, or could never run it."""
    if worker.draining:
        return "is going: it takes no new work"
    spec = task.spec
    demand = state.demands.get(spec.batch_key) or Demand()
    return why_not(worker, spec, demand, spec.prompt_tokens + spec.output_tokens)


def unmet(state: State, step_id: StepId, now_ms: int, patience_ms: int = PATIENCE_MS) -> str:
    """What a step waits for in vain, in words; nothing if a worker could run its tasks.

    All tasks of a step need about the same: one that is ready speaks for all.
    """
    open_tasks = (state.tasks[name] for name in state.tasks_of.get(step_id, ()))
    ready = (task for task in islice(open_tasks, LOOKED_AT) if task.status is TaskStatus.READY)
    task = next(ready, None)
    if task is None or now_ms - task.since_ms < patience_ms:
        return ""
    reasons: dict[str, int] = {}
    for worker in state.workers.values():
        words = why_not_now(state, worker, task)
        if not words:
            return ""
        reasons[words] = reasons.get(words, 0) + 1
    return f"waits for a worker {_in_words(task.spec)}; {_who(reasons)}"


def _in_words(needs: Needs) -> str:
    words = [f"that offers {needs.runtime}"]
    if needs.devices > 1:
        words.append(f"has {needs.devices} devices")
    if needs.memory_bytes:
        words.append(f"may take {needs.memory_bytes / 1e9:.1f} GB of memory")
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def _who(reasons: dict[str, int]) -> str:
    count = sum(reasons.values())
    if not count:
        return "there is no worker"
    if count == 1:
        return f"the only worker {next(iter(reasons))}"
    often = max(reasons, key=lambda words: (reasons[words], words))
    return f"none of {count} workers fits: {reasons[often]} of them {often}"
