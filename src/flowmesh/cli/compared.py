"""Plan and outcome of a run, side by side."""

from flowmesh.cli.figures import joules, money, seconds, spread
from flowmesh.cli.output import say, table
from flowmesh.planning import FleetPlan, Interval, RunPlan, StepOutcome, StepPlan, StepTasks

_SETTLED = ("succeeded", "failed", "cancelled")


def show_compared(run: RunPlan) -> None:
    """By step: what was forecast at the run's submission, a slash, and what came of it."""
    if run.plan is None or not run.plan.fleets:
        return
    fleet, plan = run.plan.fleets[0], run.plan
    say()
    say("planned / actual:")
    tasks = {step.step: step for step in plan.steps}
    planned = {step.step: step for step in fleet.steps}
    rows = [
        _row(outcome, tasks.get(outcome.step), planned.get(outcome.step)) for outcome in run.steps
    ]
    headers = ("step", "reused", "executed", "batches", "seconds", "cost", "energy")
    say(table(headers, rows))
    if not fleet.places:
        say("it was planned without any worker: only the tasks were known")
        return
    if run.status not in _SETTLED or not fleet.feasible:
        _say_verdicts(fleet)
        return
    say(f"duration  {_both(fleet.seconds, run.seconds, 'seconds')}")
    say(f"cost      {_both(fleet.usd, run.usd, 'usd')}")
    say(f"energy    {_both(fleet.joules, run.joules, 'joules')}")
    _say_verdicts(fleet)


def _row(
    outcome: StepOutcome, tasks: StepTasks | None, planned: StepPlan | None
) -> tuple[object, ...]:
    tasks = tasks or StepTasks(step=outcome.step, op="")
    planned = planned or StepPlan(step=outcome.step)
    done = outcome.tasks
    return (
        outcome.step,
        f"{tasks.reused} / {done.reused + done.joined}",
        f"{tasks.executed} / {done.executed}",
        f"{planned.batches} / {outcome.batches}",
        f"{seconds(planned.seconds.mid)} / {seconds(outcome.seconds)}",
        f"{money(planned.usd.mid)} / {money(outcome.usd)}",
        f"{joules(planned.joules.mid)} / {joules(outcome.joules)}",
    )


def _both(planned: Interval, actual: float, kind: str) -> str:
    form = {"usd": money, "seconds": seconds, "joules": joules}[kind]
    inside = planned.low <= actual <= planned.high
    return f"{spread(planned, kind)} / {form(actual)}{'' if inside else ', outside the interval'}"


def _say_verdicts(fleet: FleetPlan) -> None:
    for verdict in fleet.verdicts:
        say(f"when it was submitted: {verdict}")
