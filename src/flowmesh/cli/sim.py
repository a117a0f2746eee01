"""`flowmesh sim`: scenarios on a virtual clock, with the control plane that a server runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmesh.cli.options import App, Commands, local
from flowmesh.cli.output import emit, heading, note, say, table

if TYPE_CHECKING:
    from flowmesh.sim.report import Latency, Report


@click.group(cls=Commands)
def sim() -> None:
    """Simulate a deployment: what work would cost, how long it would take.

    The same control plane decides as in a server; machines, prices, tenants and mishaps are
    made up, or taken from traces in $FLOWMESH_DATA.

    Exit status: 0 done, 2 the request was wrong.

    \b
    Example: flowmesh sim run small
    """


@sim.command()
@click.argument("scenario")
@click.option("--policy", default="flowmesh", show_default=True, help="Who decides.")
@click.option("--prices", type=click.Path(dir_okay=False), help="Prices by GPU, as CSV.")
@click.option("--arrivals", type=click.Path(dir_okay=False),
              help="Seconds at which runs are submitted, one a line.")  # fmt: skip
@click.option("--profiles", type=click.Path(dir_okay=False),
              help="Measured times of layers, in Vidur's columns.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**32 - 1),
              help="Of all that is left to chance.")  # fmt: skip
@local
def run(
    app: App,
    scenario: str,
    policy: str,
    prices: str | None,
    arrivals: str | None,
    profiles: str | None,
    seed: int,
) -> None:
    """Simulate SCENARIO: a file, or the name of one that is shipped.

    Exit status: 0 done, whatever became of the runs; 2 the request was wrong.

    \b
    Example: flowmesh sim run headline --seed 3
    """
    from flowmesh.sim.baselines.catalog import register_all
    from flowmesh.sim.cluster import simulate
    from flowmesh.sim.scenario import load_scenario

    register_all()
    folder = os.environ.get("FLOWMESH_DATA", "")
    if folder and not Path(folder).is_dir():
        note(f"$FLOWMESH_DATA is {folder}, which is no folder: no trace is read")
    loaded = load_scenario(_path(scenario), prices, arrivals, profiles)
    report = simulate(loaded, policy, seed)
    if app.as_json:
        emit(report.as_json())
    else:
        _show(report)


def _path(scenario: str) -> str | Path:
    return Path(scenario) if "/" in scenario or scenario.endswith((".yaml", ".yml")) else scenario


@sim.command(name="list")
@local
def list_(app: App) -> None:
    """What can be simulated: scenarios that are shipped, and policies.

    Exit status: 0 done.

    \b
    Example: flowmesh sim list
    """
    from flowmesh.sim import policies
    from flowmesh.sim.baselines.catalog import register_all
    from flowmesh.sim.scenario import load_scenario, shipped

    register_all()
    scenarios = {name: load_scenario(name).about for name in shipped()}
    known = {name: policies.find(name).about for name in policies.names()}
    if app.as_json:
        emit({"scenarios": scenarios, "policies": known})
        return
    say(table(("scenario", "about"), list(scenarios.items())))
    say()
    say(table(("policy", "about"), list(known.items())))


def _show(report: "Report") -> None:
    heading(f"{report.scenario}, {report.policy}, seed {report.seed}")
    lines = [(name, text) for name, text in _lines(report) if text]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        say(f"{name:<{width}}  {text}")
    if len(report.latency_by_template) > 1:
        say()
        rows = [
            (name, one.runs, *(_seconds(s) for s in (one.p50, one.p95, one.p99)))
            for name, one in report.latency_by_template.items()
        ]
        say(table(("workflow", "runs", "p50", "p95", "p99"), rows))


def _lines(report: "Report") -> list[tuple[str, str]]:
    from flowmesh.cli.figures import money

    tasks = report.tasks
    saved = tasks.reused + tasks.joined
    by_kind = sorted(report.usd_by_kind.items(), key=lambda item: -item[1])
    kinds = ", ".join(f"{kind} {money(amount)}" for kind, amount in by_kind if amount)
    deadlines = report.deadlines_met
    possible = report.prefix_tokens_possible
    sources = ", ".join(f"{name} {told}" for name, told in report.data.items())
    return [
        ("cost", f"{money(report.usd)}  ({kinds})"),
        ("energy", f"{report.joules / 3.6e6:.2f} kWh"),
        ("latency of runs", _latency(report.latency)),
        ("makespan", _seconds(report.makespan_s)),
        ("unsettled", f"{report.unsettled} of {len(report.runs)} runs" if report.unsettled else ""),
        ("failed", _failed(report)),
        ("deadlines met", "" if deadlines is None else f"{deadlines:.0%}"),
        ("tasks", f"{tasks.asked:,} asked, {tasks.distinct:,} distinct, {tasks.executed:,} run"),
        ("saved by sharing", f"{saved / max(1, tasks.asked):.0%} of tasks"),
        ("batches", f"{report.batches:,}, of {report.mean_batch:.1f} tasks in the mean"),
        ("saved by prefixes", _prefixes(report.prefix_tokens_saved, possible)),
        ("utilisation", f"{report.utilisation:.0%} of {report.rented_gpu_s / 3600:.1f} GPU hours"),
        ("machines rented", f"{report.launches}" if report.launches else ""),
        ("interruptions", _interruptions(report)),
        ("decisions", f"{report.decisions:,}, {report.decide_us_p50:.0f} us median, "
                      f"{report.decide_us_p99:.0f} us p99"),
        ("simulated in", f"{report.real_s:.1f} s, {report.events:,} events"),
        ("data", sources),
    ]  # fmt: skip


def _failed(report: "Report") -> str:
    failed = sum(run.status == "failed" for run in report.runs)
    return f"{failed} of {len(report.runs)} runs" if failed else ""


def _prefixes(saved: int, possible: int) -> str:
    return f"{saved / 1e6:.2f} of {possible / 1e6:.2f} million tokens" if possible else ""


def _interruptions(report: "Report") -> str:
    if not report.interruptions:
        return ""
    redone = report.redone_gpu_s / max(report.busy_gpu_s, 1e-9)
    return f"{report.interruptions}; {redone:.1%} of the work was done again"


def _latency(latency: "Latency") -> str:
    if not latency.runs:
        return "no run succeeded"
    p50, p95, p99 = (_seconds(s) for s in (latency.p50, latency.p95, latency.p99))
    return f"p50 {p50}, p95 {p95}, p99 {p99}"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
