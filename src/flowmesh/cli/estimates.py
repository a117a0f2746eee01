"""`flowmesh estimates`: what was learnt of how long work takes, and how well it was foretold."""

import re
from typing import TYPE_CHECKING

import click

from flowmesh.cli.options import App, service
from flowmesh.cli.output import emit, say, table

if TYPE_CHECKING:
    from flowmesh.planning import EstimateView

_EMPTY = "nothing has been learnt yet: run a workflow (flowmesh run examples/quickstart.yaml)"
#: Seconds are told for so many of a feature: (feature, how many, header).
_FEATURES = (
    ("batch", 1, "batch"),
    ("prompt token", 1000, "1000 prompt tokens"),
    ("decode step", 1, "step"),
    ("output token", 1000, "1000 output tokens"),
    ("unit of work", 1, "unit of work"),
)
_HEADERS = ("operator", "model", "device", "batches", "error")


@click.command()
@service
def estimates(app: App) -> None:
    """Tell how long batches take, as learnt from those that were run.

    By operator, model and kind of machine: the batches learnt from; the mean error of what was
    foretold of each before it ran; the seconds that a batch takes for itself, for 1000 prompt
    tokens, for each step in which all rows write a token, for 1000 tokens written or for a unit
    of an operator's own work; to load a cold engine; and what comes out a second with one row
    and with as many as fit.

    Exit status: 0, or 3 if the service cannot be reached.

    \b
    Example: flowmesh estimates --json
    """
    with app.client() as client:
        found = client.estimates()
    if app.as_json:
        emit([one.model_dump(mode="json") for one in found])
        return
    if not found:
        say(_EMPTY)
        return
    used = [one for one in _FEATURES if any(one[0] in view.seconds for view in found)]
    headers = (*_HEADERS, *(header for _, _, header in used), "load", "at 1 row", "full batch")
    rows = [(*_told(view), *_seconds(view, used), *_rates(view)) for view in found]
    say(table(headers, rows))


def _told(view: "EstimateView") -> tuple[object, ...]:
    models = ",".join(re.findall(r"sha256:([0-9a-f]{8})", view.batch_key))
    operator = view.operator or view.batch_key.partition("/")[0]
    return operator, models, view.kind or "unknown", view.seen, f"{view.error:.0%}"


def _seconds(view: "EstimateView", used: list[tuple[str, int, str]]) -> list[str]:
    each = (view.seconds.get(feature) for feature, _, _ in used)
    return [
        "-" if seconds is None else _short(seconds * count)
        for seconds, (_, count, _) in zip(each, used, strict=True)
    ]


def _rates(view: "EstimateView") -> tuple[str, str, str]:
    unit = f"{view.rate_unit}/s"
    return (
        _short(view.load_s),
        f"{view.rate_1:.3g} {unit}",
        f"{view.rate_full:.3g} {unit} ({view.rows_full} rows)",
    )


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
