"""`python -m bench.evaluation`: the whole matrix, and the page; `--quick`: a small part of it.

The page goes to docs/, that of `--quick` to build/. Outcomes are kept in build/evaluation; what
has not changed since is not simulated again. `--fresh` begins from nothing.
"""

import argparse
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from . import plots, quick, real, tuning
from .cells import ROOT
from .matrix import Matrix
from .page import How, write
from .running import run_all

BUILD = ROOT / "build" / "evaluation"
#: Others than those that anything was tuned on: 1 to 3, 101 to 105 and `tuning.SEED`.
SEEDS, SWEEP_SEEDS = (11, 12, 13, 14, 15), (11, 12, 13)
#: Sweeps are of a part of the work, so that all of it takes less than an hour.
SWEEP = (("runs", 80),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.evaluation")
    parser.add_argument("--quick", action="store_true", help="small scenarios, and only checks")
    parser.add_argument("--fresh", action="store_true", help="forget what was simulated before")
    parser.add_argument("--out", type=Path, help="folder of the page")
    asked = parser.parse_args()
    if asked.fresh:
        shutil.rmtree(BUILD, ignore_errors=True)
    began_s = time.monotonic()
    if asked.quick:
        out, told = asked.out or ROOT / "build" / "evaluation-quick", None
        settings, tried = tuning.tuned(BUILD, quick.SMALLER, quick=True)
        matrix, command = quick.matrix(settings), "make evaluate-quick"
    else:
        out = asked.out or ROOT / "docs"
        told = real.measured(BUILD / "real")
        settings, tried = tuning.tuned(BUILD, ())
        matrix, command = Matrix(SEEDS, SWEEP_SEEDS, sweep=SWEEP, tuned=settings), "make evaluate"
    outcomes = run_all(matrix.all(), BUILD)
    out.mkdir(parents=True, exist_ok=True)
    plots.draw_all(matrix, outcomes, tried, out / "images")
    minutes = (time.monotonic() - began_s) / 60
    how = How(command, f"{datetime.now(UTC):%Y-%m-%d}", minutes)
    write(matrix, outcomes, how, tried, out, told)
    print(f"{out / 'evaluation.md'} written after {minutes:.1f} minutes")
    if asked.quick:
        quick.check(matrix, outcomes)


if __name__ == "__main__":
    main()
