"""What the fabric adds to work that takes no time: against Ray, in one run, on one machine.

    make bench          (or: python bench/overhead.py --ray-python PYTHON [--tasks N])

Measured for both: the time from submitting one no-op task to its result (median), and no-op
tasks per second, sustained. FlowMesh's tasks are durable: each is in the journal, and its
result in the action cache, before it counts. Ray's are not. Two workers each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from flowmesh.sdk.client import Client
from support.fabric import fabric, until

NO_OP = {
    "flowmesh": 1,
    "inputs": {"rows": {"type": "table"}},
    "steps": {"noop": {"op": "render", "rows": "${inputs.rows}", "template": "{{ n }}"}},
    "outputs": {"done": "${steps.noop.rows}"},
}


class Numbers:
    """Rows that nobody has asked for before."""

    def __init__(self) -> None:
        self._next = 0

    def rows(self, count: int) -> list[dict[str, int]]:
        self._next += count
        return [{"n": n} for n in range(self._next - count, self._next)]


def median_ms(once: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def flowmesh_figures(tasks: int, rounds: int) -> dict[str, Any]:
    numbers = Numbers()
    with tempfile.TemporaryDirectory() as home, fabric(Path(home) / "home") as running:
        client = running.client()
        until(lambda: len(client.workers()) == 2, "two workers")

        def run(count: int) -> None:
            view = client.submit(NO_OP, inputs={"rows": numbers.rows(count)}).wait()
            assert (view.status, view.tasks.executed) == ("succeeded", count), view

        run(500)
        one_ms = median_ms(lambda: run(1), rounds)
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            run(tasks)
            rates.append(tasks / (time.perf_counter() - start))
        held = held_figures(client, numbers, tasks)
    return {"one_task_ms": one_ms, "tasks_per_s": statistics.median(rates), **held}


def held_figures(client: Client, numbers: Numbers, tasks: int) -> dict[str, float]:
    """The same with what a step costs taken out: the rate between 10 % and 90 % of the tasks."""
    run = client.submit(NO_OP, inputs={"rows": numbers.rows(tasks)})
    seen = [(time.perf_counter(), view.tasks.executed) for view in run.watch()]
    inside = [(at, done) for at, done in seen if tasks * 0.1 <= done <= tasks * 0.9]
    if len(inside) < 2:
        return {}
    (first_s, first), (last_s, last) = inside[0], inside[-1]
    return {"tasks_per_s_within_a_step": (last - first) / max(last_s - first_s, 1e-9)}


RAY = """
import json, logging, os, statistics, sys, time
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)

@ray.remote
def noop(n):
    return n

tasks, rounds = int(sys.argv[1]), int(sys.argv[2])
ray.get([noop.remote(n) for n in range(500)])
times = []
for n in range(rounds):
    start = time.perf_counter()
    ray.get(noop.remote(n))
    times.append(time.perf_counter() - start)
rates = []
for _ in range(3):
    start = time.perf_counter()
    ray.get([noop.remote(n) for n in range(tasks)])
    rates.append(tasks / (time.perf_counter() - start))
print(json.dumps({"one_task_ms": statistics.median(times) * 1000,
                  "tasks_per_s": statistics.median(rates), "version": ray.__version__}))
"""


def ray_figures(python: Path, tasks: int, rounds: int) -> dict[str, Any]:
    command = [str(python), "-W", "ignore", "-c", RAY, str(tasks), str(rounds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also append the figures to this file")
    parser.add_argument(
        "--ray-python", type=Path, help="interpreter that has Ray; not measured if not given"
    )
    options = parser.parse_args()
    figures = {"flowmesh": flowmesh_figures(options.tasks, options.rounds)}
    if options.ray_python:
        figures["ray"] = ray_figures(options.ray_python, options.tasks, options.rounds)
    for name, found in figures.items():
        told = {
            key: f"{value:.2f}" if isinstance(value, float) else value
            for key, value in found.items()
        }
        print(name, told)
    if "ray" in figures:
        ours, theirs = figures["flowmesh"], figures["ray"]
        print(f"one task: {ours['one_task_ms'] / theirs['one_task_ms']:.1f}x Ray's time")
        print(f"tasks per second: {ours['tasks_per_s'] / theirs['tasks_per_s']:.2f}x Ray's rate")
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps({"at": time.time(), **figures}) + "\n")


if __name__ == "__main__":
    main()
