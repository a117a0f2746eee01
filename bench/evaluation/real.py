"""The part that is not simulated: real processes on this machine, before the simulations.

`bench/tenants.py` holds tenants that share against isolated pipelines, `bench/fidelity.py` the
simulator against real workers, `bench/decisions.py` times the policy at its largest. All of them
need a machine that does nothing else meanwhile; how far that was so is measured too.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..processes import busy_s, run_within
from . import tables
from .cells import ROOT

PARTS = {"makespan_s": "makespan, s", "batches": "batches", "mean_batch": "tasks in a batch"}
PARTS |= {"cpu_s": "CPU-seconds"}
#: The aim for the simulator's error.
ERROR_AIM = 0.15


@dataclass(frozen=True, slots=True)
class Script:
    """One of `bench/`, with its options; `limit_s` is some four times what it takes when quiet.

    `prints`: its JSON goes to standard output, not to a file.
    """

    name: str
    options: tuple[str, ...]
    limit_s: float
    prints: bool = False


SCRIPTS = (
    # Percent of a tenant's questions that others ask too.
    Script("tenants", ("--rows", "32", "--overlap", "75", "90"), 1500.0),
    Script("fidelity", ("--rows", "12"), 1500.0),
    Script("decisions", ("--json",), 900.0, prints=True),
)


def measured(folder: Path, scripts: Sequence[Script] = SCRIPTS) -> dict[str, Any]:
    """Run all, one after another; what `folder` has of the same code is not measured again.

    Raises TookTooLong, or RuntimeError for a script that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {script.name: _ran(script, folder) for script in scripts}


def _ran(script: Script, folder: Path) -> dict[str, Any]:
    kept, code = folder / f"{script.name}.json", code_digest()
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_text())
        if known["code"] == code:
            return known
    out = folder / f"{script.name}.part"
    command = [sys.executable, str(ROOT / "bench" / f"{script.name}.py"), *script.options]
    command += [] if script.prints else ["--json", str(out)]
    print(f"bench/{script.name}.py, at most {script.limit_s / 60:.0f} minutes", file=sys.stderr)
    began_s, busy, own = time.monotonic(), busy_s(), _children_s()
    told = run_within(command, script.limit_s, capture=script.prints)
    spent_s = time.monotonic() - began_s
    others_s = max(0.0, busy_s() - busy - (_children_s() - own))
    found: dict[str, Any] = json.loads(told if script.prints else out.read_text())
    others = others_s / spent_s / (os.cpu_count() or 1)
    found |= {"code": code, "minutes": spent_s / 60, "others": others}
    kept.write_text(json.dumps(found))
    return found


def code_digest() -> str:
    """Of all that is measured, and of what measures it."""
    found = hashlib.sha256()
    for path in [*sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "bench").glob("*.*"))]:
        found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def section(told: dict[str, Any]) -> str:
    tenants, fidelity = told["tenants"], told["fidelity"]
    return f"""## On a real machine

Not simulated: eight tenants, each with a table of {tenants["rows"]} questions of which a share is
common to all, run `bench/tenants.yaml` (four steps, two of them on SmolLM2-135M) on
{tenants["cores"]} cores: through one FlowMesh, and as isolated pipelines, each a process with a
model of its own, the same engines and batch sizes, and equal rows answered once. Everything is
counted, from the first process's start to the last one's end; both ways gave equal tables. Energy
is modelled from processor seconds and time: no meter can be read here.

{_tenants(tenants["by"])}
{_shared(tenants)} The two ways of each pair ran one right after the other.

## The simulator held against reality

Workers of unlike shapes on this machine (one thread; one thread and twice as slow; two threads;
the first two together). Coefficients come from runs of 1 to 16 rows before the part that
is compared: five tenants close upon each other, with tables of {fidelity["rows"]} rows, some
in common and some of their own. Nothing of that part goes into them, and the two workers together
are predicted from what each did alone. The aim is an error under {ERROR_AIM:.0%}.

{_fidelity(fidelity["sessions"])}
{_errors(fidelity["sessions"])} {_shared(fidelity)}
"""


def _shared(told: dict[str, Any]) -> str:
    """How far the machine was ours alone; own processes that nobody waited for count as others'."""
    return (
        f"The machine is shared with others: they took at most {told['others']:.0%} of its "
        f"processors in these {told['minutes']:.1f} minutes."
    )


def decisions(told: dict[str, Any]) -> str:
    """The policy at its largest, in processor time of one core."""
    rows = [
        [title, f"{one['count']:,}", *(f"{one[name]:.3f}" for name in PERCENTILES)]
        for title, one in (
            ("a decision, when all workers are idle", told["start"]),
            ("a decision, as batches end one by one", told["steady"]),
            ("an event with all that follows from it", told["event"]),
        )
    ]
    size = f"{told['tasks']:,} ready tasks, {told['keys']} batch keys, {told['workers']:,} workers"
    head = (size, "measured", "median (ms)", "p99 (ms)", "most (ms)")
    return f"""`bench/decisions.py`, on one core:

{tables.table(head, rows)}
A ready task takes {told["bytes_per_ready_task"]:,.0f} bytes of memory, {_us(told, "expand")} to
come into the pool, and {_us(told, "grant_and_result")} to be granted and taken in again, in batches
of {told["mean_batch"]:.0f}. {_shared(told)}
"""


PERCENTILES = ("median_ms", "p99_ms", "max_ms")


def _us(told: dict[str, Any], name: str) -> str:
    return f"{told[f'{name}_us_per_task']:.0f} us"


def _tenants(by: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{one['overlap']:.0%}",
            name,
            f"{figure['isolated']:.1f}",
            f"{figure['shared']:.1f}",
            f"{figure['ratio']:.2f}x",
        ]
        for one in by
        for name, figure in one.items()
        if isinstance(figure, dict) and "ratio" in figure
    ]
    return tables.table(("common", "figure", "isolated", "shared", "less by"), rows)


def _fidelity(sessions: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            one["workers"],
            words,
            f"{one[part]['measured']:.1f}",
            f"{one[part]['simulated']:.1f}",
            f"{error(one[part]):+.0%}",
        ]
        for one in sessions
        for part, words in PARTS.items()
    ]
    return tables.table(("workers", "figure", "measured", "simulated", "error"), rows)


def _errors(sessions: Sequence[dict[str, Any]]) -> str:
    """How large the errors are, and which of them are beyond the aim."""
    words = []
    for part, name in PARTS.items():
        errors = sorted(abs(error(one[part])) for one in sessions)
        beyond = sum(off > ERROR_AIM for off in errors)
        words.append(f"{name}: at most {errors[-1]:.0%}, beyond the aim in {beyond}")
    return f"Of {len(sessions)} sessions, {'; '.join(words)}."


def error(pair: dict[str, float]) -> float:
    """Of what was simulated, relative to what was measured."""
    return pair["simulated"] / pair["measured"] - 1
