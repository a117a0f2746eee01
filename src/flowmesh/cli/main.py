"""The `flowmesh` command, and the one place where errors become messages and exit statuses.

0 done, 1 the run failed or was cancelled, 2 the request was wrong, 3 the service can't be
reached, 130 interrupted.
"""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from flowmesh.base.errors import FlowMeshError, SpecError
from flowmesh.base.version import __version__
from flowmesh.cli import estimates, explain, fleet, inspect, models, plan, run, sim, store, tenants
from flowmesh.cli.options import DEFAULT_HOME, App, Commands
from flowmesh.cli.output import emit, note

INTERRUPTED = 130


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="flowmesh", message="%(prog)s %(version)s")
def cli() -> None:
    """Run LLM workflows whose work is shared and never done twice.

    Without a server named by --server or $FLOWMESH_SERVER, commands use an embedded one: it
    keeps its data in $FLOWMESH_HOME (~/.flowmesh), is started when it is needed and leaves
    by itself.

    \b
    Exit status: 0 done, 1 the run failed, 2 the request was wrong,
                 3 the service cannot be reached, 130 interrupted.

    \b
    Example: flowmesh run examples/quickstart.yaml
    """


for command in (
    run.run,
    plan.plan,
    run.validate,
    inspect.runs,
    inspect.show,
    explain.explain,
    inspect.outputs,
    inspect.cancel,
    inspect.lineage,
    fleet.up,
    fleet.worker,
    fleet.workers,
    estimates.estimates,
    tenants.tenants,
    models.models,
    store.store,
    sim.sim,
    run.schema,
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status; never with a traceback."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    home = Path(os.environ.get("FLOWMESH_HOME") or DEFAULT_HOME).expanduser()
    app = App(home, as_json="--json" in given)
    sys.exit(_status(app, given))


def _status(app: App, arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="flowmesh", standalone_mode=False, obj=app)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _wrong_usage(app, error)
    except FlowMeshError as error:
        _tell(app, error.code, str(error), _problems(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        note(f"\n{app.farewell}")
        if app.as_json:
            _emit_error("interrupted", app.farewell, [])
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            _tell(app, "internal", _logged(app, error), [])
            return 1
        _tell(app, "file", f"{error.filename}: {error.strerror}", [])
        return 2
    except Exception as error:
        _tell(app, "internal", _logged(app, error), [])
        return 1


def _wrong_usage(app: App, error: click.ClickException) -> int:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if context is not None and not app.as_json:
        message += f"\nSee: {context.command_path} --help"
    _tell(app, "usage", message, [])
    return 2


def _tell(app: App, code: str, message: str, problems: list[dict[str, Any]]) -> None:
    for line in message.splitlines():
        note(f"flowmesh: {line}")
    if app.as_json:
        _emit_error(code, message, problems)


def _emit_error(code: str, message: str, problems: list[dict[str, Any]]) -> None:
    emit({"error": {"code": code, "message": message, "problems": problems}})


def _problems(error: FlowMeshError) -> list[dict[str, Any]]:
    if not isinstance(error, SpecError):
        return []
    keys = ("message", "file", "line", "column", "path")
    return [{key: getattr(problem, key) for key in keys} for problem in error.problems]


def _logged(app: App, error: Exception) -> str:
    """Keep the details of what should not have happened, for whoever mends it."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    log = app.home / "logs" / "cli.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {sys.argv}\n")
            file.writelines(traceback.format_exception(error))
    except OSError as unwritable:
        return f"an error of our own: {said} (and {log} cannot be written: {unwritable.strerror})"
    return f"an error of our own: {said}; details are in {log}"
