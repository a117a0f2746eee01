"""How fast the control plane decides: a million ready tasks, 200 batch keys, 1,000 workers.

Drives `ControlPlane` on one core, without a server, and measures each decision (the policy
alone), each event (all of `ControlPlane.step`), and the memory of a ready task, in CPU time.
Two phases: at the start all workers are idle; at steady state they finish one at a time.
"""

import argparse
import gc
import json
import time
import tracemalloc
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np

from flowmesh.base.ids import RunId, StepId, TaskId, TenantId, WorkerId
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.events import BatchTiming, RunSubmitted, StepExpanded, TaskResult, WorkerSynced
from flowmesh.core.fleet import Device
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.records import Demand, Run, Step, TaskSpec, Tree
from flowmesh.core.state import State

#: Data sheets of three kinds of device, dense bfloat16, and what an hour of them costs about.
DEVICES = (
    (Device("L4", 121e12, 300e9, 24 << 30, 2e9, 1e9, 30, 72), 0.7),
    (Device("A100-80GB", 312e12, 2.0e12, 80 << 30, 4e9, 2e9, 80, 400), 1.8),
    (Device("H100-80GB", 989e12, 3.35e12, 80 << 30, 5e9, 2e9, 100, 700), 3.0),
)
TENANTS = 20
STEP_TASKS = 1_000


class Timed:
    """A policy that times another one."""

    def __init__(self, policy: Utility) -> None:
        self.policy = policy
        self.seconds: list[float] = []

    def decide(self, state: State) -> Decision | None:
        began = time.process_time()
        choice = self.policy.decide(state)
        if choice is not None:
            self.seconds.append(time.process_time() - began)
        return choice

    def wakes_ms(self, state: State) -> int | None:
        return self.policy.wakes_ms(state)


class Fleet:
    """Workers that take batches and finish them one after another."""

    def __init__(self, plane: ControlPlane, workers: int, rng: Random) -> None:
        self.plane = plane
        self.rng = rng
        self.warm: dict[WorkerId, tuple[str, ...]] = {}
        self.kinds = {WorkerId(f"w{n:04}"): DEVICES[n % len(DEVICES)] for n in range(workers)}
        self.busy: dict[WorkerId, GrantLease] = {}
        self.events: list[float] = []

    def sync(self, at_ms: int, worker: WorkerId, results: tuple[TaskResult, ...] = ()) -> int:
        """Send one event; how many leases it led to."""
        device, usd_per_hour = self.kinds[worker]
        warm = self.warm.get(worker, ())
        event = WorkerSynced(
            at_ms, worker, ("models",), 1, usd_per_hour, warm, results, device=device
        )
        began = time.process_time()
        decisions = self.plane.step(event)
        self.events.append(time.process_time() - began)
        grants = [one for one in decisions if isinstance(one, GrantLease)]
        for grant in grants:
            self.busy[grant.worker] = grant
        self.plane.state.drain()
        return len(grants)

    def finish(self, at_ms: int, worker: WorkerId) -> int:
        """A worker's batch is done; how many tasks it had."""
        grant = self.busy.pop(worker)
        self.warm[worker] = (grant.batch_key,)
        made = grant.expected
        timing = BatchTiming(
            len(grant.tasks), load_s=made.load_s, exec_s=made.exec_s * self.rng.uniform(0.8, 1.2)
        )
        results = [TaskResult(grant.lease, task, output_tokens=60) for task in grant.tasks]
        last = results[-1]
        results[-1] = TaskResult(last.lease, last.task, output_tokens=60, batch=timing)
        self.sync(at_ms, worker, tuple(results))
        return len(grant.tasks)


Submission = tuple[RunSubmitted, StepExpanded]


