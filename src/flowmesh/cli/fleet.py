"""`flowmesh up`, `worker`, `workers`: the processes that do the work."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmesh.cli.options import App, Finite, Size, Weight, process, service
from flowmesh.cli.output import emit, note, say, size, table

if TYPE_CHECKING:
    from flowmesh.core.utility import Weights

#: A Python process that has loaded an engine takes more, before any model.
LEAST_MEMORY_BYTES = 100_000_000
#: About what a cloud takes for a core with its memory: a nominal price for one's own machine.
NOMINAL_USD_PER_HOUR = 0.05

_USD = click.option(
    "--usd-per-hour",
    envvar="FLOWMESH_USD_PER_HOUR",
    default=NOMINAL_USD_PER_HOUR,
    show_default=True,
    type=Finite(0, 10_000),
    help="What a worker's machine costs.",
)
_MEMORY = click.option(
    "--memory",
    type=Size(LEAST_MEMORY_BYTES),
    help="Most memory of a worker, as 4GB; most of the machine's, shared, if not given.",
)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8420, show_default=True, type=click.IntRange(0, 65535),
              help="0 takes a free one; <home>/server.json tells which.")  # fmt: skip
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0, 64),
              help="Local workers to keep running.")  # fmt: skip
@_USD
@_MEMORY
@click.option("--weight", "weights", type=Weight(), multiple=True,
              help="A tenant's share beside others', as alice=2; 1 if not given.")  # fmt: skip
@click.option("--tenants", "tenants_file", type=click.Path(path_type=Path, dir_okay=False),
              help="YAML: by tenant its weight, leases, usd_per_day, stored_bytes.")  # fmt: skip
@click.option("--objective", default="balanced", show_default=True,
              type=click.Choice(["balanced", "cost", "latency", "energy"]),
              help="What counts, for runs that do not say it themselves.")  # fmt: skip
@click.option("--usd-per-kwh", type=Finite(0, 1000),
              help="Price of electricity, as far as choices go.")  # fmt: skip
@click.option("--kg-co2-per-kwh", type=Finite(0, 1000),
              help="Carbon of electricity here.")  # fmt: skip
@click.option("--usd-per-kg-co2", type=Finite(0, 1000),
              help="Price of carbon; nothing by default.")  # fmt: skip
@click.option("--attended", is_flag=True, hidden=True, help="Leave when the last client has gone.")
@process
def up(
    app: App,
    host: str,
    port: int,
    memory: int | None,
    weights: tuple[tuple[str, float], ...],
    tenants_file: Path | None,
    **options: Any,
) -> None:
    """Start a server with local workers.

    It listens on this machine only, unless --host says otherwise; then it needs --token,
    which workers and clients must present. GET /healthz answers 200 when it takes work.

    Exit status: 0 stopped, 1 it failed, 2 wrong settings.

    \b
    Example: flowmesh up --port 8420 --workers 2
    """
    from flowmesh.server import quotas
    from flowmesh.server.app import ServerSettings, serve

    _log_to_stderr()
    tenants = quotas.load(tenants_file) if tenants_file else {}
    for name, weight in weights:
        known = tenants.get(name, quotas.TenantSettings())
        tenants[name] = replace(known, weight=weight)
    settings = ServerSettings(
        home=app.home.absolute(),
        weights=_weights(options),
        host=host,
        port=port,
        token=app.token,
        tenants=tenants,
        memory_bytes=memory,
        **options,
    )
    settings.check()
    note(f"starting on {host}:{port}, data in {settings.home}; stop with Ctrl-C")
    click.get_current_context().exit(serve(settings))


def _weights(options: dict[str, Any]) -> "Weights":
    """Of the utility; takes what it needs out of `options`."""
    from flowmesh.core.utility import PRESETS

    prices = {name: options.pop(name) for name in _PRICES}
    given = {name: price for name, price in prices.items() if price is not None}
    return replace(PRESETS[options.pop("objective")], **given)


#: Options that are fields of the utility's weights too.
_PRICES = ("usd_per_kwh", "kg_co2_per_kwh", "usd_per_kg_co2")


@click.command()
@click.option("--server", envvar="FLOWMESH_SERVER", required=True, help="Address of the server.")
@click.option("--name", default="", help="Start of the worker's id; the host's name by default.")
@_USD
@_MEMORY
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024),
              help="Threads of each batch.")  # fmt: skip
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 64),
              help="Batches at one time.")  # fmt: skip
@click.option("--devices", type=click.IntRange(1, 1024),
              help="GPUs that a batch may use; those found, or 1, if not given.")  # fmt: skip
@click.option("--stop-grace", default=20.0, show_default=True, type=Finite(0, 3600),
              help="Seconds that long tasks have for a checkpoint at the end.")  # fmt: skip
@click.option("--interruptions-per-hour", default=0.01, show_default=True,
              type=Finite(min=0, min_open=True),
              help="How often this machine may be taken away.")  # fmt: skip
@click.option("--place", envvar="FLOWMESH_PLACE", default="",
              help="Region or site of this machine; moves between may cost.")  # fmt: skip
@click.option("--instance", envvar="FLOWMESH_INSTANCE", default="", hidden=True,
              help="The rented machine that this is, as the server named it.")  # fmt: skip
@click.option("--slowdown", default=1.0, type=Finite(1, 1000), hidden=True,
              help="Take this many times as long, by idling; for tests.")  # fmt: skip
@click.option("--store", type=click.Path(path_type=Path, file_okay=False), hidden=True,
              help="The server's store, where it is on this machine.")  # fmt: skip
@click.option("--exit-when-orphaned", type=Finite(min=0, min_open=True),
              help="Leave after so many seconds without a server; never by default.")  # fmt: skip
@process
def worker(
    app: App,
    memory: int | None,
    devices: int | None,
    stop_grace: float,
    exit_when_orphaned: float | None,
    **options: Any,
) -> None:
    """Work for a server.

    From any machine that can reach it, until told to stop. At SIGTERM (the notice of a machine
    that is about to be taken away) long tasks leave a checkpoint, and go on elsewhere.

    What it offers follows from what is installed here: `pip install flowmesh[transformers]`
    for language models. It keeps a cache in HOME, `<home>/worker` by default.

    \b
    Exit status: 0 stopped, 2 wrong settings or refused by the server,
                 3 no server for as long as --exit-when-orphaned says.

    \b
    Example: flowmesh worker --server http://10.0.0.5:8420 --token SECRET
    """
    from flowmesh.worker.agent import run_worker
    from flowmesh.worker.settings import WorkerSettings, devices_found, most_memory_bytes

    _log_to_stderr()
    source = click.get_current_context().get_parameter_source("home")
    chosen = source is click.core.ParameterSource.COMMANDLINE
    assert app.server is not None, "the option is required"
    settings = WorkerSettings(
        server=app.server,
        home=(app.home if chosen else app.home / "worker").absolute(),
        token=app.token,
        memory_bytes=memory if memory is not None else most_memory_bytes(),
        devices=devices if devices is not None else devices_found(),
        stop_grace_s=stop_grace,
        exit_when_orphaned_s=exit_when_orphaned,
        **options,
    )
    click.get_current_context().exit(run_worker(settings))


@click.command()
@service
def workers(app: App) -> None:
    """List the workers that the server has heard of.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh workers --json
    """
    with app.client() as client:
        found = client.workers()
    if app.as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    headers = (
        *("worker", "host", "kind", "offers", "slots", "running"),
        *("devices", "memory", "usd/h", "heard"),
    )
    now_ms = time.time() * 1000
    rows = [
        (
            one.worker,
            one.host,
            one.device.kind or "unknown",
            ",".join(one.runtimes),
            one.slots,
            one.running,
            one.devices,
            size(one.memory_bytes) if one.memory_bytes else "any",
            f"{one.usd_per_hour:g}",
            f"{max(0.0, now_ms - one.heard_ms) / 1000:.0f} s ago",
        )
        for one in found
    ]
    say(table(headers, rows))


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request is too much
