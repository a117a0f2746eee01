"""`flowmesh tenants`: who uses the server, and how much of what they may."""

import click

from flowmesh.cli.figures import money
from flowmesh.cli.options import App, service
from flowmesh.cli.output import emit, say, size, table


@click.command()
@service
def tenants(app: App) -> None:
    """List the tenants: their weights and quotas, and what they use.

    Quotas are set by the file of `flowmesh up --tenants`. Dollars are of this day, UTC, with
    what runs now; bytes are those that a tenant has put into the store itself.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh tenants --json
    """
    with app.client() as client:
        found = client.tenants()
    if app.as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    headers = ("tenant", "weight", "open runs", "running batches", "used today", "stored")
    rows = [
        (
            one.tenant,
            f"{one.weight:g}",
            one.open_runs,
            _of(str(one.leases), str(one.leases_limit) if one.leases_limit else ""),
            _of(
                money(one.day_usd + one.held_usd),
                money(one.usd_per_day_limit) if one.usd_per_day_limit else "",
            ),
            _of(
                size(one.stored_bytes),
                size(one.stored_bytes_limit) if one.stored_bytes_limit else "",
            ),
        )
        for one in found
    ]
    say(table(headers, rows))


def _of(used: str, limit: str) -> str:
    return f"{used} of {limit}" if limit else used
