"""Break the core on purpose, one line at a time: every mutant must be caught by the tests.

Run by `make mutants`. Each mutant is made in a copy of the package, and the fast tests of the
core are run against it. One that lives is a missing test or a needless line.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = [
    "tests/unit/test_core_sharing.py",
    "tests/unit/test_core_placement.py",
    "tests/unit/test_core_reopening.py",
    "tests/unit/test_core_checkpoints.py",
]
TESTS += ["tests/properties/test_core.py", "tests/simulation"]


@dataclass(frozen=True)
class Mutant:
    file: str
    old: str
    new: str


MUTANTS = [
    # Leases and workers
    Mutant("plan.py", "if state.now_ms - worker.heard_ms >= LEASE_MS:", "if False:"),
    Mutant("tasks.py", "current or task.spec.pure", "True"),
    Mutant("checkpoints.py", "if lease is None or lease.worker != worker_id or task_id not in lease.tasks:", "if lease is None:"),
    Mutant("tasks.py", "current or task.spec.pure", "current"),
    Mutant("tasks.py", "result.failure is not None and current:", "result.failure is not None:"),
    Mutant("tasks.py", "if task is None or task.status is TaskStatus.SUCCEEDED:\n        return\n    lease =", "if task is None:\n        return\n    lease ="),
    Mutant("tasks.py", "if second < kept_ms]:\n        for task_id", "]:\n        for task_id"),
    Mutant("tasks.py", "if second < kept_ms]:\n        del state.ended", "]:\n        del state.ended"),
    Mutant("apply.py", "if step is None or step.status is not StepStatus.EXPANDING or step.turn != event.turn:", "if step is None or step.status is not StepStatus.EXPANDING:"),
    Mutant("apply.py", "if step is None or reader is None or reader.turn != event.turn:", "if step is None or reader is None:"),
    Mutant("apply.py", "if step.reopened >= REOPEN_LIMIT:", "if False:"),
    Mutant("apply.py", "put_worker(replace(worker, heard_ms=state.now_ms))", "put_worker(worker)"),
    Mutant("apply.py", "leases=old.leases if old else ()", "leases=()"),
    Mutant("apply.py", "    state.idle.pop(worker.id, None)\n", ""),
    Mutant("tasks.py", "    held = tuple(other for other in worker.leases if other != lease_id)", "    held = worker.leases"),
    # Sharing
    Mutant("tasks.py", "if task is not None and task.status is TaskStatus.SUCCEEDED:\n        return False", "if False:\n        return False"),
    Mutant("tasks.py", "        if not state.wants[task_id]:\n            _drop(state, task, state.steps[step_id].run, checkpoint=checkpoint)\n            continue\n", "        if not state.wants[task_id]:\n            continue\n"),
    Mutant("tasks.py", "if task.owner == step_id:", "if False:"),
    Mutant("tasks.py", "best = max(runs, key=lambda run: run.priority)", "best = runs[0]"),
    Mutant("tasks.py", "            state.failing[step_id] = None\n", ""),
    # Life of runs and steps
    Mutant("apply.py", "if run.id in state.runs or run.id in state.settled_ms:", "if run.id in state.runs:"),
    Mutant("apply.py", "if step is None or step.status is not StepStatus.ASSEMBLING or step.turn != event.turn:", "if step is None:"),
    Mutant("apply.py", "        tasks.unwant(state, step_id)\n", ""),
    Mutant("apply.py", "        if not waiting.missing:\n", "        if True:\n"),
    Mutant("apply.py", "    if not pending:\n", "    if False:\n"),
    # Retries
    Mutant("retry.py", "crashed.crashes >= CRASH_LIMIT", "False"),
    Mutant("retry.py", "(batch_size + 1) // 2", "batch_size"),
    Mutant("retry.py", "lost.losses >= LOSS_LIMIT", "True"),
    Mutant("retry.py", "tried.attempts >= ATTEMPT_LIMIT", "False"),
    Mutant("retry.py", "tried.bugs >= INTERNAL_LIMIT", "False"),
    Mutant("tasks.py", "if due_ms <= state.now_ms]", "if False]"),
    Mutant("apply.py", "_remove_worker(state, event, counts=False)", "_remove_worker(state, event, counts=True)"),
    # Placement
    Mutant("plan.py", "if needs.fits(workers[0], key):", "if True:"),
    Mutant("plan.py", "needs.fits(other, key) and not other.draining", "True"),
    Mutant("needs.py", "needs.devices <= worker.devices", "True"),
    Mutant("needs.py", "not worker.memory_bytes or needs.memory_bytes <= worker.memory_bytes", "True"),
    Mutant("pool.py", "    if (spec.devices, spec.memory_bytes) == (1, 0):\n        return spec.batch_key\n    return", "    return spec.batch_key\n    return"),
    Mutant("records.py", "and not self.draining", ""),
    # Checkpoints
    Mutant("checkpoints.py", "if not began_anew and event.step <= (known.step if known else 0):", "if False:"),
    Mutant("checkpoints.py", "if task is not None and task.status is TaskStatus.SUCCEEDED:\n        _refuse", "if False:\n        _refuse"),
    Mutant("checkpoints.py", "    if lease is None:\n        return\n    if task is not None and task.status", "    if task is not None and task.status"),
    Mutant("checkpoints.py", "    if task is not None and task.lease == event.lease:\n", "    if task is not None:\n"),
    Mutant("checkpoints.py", "        if not event.checkpoint:\n            _note", "        if True:\n            _note"),
    Mutant("checkpoints.py", "task.lease != lease.id or not 0 < event.step < task.step:", "not 0 < event.step < task.step:"),
    Mutant("checkpoints.py", "not 0 < event.step < task.step:", "False:"),
    Mutant("checkpoints.py", "start_of(lease, task.id) == task.checkpoint\n", "True\n"),
    Mutant("tasks.py", "if task.lease is None or not task.told_ms:", "if task.lease is None:"),
    Mutant("tasks.py", "lease=lease, told_ms=0)", "lease=lease)"),
    Mutant("tasks.py", "paid_s = task.paid_s if task.paid_by == result.lease else 0.0", "paid_s = 0.0"),
    Mutant("tasks.py", "paid_s = task.paid_s if task.paid_by == result.lease else 0.0", "paid_s = task.paid_s"),
    Mutant("tasks.py", "if counts and task.saved_by != lease_id:", "if counts:"),
    Mutant("tasks.py", " / len(lease.tasks)\n    usd", "\n    usd"),
    Mutant("apply.py", "    if checkpoints.start_of(state.leases[result.lease], task.id):\n        return  #", "    if False:\n        return  #"),
    Mutant("checkpoints.py", "known.checkpoint != event.checkpoint:", "True:"),
    Mutant("checkpoints.py", "    if left is None or left.step <= task.step:", "    if left is None:"),
    Mutant("checkpoints.py", "    return replace(task, checkpoint=left.checkpoint, step=left.step)", "    return task"),
    Mutant("checkpoints.py", "        if task_id not in state.tasks:\n", "        if True:\n"),
    Mutant("checkpoints.py", "if stop.due_ms <= state.now_ms]", "if False]"),
    Mutant("checkpoints.py", "if left.at_ms >= kept_ms:", "if True:"),
    Mutant("tasks.py", "    checkpoints.leave(state, task)\n    if task.lease is not None:", "    if task.lease is not None:"),
    Mutant("tasks.py", "    del state.tasks[task.id]\n    checkpoints.leave(state, task)\n    for", "    del state.tasks[task.id]\n    for"),
    Mutant("tasks.py", "if checkpoint and task.lease not in state.leases:", "if checkpoint:"),
    Mutant("apply.py", "tasks.unwant(state, step_id, checkpoint=True)", "tasks.unwant(state, step_id)"),
    Mutant("apply.py", "tuple(state.tasks[task_id].checkpoint for task_id in choice.tasks)", "tuple('' for _ in choice.tasks)"),
    Mutant("plan.py", "        if len(picked) >= limit:\n            break\n", ""),
    Mutant("plan.py", "and state.now_ms < task.due_ms + AVOID_MS", ""),
    Mutant("plan.py", "if others and task.avoid == worker.id", "if False and task.avoid == worker.id"),
    Mutant("pool.py", "min(waiting, key=lambda name: (virtual[name], name))", "min(waiting)"),
    Mutant("pool.py", "sorted(queues, reverse=True)", "sorted(queues)"),
    Mutant("apply.py", "max(virtual_usd, min(others, default=0.0))", "virtual_usd"),
    Mutant("apply.py", "share = seconds * VIRTUAL_USD_PER_S / len(waiting) / tenant.weight", "share = seconds * VIRTUAL_USD_PER_S / len(waiting)"),
    Mutant("utility.py", "urgency = worth * option.wait_s / weights.patience_s", "urgency = 0.0"),
    Mutant("utility.py", "fairness = (worth + urgency) * (2**behind - 1)", "fairness = 0.0"),
    Mutant("utility.py", "+ self.fairness - self.cost - self.start", "+ self.fairness - self.cost"),
    # Replay
    Mutant("machine.py", "            apply(self.state, record)\n\n    def desired", "            self.step(record)\n\n    def desired"),
]  # fmt: skip


def caught(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails on the mutant."""
    package = folder / "flowmesh"
    shutil.copytree(ROOT / "src" / "flowmesh", package)
    path = package / "core" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} has not once: {mutant.old}"
    path.write_text(text.replace(mutant.old, mutant.new))
    environment = {**os.environ, "PYTHONPATH": str(folder), "SIM_SEEDS": "60"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    return ended.returncode == 1


def main() -> int:
    wanted = sys.argv[1:]
    alive = []
    chosen = [mutant for mutant in MUTANTS if not wanted or mutant.file in wanted]
    for number, mutant in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            dead = caught(mutant, Path(folder))
        line = mutant.old.strip().splitlines()[0]
        print(
            f"{number:2}/{len(chosen)} {'caught' if dead else 'LIVES '}  {mutant.file}: {line}",
            flush=True,
        )
        if not dead:
            alive.append(mutant)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
