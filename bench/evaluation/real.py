"""The part that is not simulated: real processes on this machine, before the simulations.

`bench/tenants.py` holds tenants that share against isolated pipelines; `bench/fidelity.py` holds
the simulator against real workers. Both need a machine that does nothing else meanwhile.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import tables
from .cells import ROOT

#: Percent of a tenant's questions that others ask too.
OVERLAPS = ("75", "90")
PARTS = {"makespan_s": "makespan, s", "batches": "batches", "mean_batch": "tasks in a batch"}
PARTS |= {"cpu_s": "CPU-seconds"}
#: The aim for the simulator's error.
ERROR_AIM = 0.15


def measured(folder: Path) -> dict[str, Any]:
    """Run both; what is in `folder` already is not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "tenants": _ran("tenants.py", folder, "--rows", "32", "--overlap", *OVERLAPS),
        "fidelity": _ran("fidelity.py", folder, "--rows", "12"),
    }


def _ran(script: str, folder: Path, *options: str) -> dict[str, Any]:
    out = folder / f"{script.removesuffix('.py')}.json"
    if not out.exists():
        command = [sys.executable, str(ROOT / "bench" / script), *options, "--json", str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


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

## The simulator held against reality

Workers of unlike shapes on this machine (one thread; one thread and twice as slow; two threads;
the first two together). Coefficients come from runs of 1, 4 and 16 rows before the part that
is compared: five tenants close upon each other, with tables in common and of their own. The same
session is then simulated. The aim is an error under {ERROR_AIM:.0%}.

{_fidelity(fidelity["sessions"])}

{_errors(fidelity["sessions"])}
"""


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
            f"{_error(one[part]):+.0%}",
        ]
        for one in sessions
        for part, words in PARTS.items()
    ]
    return tables.table(("workers", "figure", "measured", "simulated", "error"), rows)


def _errors(sessions: Sequence[dict[str, Any]]) -> str:
    """How large the errors are, and which of them are beyond the aim."""
    words = []
    for part, name in PARTS.items():
        errors = sorted(abs(_error(one[part])) for one in sessions)
        beyond = sum(error > ERROR_AIM for error in errors)
        words.append(f"{name}: at most {errors[-1]:.0%}, beyond the aim in {beyond}")
    return f"Of {len(sessions)} sessions, {'; '.join(words)}."


def _error(pair: dict[str, float]) -> float:
    return pair["simulated"] / pair["measured"] - 1
