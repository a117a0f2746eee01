"""`flowmesh explain`: why a task ran where and when it did, or what it waits for."""

import time
from typing import TYPE_CHECKING

import click

from flowmesh.cli.options import App, service
from flowmesh.cli.output import emit, heading, say, table

if TYPE_CHECKING:
    from flowmesh.planning import OptionView, RunExplanation, ScoreView, TaskExplanation

_PLUS = ("value", "path", "urgency", "fairness")
_MINUS = ("cost", "egress", "energy", "risk")
#: A batch counts as at least so long where options are put in order, as in `core.outlook`.
_LEAST_S = 0.05
_SECONDS = ("wait_s", "load_s", "fetch_s", "exec_s")


@click.command()
@click.argument("what", metavar="RUN|RUN:STEP[:ROW]|TASK")
@service
def explain(app: App, what: str) -> None:
    """Say why a task ran there and then, and not elsewhere.

    Of a RUN it tells by step where the batches went, what they took and what they waited for.
    RUN:STEP:ROW (ROW.SAMPLE where there are several) is the task of a row; a task can also be
    named by its fingerprint, of which six digits are enough.

    Of a task it tells its life, the worth of its batch in dollars by term, what was expected
    and what was measured, and the runners-up. Of one that waits, what for.

    \b
    Exit status: 0, 2 there is no such run or task, 3 the service cannot be reached.

    \b
    Example: flowmesh explain r-0123456789ab:judged:3
    """
    with app.client() as client:
        if what.startswith("r-") and ":" not in what:
            run = client.explain_run(what)
            emit(run.model_dump(mode="json")) if app.as_json else _show_run(run)
        else:
            task = client.explain_task(what)
            emit(task.model_dump(mode="json")) if app.as_json else _show_task(task)


def _show_run(run: "RunExplanation") -> None:
    from flowmesh.cli.figures import money, seconds

    heading(f"run {run.run}: {run.status}")
    say()
    rows: list[tuple[object, ...]] = [
        (
            step.step,
            step.op,
            step.batches,
            seconds(step.seconds),
            money(step.usd),
            seconds(step.wait_s),
            _where(step.where),
            step.words,
        )
        for step in run.steps
    ]
    headers = ("step", "operator", "batches", "seconds", "cost", "waited", "where", "how")
    say(table(headers, rows))
    if run.reasons:
        say()
        say("what spoke against the next best choice, and what was waited for:")
        for reason in run.reasons:
            say(f"  {reason}")
    say()
    if run.sampled < run.decisions:
        say(f"decisions kept with their reasons: {run.sampled} of {run.decisions}")
    say(f"one task:  flowmesh explain {run.run}:STEP:ROW")


def _where(places: dict[str, int]) -> str:
    ordered = sorted(places.items(), key=lambda one: (-one[1], one[0]))
    told = [f"{name} ({count})" for name, count in ordered[:2]]
    return ", ".join([*told, *([f"{len(ordered) - 2} more"] if ordered[2:] else [])])


def _show_task(task: "TaskExplanation") -> None:
    row = "" if task.row is None else f", row {task.row}"
    place = f" ({task.step}{row} of {task.run})" if task.run else ""
    op = f", {task.op}" if task.op else ""
    heading(f"task {task.task[:12]}{op}: {task.status}{place}")
    say()
    for line in _life(task):
        say(line)
    for words in task.words:
        say(f"- {words}")
    if task.score is not None:
        say()
        _show_terms(task)
    if task.expected is not None:
        say()
        _show_took(task)
    if task.others:
        say()
        _show_options(task.others, waits=task.granted_ms is None)
    for attempt in task.attempts:
        say(f"failed under lease {attempt.lease}: {attempt.message} ({attempt.kind})")


def _life(task: "TaskExplanation") -> list[str]:
    from flowmesh.cli.figures import money

    lines = []
    if task.ready_ms is not None:
        lines.append(f"ready     {_clock(task.ready_ms)}")
    if task.granted_ms is not None:
        kind = f", {task.kind}" if task.kind else ""
        lines.append(
            f"granted   {_clock(task.granted_ms)} to {task.worker}{kind}: "
            f"lease {task.lease}, {task.batch} at once"
        )
    if task.ended_ms is not None and task.status == "succeeded":
        lines.append(f"done      {_clock(task.ended_ms)}")
    if task.status == "succeeded":
        shared = f"; this run's share {money(task.share_usd)}" if task.saved_usd else ""
        lines.append(f"cost      {money(task.usd)}{shared}")
    if len(task.runs) > 1 or task.other_tenants:
        others = [f"runs of {_other_tenants(task.other_tenants)}"] if task.other_tenants else []
        own = [", ".join(task.runs)] if task.runs else []
        lines.append(f"shared by {' and '.join([*own, *others])}")
    return lines


def _other_tenants(count: int) -> str:
    return f"{count} other tenant{'' if count == 1 else 's'}"


def _clock(at_ms: int) -> str:
    """The time here, with its day if that is not today."""
    at, now = time.localtime(at_ms / 1000), time.localtime()
    day = "" if at[:3] == now[:3] else time.strftime("%Y-%m-%d ", at)
    return f"{day}{time.strftime('%H:%M:%S', at)}.{at_ms % 1000:03}"


def _show_terms(task: "TaskExplanation") -> None:
    """The worth of the batch, by term; those that are nothing are left out."""
    from flowmesh.cli.figures import money

    assert task.score is not None
    terms = [(name, getattr(task.score, name)) for name in _PLUS]
    terms += [(name, -getattr(task.score, name)) for name in _MINUS]
    rows = [(name, money(amount)) for name, amount in terms if money(amount) != money(0)]
    rate = task.score.usd / max(task.score.seconds, _LEAST_S)
    rows += [("net", money(task.score.usd)), ("net a second", money(rate))]
    say(table(("worth of the batch", "USD"), rows))


def _show_took(task: "TaskExplanation") -> None:
    """What the batch should take beside what it took."""
    from flowmesh.cli.figures import joules, money, seconds

    expected, measured = task.expected, task.measured
    assert expected is not None
    forms = (("load_s", "load", seconds), ("fetch_s", "fetch", seconds),
             ("exec_s", "execute", seconds), ("usd", "cost", money),
             ("joules", "energy", joules))  # fmt: skip
    rows = [
        (
            words,
            form(getattr(expected, name)),
            "" if measured is None else form(getattr(measured, name)),
        )
        for name, words, form in forms
    ]
    say(table(("the batch", "expected", "measured"), rows))


def _show_options(options: "list[OptionView]", *, waits: bool) -> None:
    from flowmesh.cli.figures import money, seconds

    rows: list[tuple[object, ...]] = [
        (
            " ".join(filter(None, (one.place, one.kind))),
            one.batch,
            money(_worth(one.score)),
            money(_costs(one.score)),
            *(seconds(getattr(one.score, name)) for name in _SECONDS),
            money(one.score.usd),
            money(one.score.usd / max(one.score.seconds, _LEAST_S)),
        )
        for one in options
    ]
    title = "options now" if waits else "runners-up"
    headers = (title, "batch", "worth", "costs", "wait", "load", "fetch", "execute", "net",
               "net a second")  # fmt: skip
    say(table(headers, rows))


def _worth(score: "ScoreView") -> float:
    return score.value + score.path + score.urgency + score.fairness


def _costs(score: "ScoreView") -> float:
    return score.cost + score.egress + score.energy + score.risk
