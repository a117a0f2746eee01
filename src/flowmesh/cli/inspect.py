"""`flowmesh runs`, `show`, `outputs`, `cancel`, `lineage`: about runs there are."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmesh.cli.figures import money
from flowmesh.cli.options import App, service
from flowmesh.cli.output import emit, say, table

if TYPE_CHECKING:
    from flowmesh.sdk.client import Client
    from flowmesh.sdk.runs import Output
    from flowmesh.wire import RunView

_HASH = re.compile(r"[0-9a-f]{64}")
_RUN = click.argument("run")


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 500),
              help="Most runs of a page.")  # fmt: skip
@click.option("--after", help="Next page: what the page before says at its end.")
@click.option("--all-tenants", is_flag=True, help="Not only those of --tenant.")
@service
def runs(app: App, limit: int, after: str | None, all_tenants: bool) -> None:
    """List runs, the newest first.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh runs --tenant alice --limit 5
    """
    with app.client() as client:
        page = client.runs(limit=limit, after=after, all_tenants=all_tenants)
    if app.as_json:
        emit(page.model_dump(mode="json"))
        return
    headers = ("run", "tenant", "workflow", "status", "tasks", "executed", "seconds", "cost", "at")
    say(table(headers, [_run_row(view) for view in page.runs]))
    if page.next:
        say(f"more: --after {page.next}")


def _run_row(view: "RunView") -> tuple[object, ...]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.submitted_ms / 1000))
    counts = (view.tasks.total, view.tasks.executed)
    cost = (f"{view.seconds:.1f}", money(view.cost_usd))
    return view.run, view.tenant, view.name, view.status, *counts, *cost, at


@click.command()
@_RUN
@click.option("--wait", is_flag=True, help="Stay until the run has settled.")
@service
def show(app: App, run: str, wait: bool) -> None:
    """Show how RUN stands.

    Its steps, failed rows, cost and outputs, now or at its end; and what was forecast when it
    was submitted beside what came of it, by step.

    \b
    Exit status: 0, 2 there is no such run, 3 the service cannot be reached;
                 with --wait also 1 if it failed or was cancelled.

    \b
    Example: flowmesh show r-0123456789ab --wait
    """
    from flowmesh.cli.compared import show_compared
    from flowmesh.cli.progress import follow
    from flowmesh.cli.run import farewell
    from flowmesh.cli.summary import run_document, show_summary

    with app.client() as client:
        found = client.run(run)
        if wait and found.last.status == "running":
            app.farewell = farewell(found.id, client.is_embedded)
            follow(found)
        plan = found.plan()
    if app.as_json:
        emit({**run_document(found.last), "plan": plan.model_dump(mode="json")})
    else:
        show_summary(found.last)
        show_compared(plan)
    if wait and found.last.status != "succeeded":
        click.get_current_context().exit(1)


@click.command()
@_RUN
@click.option("--name", help="One output; all of them without it.")
@click.option("--to", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Write into this directory instead of printing.")  # fmt: skip
@service
def outputs(app: App, run: str, name: str | None, directory: Path | None) -> None:
    """Print or write what RUN has made.

    Tables are printed as JSON lines; --to writes files, and folders for trees.

    With --json and no --name, lists the outputs.

    Exit status: 0, 2 there is no such run or output, 3 the service cannot be reached.

    \b
    Example: flowmesh outputs r-0123456789ab --name pairs --to results
    """
    with app.client() as client:
        found = client.run(run)
        chosen = [found.output(name)] if name else list(found.outputs.values())
        if directory is not None:
            written = {one.name: str(one.path(directory)) for one in chosen}
            if app.as_json:
                emit({"run": run, "written": written})
            for path in () if app.as_json else written.values():
                say(path)
        elif app.as_json:
            with_rows = [_described(one, with_rows=name is not None) for one in chosen]
            emit(with_rows[0] if name else {"run": run, "outputs": with_rows})
        else:
            _print(chosen)
            if not chosen:
                say(f"run {run} has no outputs; it is {found.last.status}")


def _described(output: "Output", *, with_rows: bool) -> dict[str, object]:
    facts: dict[str, object] = {"name": output.name, **output.artifact.model_dump(mode="json")}
    if with_rows and output.artifact.kind == "table":
        facts["table"] = output.rows()
    return facts


def _print(chosen: "list[Output]") -> None:
    for one in chosen:
        if len(chosen) > 1:
            click.echo(f"{one.name}:", err=True)
        if one.artifact.kind == "table":
            click.echo(one.bytes().decode(), nl=False)
        else:
            say(f"{one.artifact.kind} {one.digest}; fetch it with --to DIRECTORY")


@click.command()
@_RUN
@click.option("--checkpoint", is_flag=True,
              help="Let long tasks leave a checkpoint first, for up to 5 s.")  # fmt: skip
@service
def cancel(app: App, run: str, checkpoint: bool) -> None:
    """Stop RUN. Work that other runs wait for goes on; a settled run stays as it is.

    After --checkpoint, the same workflow run again goes on where its long tasks were. Of each
    that was stopped it says whether a checkpoint is left, and of which step.

    Exit status: 0, 2 there is no such run, 3 the service cannot be reached.

    \b
    Example: flowmesh cancel r-0123456789ab
    """
    from flowmesh.cli.progress import left_behind
    from flowmesh.cli.summary import run_document

    with app.client() as client:
        view = client.run(run).cancel(checkpoint=checkpoint)
    if app.as_json:
        emit(run_document(view))
    else:
        say(f"run {view.run}: {view.status}")
        for step in view.steps:
            if step.status == "cancelled" and step.progress is not None:
                say(f"{step.step}: {left_behind(step.progress)}")


@click.command()
@click.argument("what", metavar="DIGEST|RUN:OUTPUT")
@click.option("--row", type=click.IntRange(min=0), help="One row of it, counted from 0.")
@click.option("--down", is_flag=True, help="What was made from it, not what it was made from.")
@service
def lineage(app: App, what: str, row: int | None, down: bool) -> None:
    """Draw what an artifact was made from.

    With --down, what was made from it.

    OUTPUT is the name of an output of the workflow, or STEP.PORT; it may be left out where
    the run has one output. RUN/OUTPUT is the same as RUN:OUTPUT.

    Exit status: 0, 2 there is no such thing, 3 the service cannot be reached.

    \b
    Example: flowmesh lineage r-0123456789ab:pairs --row 3
    """
    from flowmesh.cli.tree import drawn

    with app.client() as client:
        node = client.lineage(**_named(client, what), row=row, direction="down" if down else "up")
    if app.as_json:
        emit(node.model_dump(mode="json"))
    else:
        say(drawn(node))


def _named(client: "Client", what: str) -> dict[str, str]:
    """What the argument names: a digest, or an output of a run."""
    if what.startswith("sha256:"):
        return {"digest": what}
    if _HASH.fullmatch(what):
        return {"digest": f"sha256:{what}"}
    found = re.fullmatch(r"([^:/]+)[:/](.+)", what)
    if found:
        return {"run": found[1], "output": found[2]}
    names = list(client.run(what).outputs)
    if len(names) != 1:
        wanted = f"one of its outputs: {', '.join(names)}" if names else "one of its steps' ports"
        raise click.UsageError(f"run {what} is not enough; add {wanted}, as {what}:NAME")
    return {"run": what, "output": names[0]}
