"""Writes docs/evaluation.md and docs/evaluation.json from outcomes, and from nothing else."""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from . import beside, real, tables
from .cells import ROOT, Cell
from .findings import AIMS, AT_LEAST, all_losses, headline, met
from .matrix import OURS, Matrix
from .running import Outcome, Outcomes

TITLES = {
    "cost_ratio_isolated": "cost of `isolated`, as a multiple of ours",
    "cost_ratio_strong": "cost of `strong`, as a multiple of ours",
    "energy_ratio_isolated": "energy of `isolated`, as a multiple of ours",
    "cost_over_oracle": "our cost, as a multiple of the oracle's bound",
    "p95_ratio_best_baseline": "our p95 latency over that of the best baseline, same fleet",
    "p50_ratio_best_baseline": "our p50 latency over that of the best baseline, same fleet",
    "usd_ratio_best_baseline": "our cost over that of the best baseline, same fleet",
    "cost_ratio_isolated_tenant": "cost of `isolated-tenant`, as a multiple of ours",
    "energy_ratio_strong": "energy of `strong`, as a multiple of ours",
}
Tried = Sequence[tuple[str, Cell, float, float]]


@dataclass(frozen=True, slots=True)
class How:
    """How the page was made."""

    command: str
    date: str
    minutes: float


def as_json(matrix: Matrix, outcomes: Outcomes, how: How) -> dict[str, Any]:
    figures = headline(matrix, outcomes)
    return {
        "headline": {name: round(figures[name].median, 4) for name in AIMS},
        "ranges": {name: asdict(one) for name, one in figures.items()},
        "aims": {
            name: {"aim": aim, "met": met(name, figures[name].median)}
            for name, aim in AIMS.items()
        },
        "made": {
            **asdict(how), **_machine(), "seeds": list(matrix.seeds), "data": data_of(outcomes),
        },
        "all": [_brief(outcomes.of(cell), cell) for cell in matrix.all()],
    }  # fmt: skip


def _brief(outcome: Outcome, cell: Cell) -> dict[str, Any]:
    return {
        "cell": cell.label,
        "usd": outcome["usd"],
        "joules": outcome["joules"],
        "bound_usd": outcome["bound"]["usd"],
        "bound_joules": outcome["bound"]["joules"],
        "p50_s": outcome["latency"]["p50"],
        "p95_s": outcome["latency"]["p95"],
        "p99_s": outcome["latency"]["p99"],
    }


def data_of(outcomes: Outcomes) -> dict[str, list[str]]:
    """By kind of input, whether traces were used, or generators that were fitted to them."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes.values():
        for kind, source in outcome["data"].items():
            found.setdefault(kind, {})[source] = None
    return {kind: sorted(sources) for kind, sources in sorted(found.items())}


def _machine() -> dict[str, str]:
    names = ("numpy", "flowmesh", "matplotlib")
    versions = {name: version(name) for name in names}
    return {"machine": platform.platform(), "python": sys.version.split()[0], **versions}


def write(
    matrix: Matrix,
    outcomes: Outcomes,
    how: How,
    tried: Tried,
    folder: Path,
    measured: dict[str, Any] | None = None,
) -> None:
    """Both files; the pictures are made by `plots.py`. `measured`: see `real.py`."""
    told = as_json(matrix, outcomes, how)
    if measured is not None:
        told["real"] = measured
    (folder / "evaluation.json").write_text(json.dumps(told, indent=1) + "\n")
    parts = [
        _begin(matrix, outcomes, how), _headline(matrix, outcomes), _elastic(matrix, outcomes),
        _fixed(matrix, outcomes), _parts(matrix, outcomes), _sweeps(matrix, outcomes),
        _beside(matrix, outcomes), real.section(measured) if measured else "",
        _losses(matrix, outcomes), _tuning(tried), LIMITS,
    ]  # fmt: skip
    (folder / "evaluation.md").write_text("\n".join(parts))


def _begin(matrix: Matrix, outcomes: Outcomes, how: How) -> str:
    machine = _machine()
    data = "; ".join(f"{kind}: {', '.join(used)}" for kind, used in data_of(outcomes).items())
    return f"""# Evaluation

This page is written by `{how.command}`; do not edit it. All but the part on a real machine is
simulated. What is compared is told in [the simulator](simulator.md), the policies in
`flowmesh.sim.baselines`, the bound in [the oracle](oracle.md). Figures are medians over seeds,
with the least and the most in brackets; ratios are made seed by seed, on equal work.

- Made {how.date} in {how.minutes:.0f} minutes: {len(outcomes)} simulations.
- On {machine["machine"]}.
- Python {machine["python"]}, NumPy {machine["numpy"]}, FlowMesh {machine["flowmesh"]}.
- Seeds {_listed(matrix.seeds)}; sweeps, ablations, the rest {_listed(matrix.sweep_seeds)}.
- Where the inputs are from (`traces`: recorded ones in `$FLOWMESH_DATA`; `fitted`: generators
  with their published statistics): {data}.
