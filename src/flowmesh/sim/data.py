"""Readers of the traces and tables in `$FLOWMESH_DATA`, each of which may be missing.

`docs/data.md` says where each is had and under which licence. Files are in the columns of
`$FLOWMESH_DATA/README.md`, or as their own publishers have them.
"""

import csv
import json
import os
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowmesh.base.errors import Problem, SpecError

Floats = npt.NDArray[np.float64]

AZURE = "llm_traces/azure_llm_2023_conv.csv"
MOONCAKE = "llm_traces/mooncake_conversation_trace.jsonl"
SERVEGEN = "llm_traces/servegen_client_windows.csv"
GAVEL = "cluster_traces/gavel_msr_0e4a51.trace"
ACME = "cluster_traces/acme_cluster_summary.csv"
BAMBOO = "spot/bamboo_g4dn_trace.csv"
PRICES = "prices/gpu_price_summary.csv"
VIDUR = "gpu_profiles/vidur_mlp_summary.csv"


def folder() -> Path | None:
    """`$FLOWMESH_DATA`, if it is set and there."""
    named = os.environ.get("FLOWMESH_DATA", "")
    return Path(named) if named and Path(named).is_dir() else None


def find(name: str) -> Path | None:
    """A file by its default name, if we have it."""
    home = folder()
    return home / name if home is not None and (home / name).is_file() else None


def given(name: str) -> Path:
    """A file that somebody named: as it stands, or in `$FLOWMESH_DATA`. Raises SpecError."""
    home = folder()
    paths = [Path(name)] if home is None else [Path(name), home / name]
    for path in paths:
        if path.is_file():
            return path
    raise SpecError(Problem("there is no such file, nor is it in $FLOWMESH_DATA", name))


def azure(path: Path) -> tuple[Floats, Floats]:
    """Seconds since the first request; (prompt, output) tokens, `[requests, 2]`."""
    times: list[float] = []
    tokens: list[tuple[int, int]] = []
    for row in rows(path):
        stamp = row["TIMESTAMP"][:26]
        times.append(datetime.fromisoformat(stamp).timestamp())
        tokens.append((int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    seconds = np.asarray(times)
    return seconds - seconds[0], np.asarray(tokens, dtype=np.float64)


def mooncake(path: Path) -> list[list[int]]:
    """The hashes of every request's blocks of 512 prompt tokens."""
    return [json.loads(line)["hash_ids"] for line in text(path).splitlines()]


def servegen(path: Path) -> dict[str, tuple[float, float]]:
    """By tenant: its mean rate in requests/s, and the median CV of its gaps."""
    windows: dict[str, list[tuple[float, float]]] = {}
    for row in rows(path):
        name = f"{row['category']}-{row['client']}"
        pair = (float(row["rate_req_s"]), float(row["iat_cv"] or "nan"))
        windows.setdefault(name, []).append(pair)
    told = {name: np.asarray(pairs) for name, pairs in windows.items()}
    known = {name: pairs for name, pairs in told.items() if np.isfinite(pairs[:, 1]).any()}
    return {
        name: (float(pairs[:, 0].mean()), float(np.nanmedian(pairs[:, 1])))
        for name, pairs in known.items()
    }


def gavel(path: Path) -> Floats:
    """Seconds at which the jobs of a Gavel trace arrive."""
    return np.sort(np.asarray([float(one.split("\t")[5]) for one in text(path).splitlines()]))


def seconds(path: Path) -> Floats:
    """A user's arrivals: one number of seconds a line, in the first column of a CSV, in order.

    The first line may be a header. Raises SpecError, with the line.
    """
    found: list[float] = []
    for number, line in enumerate(text(path).splitlines(), 1):
        told = line.split(",")[0].strip()
        try:
            at_s = float(told)
        except ValueError:
            if number > 1 and told:
                message = f"{told!r} is no number of seconds"
                raise SpecError(Problem(message, str(path), number)) from None
            continue
        if not isfinite(at_s) or at_s < 0:
            message = f"{told!r} is no time: expected seconds from 0 on"
            raise SpecError(Problem(message, str(path), number))
        if found and at_s < found[-1]:
            message = f"{told} is before the arrival above it, {found[-1]:g}: they are in order"
            raise SpecError(Problem(message, str(path), number))
        found.append(at_s)
    if not found:
        raise SpecError(Problem("the file holds no arrival", str(path)))
    return np.asarray(found)


def bamboo(path: Path) -> list[tuple[float, bool]]:
    """Second and whether a machine was taken away (else: it came), in order."""
    found: list[tuple[float, bool]] = []
    for number, line in enumerate(text(path).splitlines(), 1):
        parts = line.split(",")
        if len(parts) == 3 and parts[1] in ("add", "remove"):
            if not parts[0].strip().isdecimal():
                message = f"{parts[0]!r} is no number of milliseconds"
                raise SpecError(Problem(message, str(path), number))
            found.append((float(parts[0]) / 1000, parts[1] == "remove"))
    if not found:
        raise SpecError(Problem("the file holds no `milliseconds,add|remove,node`", str(path)))
    return sorted(found)


def prices(path: Path) -> dict[str, dict[str, float]]:
    """USD/h of one GPU by its name and kind of offer.

    The columns are `gpu` and some of `on_demand`, `marketplace`, `spot` (or as in
    `gpu_price_summary.csv`, `on_demand_median`, `vast_marketplace_median`, `spot_median`).
    Raises SpecError, with the line.
    """
    names = {
        "on_demand": ("on_demand", "on_demand_median"),
        "marketplace": ("marketplace", "vast_marketplace_median"),
        "spot": ("spot", "spot_median"),
    }
    found: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows(path), 2):
        try:
            told = {
                kind: _price(row[column])
                for kind, columns in names.items()
                for column in columns
                if row.get(column)
            }
            found[row["gpu"]] = told
        except (KeyError, ValueError) as error:
            raise SpecError(Problem(f"bad price: {error}", str(path), number)) from None
    if not any(found.values()):
        raise SpecError(Problem("the file holds no price; see docs/data.md", str(path)))
    return found


def _price(told: str) -> float:
    usd_per_hour = float(told)
    if not isfinite(usd_per_hour) or usd_per_hour < 0:
        raise ValueError(f"{told!r} is no price: expected USD/h from 0 on")
    return usd_per_hour


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Of a CSV with a header. Raises SpecError where it is none."""
    try:
        yield from csv.DictReader(StringIO(text(path), newline=""))
    except csv.Error as error:
        raise SpecError(Problem(f"is no CSV: {error}", str(path))) from None


def text(path: Path) -> str:
    """A whole file. Raises SpecError, with the line, where it is no text in UTF-8."""
    try:
        data = path.read_bytes()
        found = data.decode("utf-8-sig")
    except OSError as error:
        raise SpecError(Problem(f"cannot be read: {error.strerror}", str(path))) from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(Problem("is no text in UTF-8", str(path), line)) from None
    if "\0" in found:
        line = found[: found.index("\0")].count("\n") + 1
        raise SpecError(Problem("is no text: there is a zero byte", str(path), line))
    return found
