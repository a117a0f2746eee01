"""The simulator held against reality: the same runs on real workers, and simulated.

    python bench/fidelity.py [--rows 24] [--json FILE]

Real workers of unlike shapes on this machine (one thread; one thread and slowed down; two
threads), alone and together, run `bench/tenants.yaml` on SmolLM2-135M. In each session, runs of
1 to 16 rows come one after another. What their batches took gives, by least squares, the
coefficients of each shape; and the time to fetch and to load the model, and the processor seconds
that a second of work takes. Then tenants come close upon each other, with tables that are common
to them and tables of their own. The whole session is simulated with those figures, and the
tenants' part is compared: makespan, batches and their size, processor seconds.

The simulated control plane is told of a device what the real one was, and learns the rest as that.
Nothing of the part that is compared goes into the coefficients, and two workers together are
predicted from what each did alone. Both parts of a session are close upon each other, as what
else the machine does changes with time.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from session import Session, Shape, session
from tenants import QUESTIONS, SUBJECTS

from flowmesh.sim.cluster import simulate
from flowmesh.sim.devices import MODELS
from flowmesh.sim.scenario import Scenario, parse
from flowmesh.spec.document import Positions

WORKFLOW = Path(__file__).parent / "tenants.yaml"
MODEL = "smollm2-135m"
ONE, SLOW, TWO = Shape("one"), Shape("slow", slowdown=2.0), Shape("two", threads=2)
SESSIONS: tuple[tuple[Shape, ...], ...] = ((ONE,), (SLOW,), (TWO,), (ONE, SLOW))
CALIBRATION_ROWS = (1, 4, 8, 12, 16)
#: Seconds after the first at which each tenant submits, and whether its table is the common one.
TENANTS = ((0.0, True), (1.0, False), (2.0, True), (4.0, False), (6.0, True))
#: Simulated seconds between runs that really wait for one another.
APART_S = 1000.0
FEATURES = ("fixed_s", "prompt_s", "step_s", "output_s")
#: Of a device, that estimates start from.
FIGURES = ("flops_per_s", "bandwidth_bytes_per_s", "memory_bytes")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker told of one batch; see `wire.BatchReport`."""

    operator: str
    worker: str
    granted_ms: int
    tasks: int
    timing: dict[str, float]


@dataclass(frozen=True, slots=True)
class Compared:
    """The part that is compared, really or simulated."""

    makespan_s: float
    batches: float
    mean_batch: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """What one session really was: all its batches, and the compared part.

    `devices`: by worker, the figures by which it describes itself to the control plane.
    """

    shapes: tuple[Shape, ...]
    batches: list[Batch]
    since_ms: int
    measured: Compared
    devices: dict[str, dict[str, float]]


def questions(label: str, count: int) -> list[dict[str, str]]:
    """Rows that no other label has."""
    asked = [question.format(subject) for question in QUESTIONS for subject in SUBJECTS]
    return [{"question": f"{asked[n % len(asked)]} Case {label}."} for n in range(count)]


def really(folder: Path, shapes: tuple[Shape, ...], rows: int) -> Done:
    """Run one session on real workers."""
    with session(folder, shapes) as running:
        with running.client("calibration") as client:
            for count in CALIBRATION_ROWS:
                _run(client, questions(f"c{count}", count))
        before_s = sum(running.cpu_s(shape.name) for shape in shapes)
        since_ms, start = time.time_ns() // 1_000_000, time.monotonic()
        with ThreadPoolExecutor(len(TENANTS)) as threads:
            ends = list(
                threads.map(lambda n: _tenant(running, n, rows, start), range(len(TENANTS)))
            )
        cpu_s = sum(running.cpu_s(shape.name) for shape in shapes) - before_s
        batches = _batches(folder)
        with running.client("calibration") as client:
            # A worker's id begins with the name that it was given.
            devices = {
                one.worker.partition("-")[0]: one.device.model_dump(include={*FIGURES})
                for one in client.workers()
            }
    compared = [one for one in batches if one.granted_ms >= since_ms]
    sizes = [one.tasks for one in compared]
    measured = Compared(max(ends), len(sizes), sum(sizes) / len(sizes), cpu_s)
    return Done(shapes, batches, since_ms, measured, devices)