def submissions(tasks: int, keys: int, max_batch: int) -> Iterator[Submission]:
    """Runs of one step, each of a tenant and a batch key."""
    for number in range(tasks // STEP_TASKS):
        tenant, key = TenantId(f"t{number % TENANTS}"), number % keys
        run = RunId(f"r{number:05}")
        step = Step(StepId(f"{run}/generate"), run, (), operator="generate@1")
        size = (2 + key % 14) * 10**9
        demand = Demand("generate@1", (Tree(f"m{key}", size),), size, size, 1e5, True)
        specs = tuple(
            TaskSpec(
                TaskId(f"{number:05}-{i:04}-{'f' * 53}"),
                f"generate/m{key}",
                "models",
                1.0,
                max_batch,
                "pack",
                i,
                prompt_tokens=300 + i % 50,
                output_tokens=256,
            )
            for i in range(STEP_TASKS)
        )
        submitted = RunSubmitted(0, Run(run, tenant, number % 3, (step.id,), 0), (step,))
        yield submitted, StepExpanded(0, step.id, STEP_TASKS, wanted=specs, demand=demand)


def fill(plane: ControlPlane, given: argparse.Namespace) -> float:
    """Submit everything; microseconds a task."""
    spent_s = 0.0
    for submitted, expanded in submissions(given.tasks, given.keys, given.max_batch):
        began = time.process_time()
        plane.step(submitted)
        plane.step(expanded)
        spent_s += time.process_time() - began
        plane.state.drain()
    return spent_s / given.tasks * 1e6


def memory(given: argparse.Namespace, tasks: int = 20_000) -> float:
    """Bytes that a ready task takes, with its spec and id."""
    plane = ControlPlane()
    gc.collect()
    tracemalloc.start()
    for submitted, expanded in submissions(tasks, given.keys, given.max_batch):
        plane.step(submitted)
        plane.step(expanded)
        plane.state.drain()
        del submitted, expanded
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / tasks


def spread(seconds: list[float]) -> dict[str, float]:
    milliseconds = np.array(seconds) * 1000
    return {
        "count": len(seconds),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "max_ms": float(milliseconds.max()),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One deployment: fill the pool, let all workers come, then finish batches one at a time."""
    policy = Timed(Utility())
    plane = ControlPlane(policy)
    expand_us = fill(plane, given)
    fleet = Fleet(plane, given.workers, Random(7))
    gc.collect()
    gc.freeze()
    for worker in fleet.kinds:  # some may wait for an engine that is warm soon
        fleet.sync(1, worker)
    found: dict[str, Any] = {"start": spread(policy.seconds)}
    policy.seconds.clear()
    fleet.events.clear()
    began, done, now_ms = time.process_time(), 0, 1_000
    for _ in range(given.batches):
        now_ms += 10
        worker = fleet.rng.choice(list(fleet.busy))
        done += fleet.finish(now_ms, worker)
    seconds = time.process_time() - began
    found |= {
        "steady": spread(policy.seconds),
        "event": spread(fleet.events),
        "expand_us_per_task": expand_us,
        "grant_and_result_us_per_task": seconds / done * 1e6,
        "mean_batch": done / given.batches,
        "bytes_per_ready_task": memory(given),
    }
    return found | vars(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=3_000)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.parse_args()
    found = measure(given)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{given.tasks:,} ready tasks, {given.keys} batch keys, {given.workers:,} workers")
    print(f"{'':24}{'count':>8}{'median ms':>12}{'p99 ms':>10}{'max ms':>10}")
    for name, title in (
        ("start", "decision, all idle"),
        ("steady", "decision, steady state"),
        ("event", "event, steady state"),
    ):
        row = found[name]
        numbers = f"{row['median_ms']:>12.3f}{row['p99_ms']:>10.3f}{row['max_ms']:>10.3f}"
        print(f"{title:24}{row['count']:>8,}{numbers}")
    print(f"bytes a ready task: {found['bytes_per_ready_task']:,.0f}")
    print(f"us a task to expand: {found['expand_us_per_task']:.1f}")
    print(f"us a task to grant and take in: {found['grant_and_result_us_per_task']:.1f}")
    print(f"tasks in the mean batch: {found['mean_batch']:.0f}")


if __name__ == "__main__":
    main()
