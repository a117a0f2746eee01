"""Made-up outcomes of the evaluation's simulations, in which ours is best."""

from typing import Any

from bench.evaluation.cells import Cell
from bench.evaluation.matrix import Matrix
from bench.evaluation.page import How, weights
from bench.evaluation.running import Outcomes

HOW = How("make evaluate", "2026-11-22", 42.0)
#: What ours is better by, in the made-up outcomes.
FACTORS = {"flowmesh": 1.0, "strong": 2.0, "isolated": 8.0}


def told(cell: Cell, **changes: Any) -> dict[str, Any]:
    """A made-up outcome: ours is best, the more so from a larger seed."""
    factor = FACTORS.get(cell.policy, 4.0) ** (1 + cell.seed / 100)
    latency = {"p50": 10 * factor, "p95": 50 * factor, "p99": 90 * factor, "runs": 7}
    return {
        "policy": cell.policy, "seed": cell.seed, "usd": 10.0 * factor, "joules": 1e6 * factor,
        "latency": latency, "latency_by_template": {"chat-8b": latency},
        "bound": {"usd": 9.0, "joules": 5e5}, "deadlines_met": 0.75, "utilisation": 0.5,
        "mean_batch": 33.0, "makespan_s": 1000.0, "interruptions": 3, "unsettled": 0,
        "failed_runs": 0, "doubled": 0, "busy_gpu_s": 100.0, "redone_gpu_s": 2.0,
        "decide_us_p50": 90.0, "decide_us_p99": 900.0, "decide_us_mean": 100.0, "decisions": 5,
        "real_s": 1.0, "prefix_tokens_saved": 8, "prefix_tokens_possible": 10,
        "data": {"arrivals": "fitted"},
        "tenants": {name: {"usd": weight} for name, weight in weights().items()},
        **changes,
    }  # fmt: skip


def made(matrix: Matrix, **changes: Any) -> Outcomes:
    return Outcomes({cell: told(cell, **changes) for cell in matrix.all()})


def tried(matrix: Matrix) -> list[tuple[str, Cell, float, float]]:
    """Settings of `strong`: a cheap slow one, a dear quick one, and one of another policy."""
    cells = [Cell("headline", "strong", 1, settings=(("idle_s", n),)) for n in (60, 180)]
    return [
        ("headline strong", cells[0], 12.0, 90.0),
        ("headline strong", cells[1], 30.0, 40.0),
        ("headline cheapest", cells[0], 1.0, 1.0),
    ]
