"""Runs the cells of the matrix, two at a time, and keeps their outcomes by digest."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .cells import Cell

Outcome = dict[str, Any]
PROCESSES = 2


class Outcomes:
    """What the cells came to; asking for one that was not run is a KeyError.

    `known`: how many of them an earlier call had simulated.
    """

    def __init__(self, by_cell: dict[Cell, Outcome], known: int = 0) -> None:
        self._by_cell = by_cell
        self.known = known

    def of(self, cell: Cell) -> Outcome:
        return self._by_cell[cell]

    def each(self, cells: Iterable[Cell]) -> list[Outcome]:
        return [self.of(cell) for cell in cells]

    def values(self) -> Iterable[Outcome]:
        return self._by_cell.values()

    def __len__(self) -> int:
        return len(self._by_cell)


def run_all(cells: Sequence[Cell], folder: Path, *, processes: int = PROCESSES) -> Outcomes:
    """Outcomes of all cells; those in `folder` are taken from there.

    Raises RuntimeError, naming the cell, if a simulation fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    distinct = list(dict.fromkeys(cells))
    done = {cell: found for cell in distinct if (found := _kept(cell, folder)) is not None}
    todo = [cell for cell in distinct if cell not in done]
    _say(f"{len(distinct)} simulations, {len(done)} of them known")
    began = time.monotonic()
    # A process for each cell: none meets what another one left behind. With more cells for each,
    # pools of Python 3.11 stand still (python/cpython#115634).
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with pool:
        futures = {pool.submit(simulated, cell): cell for cell in todo}
        for number, future in enumerate(as_completed(futures), 1):
            cell = futures[future]
            done[cell] = _result(future, cell)
            (folder / f"{cell.digest()}.json").write_text(json.dumps(done[cell]))
            spent_s = time.monotonic() - began
            left = spent_s / number * (len(todo) - number) / 60
            so_far = f"{number}/{len(todo)} {spent_s:5.0f} s, {left:.0f} minutes left"
            _say(f"{so_far}  {cell.label}: {in_short(done[cell])}")
    return Outcomes(done, len(distinct) - len(todo))


def simulated(cell: Cell) -> Outcome:
    """One simulation; in a process of its own."""
    from .simulating import outcome

    return outcome(cell)


def in_short(outcome: Outcome) -> str:
    latency = outcome["latency"]
    return (
        f"{outcome['usd']:.2f} USD, p50 {latency['p50']:.0f} s, p95 {latency['p95']:.0f} s, "
        f"{outcome['real_s']:.0f} s real"
    )


def _result(future: Future[Outcome], cell: Cell) -> Outcome:
    try:
        return future.result()
    except Exception as error:
        raise RuntimeError(f"{cell.label} failed: {error}") from error


def _kept(cell: Cell, folder: Path) -> Outcome | None:
    path = folder / f"{cell.digest()}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
