"""`flowmesh plan`: what a run would reuse, do and take, before anything runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmesh.cli.options import App, service
from flowmesh.cli.output import emit, heading, say, table
from flowmesh.cli.run import workflow_options

if TYPE_CHECKING:
    from flowmesh.planning import FleetPlan, PlanView, StepTasks

_BASIS = {"exact": "", "sampled": "by a sample", "learnt": "as before", "shape": "a guess"}


@click.command()
@workflow_options
@click.option("--offers", type=click.Path(path_type=Path, dir_okay=False),
              help="YAML file of machines to plan on besides today's fleet.")  # fmt: skip
@service
def plan(
    app: App,
    file: Path,
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    workers: int,
    key: str | None,
    offers: Path | None,
    **limits: Any,
) -> None:
    """Say what a run of the workflow in FILE would reuse, do and take. Nothing is run.

    Work that is done already is looked up. For the rest it tells batches, duration, cost and
    energy by step, each with an interval in which 8 of 10 outcomes should lie; what would not
    run, and why; and whether a budget or a deadline would be exceeded. A first model is
    converted, as for a run.

    A file of offers is a list of machines with `name`, `device` (as A100-80) or figures,
    `usd_per_hour`, `startup_s` and `count`.

    \b
    Exit status: 0 it can run, on today's fleet or on the offers; 1 it cannot yet,
                 2 the request was wrong, 3 the service cannot be reached.

    \b
    Example: flowmesh plan quickstart.yaml --set samples=8 --offers offers.yaml
    """
    from flowmesh.cli.run import prepared_of
    from flowmesh.sdk.limits import Limits
    from flowmesh.sdk.offers import offers_in

    may_take = Limits(limits["deadline"], limits["budget"], limits["objective"])
    may_take.fields()  # a wrong one is told before anything is sent
    if offers is not None:
        offers_in(offers)
    prepared = prepared_of(file, settings, inputs)
    with app.client(workers) as client:
        view = client.look_ahead(prepared, key=key, limits=may_take, offers=offers or ())
    if app.as_json:
        emit(view.model_dump(mode="json"))
    else:
        show_plan(view)
    runs = not view.executed or any(fleet.places and fleet.feasible for fleet in view.fleets)
    click.get_current_context().exit(0 if runs else 1)


def show_plan(view: "PlanView") -> None:
    """Tasks by step, then what they take on each fleet."""
    from flowmesh.cli.figures import money

    most, least = ("up to ", "at least ") if view.unsure else ("", "")
    what = f"{most}{_tasks(view.executed)} to execute, {least}{view.reused} done before"
    heading(f"plan of {view.name}: {what}")
    if view.saved_usd:
        say(f"what is done before had cost {money(view.saved_usd)}")
    say()
    headers = ("step", "operator", "items", "tasks", "reused", "to execute", "known")
    rows = [_step_row(step) for step in view.steps]
    say(table(headers, rows))
    for fleet in view.fleets:
        if fleet.places and view.executed:
            say()
            _show_fleet(fleet)
    for note in view.notes:
        say()
        say(f"note: {note}")


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"


def _step_row(step: "StepTasks") -> tuple[object, ...]:
    known = "skipped" if step.skipped else "fails" if step.message else _BASIS[step.basis]
    return step.step, step.op, step.items, step.tasks, step.reused, step.executed, known


def _show_fleet(fleet: "FleetPlan") -> None:
    from flowmesh.cli.figures import joules, money, seconds, spread

    places = f"{fleet.places} {'place' if fleet.places == 1 else 'places'}"
    heading("on the offers given" if fleet.fleet == "offers" else f"on today's fleet, {places}")
    headers = ("step", "batches", "seconds", "cost", "energy", "from", "to", "where")
    rows: list[tuple[object, ...]] = [
        (
            step.step,
            step.batches,
            seconds(step.seconds.mid),
            money(step.usd.mid),
            joules(step.joules.mid),
            seconds(step.start_s),
            seconds(step.end_s),
            _where(step.where),
        )
        for step in fleet.steps
        if step.batches
    ]
    say(table(headers, rows))
    say(f"duration  {spread(fleet.seconds, 'seconds')}")
    extra = f", {money(fleet.startup_usd)} of it for starting" if fleet.startup_usd else ""
    say(f"cost      {spread(fleet.usd, 'usd')}{extra}")
    say(f"energy    {spread(fleet.joules, 'joules')}")
    for step in fleet.steps:
        for words, count in step.why_not.items() if step.batches else ():
            say(f"{step.step}: not on all; of {fleet.places} places, {count} {words}")
    for verdict in fleet.verdicts:
        say(f"! {verdict}")


def _where(places: dict[str, int]) -> str:
    """The places with most batches, and how many others there are."""
    ordered = sorted(places.items(), key=lambda one: (-one[1], one[0]))
    told = [f"{name} ({count})" for name, count in ordered[:2]]
    return ", ".join([*told, *([f"{len(ordered) - 2} more"] if ordered[2:] else [])])