def _tenant(running: Session, number: int, rows: int, start: float) -> float:
    """One tenant's run; when it ended, in seconds after `start`."""
    at_s, common = TENANTS[number]
    table = questions("common" if common else f"t{number}", rows)
    with running.client(f"t{number}") as client:
        time.sleep(max(0.0, start + at_s - time.monotonic()))
        _run(client, table)
    return time.monotonic() - start


def _run(client: Any, rows: list[dict[str, str]]) -> None:
    view = client.submit(WORKFLOW, inputs={"questions": rows}).wait()
    assert view.status == "succeeded", view


def _batches(home: Path) -> list[Batch]:
    with sqlite3.connect(home / "journal.db") as database:
        found = database.execute(
            "SELECT batch_key, worker, granted_ms, tasks, timing FROM leases"
            " WHERE timing != '' ORDER BY lease"
        ).fetchall()
    return [
        Batch(key.split("/")[0], worker, granted_ms, tasks, json.loads(timing))
        for key, worker, granted_ms, tasks, timing in found
    ]


def fitted(batches: Sequence[Batch]) -> dict[str, Any]:
    """A `sim.scenario.DeviceSpec` from what batches took before the compared part."""
    by: dict[str, dict[str, float]] = {}
    for operator in dict.fromkeys(one.operator for one in batches):
        told = [one.timing for one in batches if one.operator == operator]
        seconds = np.array([one["exec_s"] for one in told])
        names = ("prompt_tokens", "decode_steps", "output_tokens")
        features = np.array([[1.0, *(one[name] for name in names)] for one in told])
        by[operator] = dict(zip(FEATURES, _least_squares(features, seconds), strict=True))
    loads = [one.timing["load_s"] for one in batches if one.timing["load_s"]]
    return {"by": by, "load_s": max(loads, default=0.0), "concurrency": 32}


def _least_squares(features: Floats, seconds: Floats) -> list[float]:
    """Coefficients of at least 0, by relative errors; by coordinate descent."""
    a, b = features / seconds[:, None], np.ones(len(seconds))
    scale = np.where(a.any(axis=0), np.linalg.norm(a, axis=0), 1.0)
    a = a / scale
    x = np.zeros(a.shape[1])
    for _ in range(20_000):
        for column in range(len(x)):
            rest = b - a @ x + a[:, column] * x[column]
            x[column] = max(0.0, float(a[:, column] @ rest))
    return [float(one) for one in x / scale]


def cpu_per_second(batches: Sequence[Batch]) -> float:
    """Processor seconds that a second of work on warm engines took; of all if none were warm."""
    told = [one.timing for one in batches]
    warm = [one for one in told if not one["load_s"]] or told
    return sum(one["cpu_s"] for one in warm) / sum(one["exec_s"] + one["load_s"] for one in warm)


def simulated(done: Done, specs: dict[str, Any], cpu: dict[str, float], rows: int) -> Compared:
    """The same session, simulated: with the compared part, less without it.

    `specs`: by shape, as `fitted` gives them; `cpu`: by shape, see `cpu_per_second`.
    """
    whole = simulate(_scenario(done, specs, rows, compared=True))
    calibration = simulate(_scenario(done, specs, rows, compared=False))
    begin_ms = 1000 * APART_S * len(CALIBRATION_ROWS)
    settled = [one.settled_ms for one in whole.runs if one.submitted_ms >= begin_ms]
    batches = whole.batches - calibration.batches
    tasks = whole.tasks.executed - calibration.tasks.executed
    busy_s = whole.busy_s_by_kind, calibration.busy_s_by_kind
    cpu_s = sum(
        (busy_s[0][shape.name] - busy_s[1][shape.name]) * cpu[shape.name] for shape in done.shapes
    )
    return Compared((max(settled) - begin_ms) / 1000, batches, tasks / batches, cpu_s)


def _tokens(done: Done) -> dict[str, tuple[float, float]]:
    """By operator: mean prompt and output tokens of a row, in the calibration."""
    found = {}
    for operator in ("generate@2", "choose@2"):
        told = [one for one in done.batches if one.operator == operator]
        told = [one for one in told if one.granted_ms < done.since_ms]
        rows = sum(one.tasks for one in told)
        prompt = sum(one.timing["prompt_tokens"] for one in told) / rows
        output = sum(one.timing["output_tokens"] for one in told) / rows
        found[operator] = (prompt, output)
    return found


