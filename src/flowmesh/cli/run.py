"""`flowmesh run`, `validate` and `schema`: from a file to results."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmesh.cli.options import App, local, pairs, service
from flowmesh.cli.output import emit, note, say

if TYPE_CHECKING:
    from flowmesh.sdk.prepare import Prepared

_SET = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Value of a plain input."
)
_INPUT = click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FILE", help="File of a table or file input."
)
_FILE = click.argument("file", type=click.Path(path_type=Path))
_WORKERS = click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Local workers, if the embedded server has to be started.",
)
_KEY = click.option("--key", help="Idempotency key: the same key gives the same run.")
_DEADLINE = click.option(
    "--deadline", help="When it should have settled, as 30min; else the workflow's."
)
_BUDGET = click.option(
    "--budget",
    type=float,
    metavar="USD",
    help="The most it may spend, in dollars; else the workflow's.",
)
_OBJECTIVE = click.option(
    "--objective",
    type=click.Choice(["balanced", "cost", "latency", "energy"]),
    help="What its placement weighs most; else the workflow's.",
)


def workflow_options(command: Callable[..., None]) -> Callable[..., None]:
    """What `run` and `plan` are told alike."""
    options = (_FILE, _SET, _INPUT, _WORKERS, _KEY, _DEADLINE, _BUDGET, _OBJECTIVE)
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@workflow_options
@click.option("--wait/--no-wait", default=True, show_default=True,
              help="Stay until the run has settled.")  # fmt: skip
@service
def run(
    app: App,
    file: Path,
    settings: tuple[str, ...],
    inputs: tuple[str, ...],
    workers: int,
    wait: bool,
    key: str | None,
    **limits: Any,
) -> None:
    """Run the workflow in FILE.

    Says at the end what was made, what was shared and what it cost.

    Everything is checked first: a wrong request stores and starts nothing. Work that was
    done before, by whomever of the same sharing domain, is not done again.

    \b
    Exit status: 0 succeeded (with --no-wait: accepted), 1 the run failed or was cancelled,
                 2 the request was wrong, 3 the service cannot be reached.

    \b
    Example: flowmesh run quickstart.yaml --set samples=2 --input prompts=mine.jsonl
    """
    from flowmesh.cli.progress import follow
    from flowmesh.cli.summary import run_document, show_summary
    from flowmesh.sdk.limits import Limits

    may_take = Limits(limits["deadline"], limits["budget"], limits["objective"])
    may_take.fields()  # a wrong one is told before anything is sent
    prepared = prepared_of(file, settings, inputs)
    with app.client(workers) as client:
        started = client.start(prepared, key=key, limits=may_take)
        app.farewell = farewell(started.id, client.is_embedded)
        if not wait:
            if client.is_embedded:
                note(f"the embedded server leaves without clients; go on: flowmesh show "
                     f"{started.id} --wait")  # fmt: skip
            if app.as_json:
                emit(run_document(started.last))
            else:
                say(started.id)
            return
        view = follow(started)
        if app.as_json:
            emit(run_document(view))
        else:
            show_summary(view)
    click.get_current_context().exit(0 if view.status == "succeeded" else 1)


def farewell(run: str, is_embedded: bool) -> str:
    """What becomes of a run that nobody waits for any more."""
    fate = "is kept, and goes on while anybody waits for it" if is_embedded else "goes on"
    return (
        f"interrupted; run {run} {fate}\n"
        f"  wait for it: flowmesh show {run} --wait\n"
        f"  stop it:     flowmesh cancel {run}"
    )


@click.command()
@_FILE
@_SET
@_INPUT
@service
def validate(app: App, file: Path, settings: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    """Check the workflow in FILE.

    Its tables, files and models are checked too; nothing is run.

    No server is asked; models named as in `flowmesh models` are not looked up.

    Exit status: 0 it could be run, 2 it could not.

    \b
    Example: flowmesh validate quickstart.yaml --set samples=2
    """
    prepared = prepared_of(file, settings, inputs)
    graph = prepared.graph
    counts = {
        "steps": len(graph.steps),
        "inputs": len(graph.workflow.inputs),
        "models": len(graph.models),
        "outputs": len(graph.outputs),
    }
    if app.as_json:
        order = [{"step": name, "op": graph.steps[name].op.name} for name in graph.order]
        emit({"ok": True, "name": graph.workflow.name, **counts, "order": order})
        return
    told = (f"{n} {what if n != 1 else what[:-1]}" for what, n in counts.items())
    say(f"ok: {', '.join(told)}")


@click.command()
@local
def schema(app: App) -> None:
    """Print the JSON Schema of the workflow language, for editors.

    Operators of installed packages are in it. Exit status: 0.

    \b
    Example: flowmesh schema > workflow.schema.json
    """
    from flowmesh.operators.catalog import catalog
    from flowmesh.spec.schema import json_schema

    emit(json_schema(catalog()))


def prepared_of(file: Path, settings: tuple[str, ...], inputs: tuple[str, ...]) -> "Prepared":
    """What the options of a command name, checked. Raises SpecError."""
    given, files = pairs(settings, "--set"), pairs(inputs, "--input")
    from flowmesh.sdk.prepare import prepare

    return prepare(file, parameters=given, inputs=files, typed=True)
