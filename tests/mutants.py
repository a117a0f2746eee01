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
_UNIT = (
    *("core_sharing", "core_placement", "core_reopening", "core_checkpoints", "core_budgets"),
    *("score", "renting", "scale", "plan", "estimate_learning", "estimate_regression"),
)
_PROPERTIES = ("core", "budgets", "estimate", "utility", "renting_histories", "fairness")
TESTS = [f"tests/unit/test_{name}.py" for name in _UNIT]
TESTS += [f"tests/properties/test_{name}.py" for name in _PROPERTIES]
TESTS += [f"tests/simulation/test_{name}.py" for name in ("faults", "renting_faults")]


@dataclass(frozen=True)
class Mutant:
    file: str
    old: str
    new: str


MUTANTS = [
    # Leases and workers
    Mutant("machine.py", "if heard_ms is None or state.now_ms - heard_ms < lease_ms:", "if True:"),
    Mutant("machine.py", "elif worker.heard_ms != heard_ms:", "elif False:"),
    Mutant("tasks.py", "current or task.spec.pure", "True"),
    Mutant("checkpoints.py", "if lease is None or lease.worker != worker_id or task_id not in lease.tasks:", "if lease is None:"),
    Mutant("tasks.py", "current or task.spec.pure", "current"),
    Mutant("tasks.py", "result.failure is not None and current:", "result.failure is not None:"),
    Mutant("tasks.py", "if task is None or task.status is TaskStatus.SUCCEEDED:\n        return\n    lease =", "if task is None:\n        return\n    lease ="),
    Mutant("tasks.py", "state.done and (second := next(iter(state.done))) < kept_ms:", "state.done and (second := next(iter(state.done))) is not None:"),
    Mutant("tasks.py", "state.ended and (second := next(iter(state.ended))) < kept_ms:", "state.ended and (second := next(iter(state.ended))) is not None:"),
    Mutant("apply.py", "if step is None or step.status is not StepStatus.EXPANDING or step.turn != event.turn:", "if step is None or step.status is not StepStatus.EXPANDING:"),
    Mutant("apply.py", "if step is None or reader is None or reader.turn != event.turn:", "if step is None or reader is None:"),
    Mutant("apply.py", "if step.reopened >= REOPEN_LIMIT:", "if False:"),
    Mutant("apply.py", "put_worker(replace(worker, heard_ms=state.now_ms))", "put_worker(worker)"),
    Mutant("apply.py", "leases=old.leases if old else ()", "leases=()"),
    Mutant("state.py", "        self.idle.pop(worker_id, None)\n", ""),
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
    Mutant("apply.py", "_remove_worker(state, event.worker, counts=False)", "_remove_worker(state, event.worker, counts=True)"),
    # Placement
    Mutant("placement.py", "needs.fits(other, key) and not other.draining", "True"),
    Mutant("needs.py", "needs.devices <= worker.devices", "True"),
    Mutant("needs.py", "not worker.memory_bytes or needs.memory_bytes <= worker.memory_bytes", "True"),
    Mutant("pool.py", "    if spec.devices == 1 and spec.memory_bytes == 0:\n", "    if True:\n"),
    Mutant("fleet.py", " and not self.draining", ""),
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
    Mutant("learning.py", "if timing.exec_s > 0 and not any(lease.checkpoints):", "if timing.exec_s > 0:"),
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
    Mutant("apply.py", "tuple([task.checkpoint for task in batch])", "tuple('' for _ in batch)"),
    Mutant("placement.py", "            if len(tasks) >= limit:\n                break\n            tasks.append(task)", "            tasks.append(task)"),
    Mutant("placement.py", " or state.now_ms >= task.due_ms + AVOID_MS", ""),
    Mutant("placement.py", "if task.avoid != worker.id or", "if True or"),
    Mutant("pool.py", "min(waiting, key=lambda name: (virtual[name], name))", "min(waiting)"),
    Mutant("pool.py", "sorted(queues, reverse=True)", "sorted(queues)"),
    Mutant("apply.py", "max(virtual_usd, min(others, default=0.0))", "virtual_usd"),
    Mutant("apply.py", "known.virtual_usd + usd / known.weight", "known.virtual_usd + usd"),
    Mutant("apply.py", "usd = whole_usd * amount / total / len(runs)", "usd = whole_usd * amount / total"),
    Mutant("utility.py", "urgency=(value + path) * (option.urgency - 1)", "urgency=0.0 * value"),
    Mutant("utility.py", "fairness=value * weights.fair * option.behind", "fairness=0.0 * value"),
    Mutant("utility.py", "return worth - self.cost - self.egress", "return worth - self.egress"),
    Mutant("utility.py", "usd * seconds / floor_s**2", "usd / seconds"),
    # Replay
    Mutant("machine.py", "            apply(self.state, record)\n        self._silences", "            self.step(record)\n        self._silences"),
    # Money
    Mutant("money.py", "ceil(usd / runs / GRAIN_USD) * GRAIN_USD", "usd / runs"),
    Mutant("money.py", "(1 + MARGIN_SIGMAS * expected.sigma_s / expected.total_s)", "1.0"),
    Mutant("money.py", "tenant.day_usd if tenant.day == now_ms // DAY_MS else 0.0", "tenant.day_usd"),
    Mutant("money.py", "shares.get(run, _NOTHING), _share(lease, len(after))", "shares.get(run, _NOTHING), _share(lease, len(before))"),
    Mutant("money.py", "runs: Sequence[RunId], usd: float) -> None:\n    \"\"\"Runs have spent something together on a lease.\"\"\"\n    for run in runs if usd else ():", "runs: Sequence[RunId], usd: float) -> None:\n    for run in ():"),
    Mutant("money.py", "        del runs[tenant.id]\n", ""),
    Mutant("apply.py", "    if run.budget_usd:\n        state.budgeted[run.id] = None\n", ""),
    Mutant("budgets.py", "self._tenant_usd(tenant) + TOLERANCE >= share * tenants.count(tenant)", "True"),
    Mutant("budgets.py", "return not tenant.quota.leases or tenant.leases < tenant.quota.leases", "return True"),
    Mutant("budgets.py", "run.budget_usd - run.spent_usd - run.held_usd", "run.budget_usd - run.spent_usd"),
    Mutant("budgets.py", "    if state.holds.get(run.id):\n        return \"\"\n", ""),
    # Renting
    Mutant("renting.py", "    if instance is None or instance.status is InstanceStatus.TERMINATING:\n        return\n    status", "    if instance is None:\n        return\n    status"),
    Mutant("renting.py", "if instance.id in failed and not instance.running_ms:", "if instance.id in failed:"),
    Mutant("renting.py", "state.now_ms - instance.launched_ms >= LAUNCH_GRACE_MS", "True"),
    Mutant("renting.py", "instance.missed + 1 >= MISSED", "True"),
    Mutant("renting.py", "            lost |= state.hosted.get(instance.id, {})\n", ""),
    Mutant("renting.py", "        state.next_instance = max(state.next_instance, int(digits) + 1)\n", "        pass\n"),
    Mutant("renting.py", "draining=worker.draining or not instance.takes_work", "draining=worker.draining"),
    Mutant("renting.py", "count=max(0, offer.count - 1)", "count=offer.count"),
    # Learning
    Mutant("learning.py", "task.lease != lease.id or lease.worker != worker_id", "lease.worker != worker_id"),
    Mutant("learning.py", "if result.failure not in (None, Failure.INPUT):", "if False:"),
    Mutant("learning.py", "all(0 <= one <= MOST for one in figures)", "True"),
    Mutant("learning.py", "result.batch is None and len(state.lease_left[lease.id]) == 1:", "result.batch is None:"),
    Mutant("learning.py", "work = 0.0 if demand.flops_per_token else timing.work", "work = timing.work"),
    Mutant("regression.py", "abs(changed.odd) < ODD_LIMIT and ", ""),
    Mutant("regression.py", "clipped = max(-clip, min(clip, error))", "clipped = error"),
    Mutant("regression.py", "    c = _at_least_zero(c, covariance)\n", ""),
    # Holding
    Mutant("holding.py", "    if later.seconds > LATEST * now.seconds:\n        return None\n", ""),
    Mutant("holding.py", "    if rate(later, weights.floor_s) <= rate(now, weights.floor_s):\n        return None\n", ""),
    Mutant("holding.py", "    if wait_s <= 0 or row.count >= row.limit or", "    if"),
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