def _gbit_per_s(done: Done) -> float:
    """From the store: the model is there as soon as the real one was in the calibration."""
    told = max((one.timing for one in done.batches if one.granted_ms < done.since_ms), key=_fetched)
    return 8e-9 * MODELS[MODEL].weights_bytes / max(told["fetch_s"], 1e-3)


def _fetched(timing: dict[str, float]) -> float:
    return timing["fetch_bytes"]


def _scenario(done: Done, specs: dict[str, Any], rows: int, *, compared: bool) -> Scenario:
    shapes, tokens = done.shapes, _tokens(done)
    templates = {f"c{count}": _template(count, tokens) for count in CALIBRATION_ROWS}
    given = [
        {"at_s": APART_S * number, "tenant": "calibration", "template": f"c{count}"}
        for number, count in enumerate(CALIBRATION_ROWS)
    ]
    for number, (at_s, common) in enumerate(TENANTS if compared else ()):
        name = "common" if common else f"t{number}"
        templates[name] = _template(rows, tokens)
        at_s += APART_S * len(CALIBRATION_ROWS)
        given.append({"at_s": at_s, "tenant": f"t{number}", "template": name})
    data = {
        "name": "fidelity",
        "runs": 0,
        "tenants": 1,
        "mix": {"c1": 1.0},
        "overlap": 1.0,
        "pool": 1,
        "templates": templates,
        "given": given,
        "network": {"places": {"home": {"gbit_per_s": _gbit_per_s(done)}}},
        "devices": {shape.name: specs[shape.name] for shape in shapes},
        "fleet": [{"kind": shape.name} for shape in shapes],
        "noise": 0.0,
    }
    return parse(Scenario, data, Positions())


def _template(rows: int, tokens: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """`bench/tenants.yaml` as the simulator has it."""

    def model(name: str, operator: str, after: str) -> dict[str, Any]:
        prompt, output = tokens[operator]
        return {
            "name": name,
            "after": [after],
            "operator": operator,
            "model": MODEL,
            "rows": rows,
            "own_rows": True,
            "prompt": {"median": prompt},
            # Who chooses only reads.
            "output": {"median": max(1.0, output), "limit": 32 if output else 0},
            "max_batch": 32,
        }

    def table(name: str, operator: str, after: list[str]) -> dict[str, Any]:
        return {"name": name, "kind": "tool", "operator": operator, "after": after, "max_batch": 1}

    steps = [
        table("unique", "dedupe@1", []),
        model("answers", "generate@2", "unique"),
        model("judged", "choose@2", "answers"),
        {**table("kept", "transform@1", ["judged"]), "own_rows": True},
    ]
    return {"steps": steps}


def error(simulated_: float, measured: float) -> float:
    return simulated_ / measured - 1


def compared(done: Sequence[Done], rows: int) -> list[dict[str, Any]]:
    """Measured beside simulated, by session."""
    specs: dict[str, Any] = {}
    cpu: dict[str, float] = {}
    for one in done:
        if len(one.shapes) == 1:
            before = [batch for batch in one.batches if batch.granted_ms < one.since_ms]
            specs[one.shapes[0].name] = fitted(before) | one.devices[one.shapes[0].name]
            cpu[one.shapes[0].name] = cpu_per_second(before)
    figures = []
    for one in done:
        told = simulated(one, specs, cpu, rows)
        parts = {
            part: {"measured": getattr(one.measured, part), "simulated": getattr(told, part)}
            for part in ("makespan_s", "batches", "mean_batch", "cpu_s")
        }
        figures.append({"workers": named(one.shapes), **parts})
    return figures


def named(shapes: Sequence[Shape]) -> str:
    return "+".join(shape.name for shape in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for shapes in SESSIONS:
            print(f"workers {named(shapes)} ...", flush=True)
            done.append(really(Path(folder) / named(shapes), shapes, options.rows))
    figures = compared(done, options.rows)
    for one in figures:
        for part, pair in one.items():
            if part != "workers":
                off = error(pair["simulated"], pair["measured"])
                print(
                    f"{one['workers']:10} {part:11} measured {pair['measured']:8.2f}"
                    f" simulated {pair['simulated']:8.2f} {off:+.0%}"
                )
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "sessions": figures}, indent=1))


if __name__ == "__main__":
    main()
