"""A small part of the matrix in a few minutes: does everything run, and is nothing absurd?"""

from collections.abc import Mapping

from .cells import Setting
from .findings import headline
from .matrix import SWEEPS, Matrix
from .running import Outcomes
from .spreads import usd

#: Put over every scenario.
SMALLER: Setting = (("rows", 0.004), ("runs", 40), ("duration_s", 2400.0))
POLICIES = ("flowmesh", "strong", "isolated-tenant", "isolated", "round-robin")
SAME_FLEET = ("flowmesh", "strong", "throughput-matrix", "best-fit", "fifo")


def matrix(tuned: Mapping[str, Setting]) -> Matrix:
    return Matrix(
        seeds=(1, 2),
        sweep_seeds=(1,),
        smaller=SMALLER,
        tuned=tuned,
        ablations=("dedup", "locality"),
        elastic=POLICIES,
        fixed=SAME_FLEET,
        sweeps=SWEEPS[:1],
    )


def check(matrix: Matrix, outcomes: Outcomes) -> None:
    """Raises AssertionError for what cannot be: a bill below the bound, or ours above isolated."""
    for cell in matrix.all():
        outcome = outcomes.of(cell)
        if not outcome["unsettled"]:
            # The bound is of all the work; some scenarios are looked at before it is done.
            assert usd(outcome) >= outcome["bound"]["usd"], f"{cell.label} is below the oracle"
            assert outcome["joules"] >= outcome["bound"]["joules"], f"{cell.label}: joules"
        assert not outcome["doubled"], f"{cell.label} has doubled results"
    figures = headline(matrix, outcomes)
    assert figures["cost_ratio_isolated"].least > 1, figures["cost_ratio_isolated"]
    assert figures["energy_ratio_isolated"].least > 1, figures["energy_ratio_isolated"]