"""


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _headline(matrix: Matrix, outcomes: Outcomes) -> str:
    figures = headline(matrix, outcomes)
    rows = []
    for name, one in figures.items():
        aim, verdict = "", ""
        if name in AIMS:
            aim = f"{'at least' if name in AT_LEAST else 'at most'} {AIMS[name]:g}"
            verdict = "met" if met(name, one.median) else "**missed**"
        rows.append([TITLES[name], one.text(), aim, verdict])
    return "## In short\n\n" + tables.table(("figure", "median (range)", "aim", ""), rows)


def _elastic(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## On rented machines

Scenario `headline`: everybody rents from one price list. Baselines know the true times and sizes;
ours learns them as it goes.

{tables.elastic(matrix, outcomes)}
![Cost over the oracle's bound](images/evaluation-cost.png)

### Where the gain is from

Each line has all that the lines above it have.

{tables.steps(matrix, outcomes)}
![The bill, idea by idea](images/evaluation-gains.png)

### What kinds of offers are worth

Spot machines are interrupted 7 times an hour on 32 of them.

{beside.offers(matrix, outcomes)}"""


def _fixed(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## On the same fleet

Scenario `fixed-fleet`: fourteen unlike machines that are there the whole time; all share results
(`best-fit-as-is` does not, as what it stands for does not). The bill is the fleet's price times
the time until all is done.

{tables.fixed(matrix, outcomes)}
![Latency on the same fleet](images/evaluation-latency.png)
"""


def _parts(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## Ours without one of its parts

Multiples of the whole; above 1, the part is worth having. `batching across runs`: batches, warm
engines and machines of each run are its own, results are shared. `elasticity`: the machines of
`fixed-fleet` at the market's prices, there for the whole time.

{tables.ablations(matrix, outcomes)}
### Wrong estimates

Each pair of batch key and kind of machine is taken to be slower or faster by the factor, by
chance: half of them up, half down. Multiples of what right estimates give, on the same fleet.

{tables.misjudged(matrix, outcomes)}"""


def _sweeps(matrix: Matrix, outcomes: Outcomes) -> str:
    parts = ["## Sweeps\n\n![All sweeps](images/evaluation-sweeps.png)\n"]
    for one in matrix.sweeps:
        parts.append(f"### {one.name.capitalize()}\n\n{tables.sweep(matrix, outcomes, one)}")
    return "\n".join(parts)


def weights() -> dict[str, float]:
    """Of the tenants of `weighted-shares`."""
    path = ROOT / "src/flowmesh/sim/scenarios/weighted-shares.yaml"
    told = yaml.safe_load(path.read_text())
    return {one["name"]: float(one["weight"]) for one in told["tenants"]}


def _beside(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## Fairness

Four tenants of weights 1, 1, 2 and 4, all backlogged, after twenty minutes; 1 is a tenant's exact
share.

{beside.shares(matrix, outcomes, weights())}
Single requests of three tenants beside the million-row batch of a fourth:

{beside.interactive(matrix, outcomes)}
## Interruptions

32 spot machines, taken away without notice, against the same without interruptions.

{beside.interruptions(matrix, outcomes)}
## Decision time

Real time of one call of the policy, in `headline`; `make bench-decisions` measures it at 1,000
workers and 1,000,000 ready tasks.

{beside.decisions(matrix, outcomes)}"""


def _losses(matrix: Matrix, outcomes: Outcomes) -> str:
    found = all_losses(matrix, outcomes)
    if not found:
        return "## Where ours is not best\n\nIn none of the comparisons above.\n"
    return f"""## Where ours is not best

Every comparison above in which a baseline's median is better, by more than half a percent
({len(found)} of them).

{tables.lost(found)}"""


def _tuning(tried: Tried) -> str:
    rows = []
    for name, cell, cost, slow in tried:
        settings = ", ".join(f"{key} {value:g}" for key, value in cell.settings)
        rows.append([name, settings, f"{cost:.2f}", f"{slow:,.0f}"])
    return f"""## How the baselines were tuned

On a seed of its own, every baseline with settings got the cheapest ones of these that are at most
twice as slow at the 95th percentile as its quickest ones; those that differ in their choice of
worker only have the settings of `cheapest`.

{tables.table(("policy", "settings", "USD", "p95 (s)"), rows)}"""


LIMITS = f"""## What this does not show

- Times are of a simulator whose devices follow published profiles, not of these machines; see
  [the simulator](simulator.md) for how far it is off, and the real runs there.
- The bound is not a schedule: nobody can be at 1.
- Templates follow published recipes; whether tenants overlap as much as in `headline` is a
  property of the tenants. The sweep over overlap tells what it is without.
- `{OURS}` is measured with its default weights.
"""
