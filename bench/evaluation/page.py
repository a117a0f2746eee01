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

from flowmesh.sim.scenario import load_scenario

from . import beside, frontier, real, tables
from .cells import ROOT, Cell
from .findings import HEADLINE, all_losses, headline, useless
from .frontier import Tried
from .matrix import ABLATED_SMALLER, OURS, STATIC, Matrix
from .running import Outcome, Outcomes
from .tuning import LIKE, SEED
from .verdicts import TITLES, missed, verdicts


@dataclass(frozen=True, slots=True)
class How:
    """How the page was made."""

    command: str
    date: str
    minutes: float


def as_json(
    matrix: Matrix,
    outcomes: Outcomes,
    how: How,
    tried: Tried,
    measured: dict[str, Any] | None = None,
) -> dict[str, Any]:
    figures = headline(matrix, outcomes)
    told = {
        "headline": {name: round(figures[name].median, 4) for name in HEADLINE},
        "ranges": {name: asdict(one) for name, one in figures.items()},
        "aims": {
            one.name: {"sense": one.sense, "aim": one.aim, "reached": one.reached, "met": one.met}
            for one in verdicts(matrix, outcomes, measured)
        },
        "frontier": frontier.as_json(matrix, outcomes, tried),
        "made": {
            **asdict(how), **_machine(), "seeds": list(matrix.seeds), "data": data_of(outcomes),
        },
        "all": [_brief(outcomes.of(cell), cell) for cell in matrix.all()],
    }  # fmt: skip
    return told if measured is None else told | {"real": measured}


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
    told = as_json(matrix, outcomes, how, tried, measured)
    (folder / "evaluation.json").write_text(json.dumps(told, indent=1) + "\n")
    parts = [
        _begin(matrix, outcomes, how), _in_short(matrix, outcomes, measured),
        _elastic(matrix, outcomes), frontier.section(matrix, outcomes, tried),
        _fixed(matrix, outcomes), _parts(matrix, outcomes), _sweeps(matrix, outcomes),
        _beside(matrix, outcomes, measured), real.section(measured) if measured else "",
        _losses(matrix, outcomes), _tuning(tried), LIMITS,
    ]  # fmt: skip
    (folder / "evaluation.md").write_text("\n".join(part for part in parts if part))


def _begin(matrix: Matrix, outcomes: Outcomes, how: How) -> str:
    machine = _machine()
    data = "; ".join(f"{kind}: {', '.join(used)}" for kind, used in data_of(outcomes).items())
    known = f", {outcomes.known} of them known from a call before" if outcomes.known else ""
    busy_minutes = sum(outcome["real_s"] for outcome in outcomes.values()) / 60
    return f"""# Evaluation

This page is written by `{how.command}`; do not edit it. All but the part on a real machine is
simulated. What is compared is told in [the simulator](simulator.md), the policies in
`flowmesh.sim.baselines`, the bound in [the oracle](oracle.md). Figures are medians over seeds,
with the least and the most in brackets; ratios are made seed by seed, on equal work.

- Made {how.date} in {how.minutes:.0f} minutes: {len(outcomes)} simulations{known}. One after
  another they take {busy_minutes:.0f} minutes; two ran at a time.
- On {machine["machine"]}.
- Python {machine["python"]}, NumPy {machine["numpy"]}, FlowMesh {machine["flowmesh"]}.
- Seeds {_listed(matrix.seeds)}; sweeps, ablations, the rest {_listed(matrix.sweep_seeds)}.
- Where the inputs are from (`traces`: recorded ones in `$FLOWMESH_DATA`; `fitted`: generators
  with their published statistics): {data}.
"""


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _in_short(matrix: Matrix, outcomes: Outcomes, measured: dict[str, Any] | None) -> str:
    found = verdicts(matrix, outcomes, measured)
    judged = [
        [one.title, one.shown, f"{one.sense} {one.aim:g}", "met" if one.met else "**missed**"]
        for one in found
    ]
    aimed = [one.name for one in found]
    beside = [
        [TITLES[name], one.text()]
        for name, one in headline(matrix, outcomes).items()
        if name not in aimed
    ]
    return f"""## In short

{tables.table(("what was aimed at", "median (range)", "aim", ""), judged)}
{missed(matrix, outcomes, found, measured)}

Beside the aims:

{tables.table(("figure", "median (range)"), beside)}"""


def _elastic(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## On rented machines

Scenario `headline`: everybody rents from one price list. Baselines know the true times and sizes;
ours learns them as it goes.

{tables.elastic(matrix, outcomes)}
![Cost over the oracle's bound](images/evaluation-cost.png)

### Where the gain is from

Each line has all that the lines above it have. All of them rent the machines on which their work is
cheapest, by the true times: `isolated` for each run, the others for each queue. So "placement" is
only where a batch goes among the machines that are there; who rents by the price of an hour
(`cheapest`, `fifo`) is in the table above.

{tables.steps(matrix, outcomes)}
![The bill, idea by idea](images/evaluation-gains.png)

### What kinds of offers are worth

Spot machines are interrupted 7 times an hour on 32 of them.

{beside.offers(matrix, outcomes)}"""


def _fixed(matrix: Matrix, outcomes: Outcomes) -> str:
    return f"""## On the same fleet

Scenario `fixed-fleet`: {sum(part.count for part in load_scenario("fixed-fleet").fleet)} unlike \
machines that are there the whole time; all share results (`best-fit-as-is`
does not, as what it stands for does not). The bill is the fleet's price times the time until all is
done.

{tables.fixed(matrix, outcomes)}
![Latency on the same fleet](images/evaluation-latency.png)
"""


def _parts(matrix: Matrix, outcomes: Outcomes) -> str:
    smaller = "; ".join(
        f"`{name}` with {', '.join(f'{key} {value:g}' for key, value in changes)}"
        for name, changes in ABLATED_SMALLER.items()
        if name in matrix.ablations
    )
    return f"""## Ours without one of its parts

Multiples of the whole; above 1, the part is worth having. On rented machines parts trade cost
against latency, so that both have to be looked at. `dedup`: equal work of two runs is done twice.
`batching`: batches of one task. `batching across runs`: batches, warm engines and machines of each
run are its own, results are shared. `cost`, `energy`: that term of the utility is 0. `elasticity`:
{sum(part["count"] for part in json.loads(STATIC))} machines of the market, at its prices, there \
for the whole time. `learning`: estimates stay at their priors. `prefix`: a tenant's tasks of one
batch key are served by age, so that those that begin alike are mixed with others. `fairness`:
tenants have no turns; steps are served whole, by age.
{f"On smaller work, against the whole on the same: {smaller}." if smaller else ""}

{tables.ablations(matrix, outcomes)}
{tables.prefixes(matrix, outcomes)}

### Wrong estimates

Each pair of batch key and kind of machine is taken to be slower or faster by the factor, by
chance: half of them up, half down. Multiples of what right estimates give, on the same fleet.

{tables.misjudged(matrix, outcomes)}"""


def _sweeps(matrix: Matrix, outcomes: Outcomes) -> str:
    changed = ", ".join(f"{name} {value:g}" for name, value in matrix.sweep)
    smaller = f"Of a part of the work: {changed}.\n\n" if changed else ""
    parts = [f"## Sweeps\n\n{smaller}![All sweeps](images/evaluation-sweeps.png)\n"]
    for one in matrix.sweeps:
        parts.append(f"### {one.name.capitalize()}\n\n{tables.sweep(matrix, outcomes, one)}")
    return "\n".join(parts)


def weights() -> dict[str, float]:
    """Of the tenants of `weighted-shares`."""
    path = ROOT / "src/flowmesh/sim/scenarios/weighted-shares.yaml"
    told = yaml.safe_load(path.read_text())
    return {one["name"]: float(one["weight"]) for one in told["tenants"]}


def _beside(matrix: Matrix, outcomes: Outcomes, measured: dict[str, Any] | None) -> str:
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

Real time of one call of the policy, in `headline`, while two simulations ran at a time:

{beside.decisions(matrix, outcomes)}
{real.decisions(measured["decisions"]) if measured else ""}"""


def _losses(matrix: Matrix, outcomes: Outcomes) -> str:
    found, idle = all_losses(matrix, outcomes), useless(matrix, outcomes)
    parts = [
        f"- Without `{one.part}`, {one.measure} is {one.without:.2f} of the whole's."
        for one in idle
    ]
    less = "\n".join(["Parts of ours without which a figure is better:", "", *parts, ""])
    if not found:
        told = "In none of the comparisons above.\n"
    else:
        told = f"""Every comparison above in which a baseline's median is better, by more than half
a percent ({len(found)} of them; the best {tables.NAMED} of each are named).

{tables.lost(found)}"""
    return f"## Where ours is not best\n\n{told}\n{less if idle else ''}"


def _tuning(tried: Tried) -> str:
    rows = []
    for name, cell, cost, slow in tried:
        settings = ", ".join(f"{key} {value:g}" for key, value in cell.settings)
        rows.append([name, settings, f"{cost:.2f}", f"{slow:,.0f}"])
    return f"""## How the baselines were tuned

On a seed of its own ({SEED}), every baseline with settings got the cheapest ones of these: the
scenario has no hurry but its deadlines, and ours is to be cheap as well.
{LIKED}. Ours has none:
its weights are the default ones of the scenario's objective. So the p95 of ours may differ from
theirs; both are shown, and cost at equal p95 is under "Cost against latency".

{tables.table(("policy", "settings", "USD", "p95 (s)"), rows)}"""


LIKED = "Others have the settings of what they are like: " + ", ".join(
    f"`{name}` those of `{other}`" for name, other in LIKE.items()
)

LIMITS = f"""## What this does not show

- Times are of a simulator whose devices follow published profiles, not of these machines; see
  [the simulator](simulator.md), and above how far it is off where it was held against real runs.
- The bound is not a schedule: nobody can be at 1.
- Templates follow published recipes; whether tenants overlap as much as in `headline` is a
  property of the tenants. The sweep over overlap tells what it is without.
- `{OURS}` is measured with its default weights.
"""
