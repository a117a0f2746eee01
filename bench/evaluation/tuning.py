"""Gives each baseline its best settings, on a seed that the evaluation does not use."""

from collections.abc import Mapping
from pathlib import Path

from .cells import Cell, Setting
from .running import run_all
from .spreads import p95, usd

SEED = 1001
#: Queue targets and idle timeouts of autoscalers, seconds.
TARGETS_S, IDLE_S = (300.0, 900.0, 2700.0), (60.0, 180.0, 420.0)
AUTOSCALED = (
    "strong", "isolated-tenant", "cheapest", "round-robin", "throughput-matrix",
    "best-fit-batched",
)  # fmt: skip
#: Those that may have a pool for each model.
POOLED = ("strong", "isolated-tenant")
#: Those that are like one of `AUTOSCALED`, and get its settings.
LIKE = {
    "fifo": "cheapest",
    "fastest": "cheapest",
    "bin-pack": "cheapest",
    "locality": "round-robin",
    "best-fit": "best-fit-batched",
}
SIZE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def tuned(
    folder: Path, smaller: Setting, *, quick: bool = False
) -> tuple[dict[str, Setting], list[tuple[str, Cell, float, float]]]:
    """Settings by scenario and policy; and all that was tried: policy, cell, USD, p95."""
    tries = {
        f"headline {policy}": [
            Cell("headline", policy, SEED, smaller, (), settings)
            for settings in grid(policy, quick=quick)
        ]
        for policy in AUTOSCALED
    }
    shares = SIZE_SHARES[2:3] if quick else SIZE_SHARES
    for policy in ("best-fit", "best-fit-batched"):
        tries[f"fixed-fleet {policy}"] = [
            Cell("fixed-fleet", policy, SEED, smaller, (), (("size_share", share),))
            for share in shares
        ]
    outcomes = run_all([cell for cells in tries.values() for cell in cells], folder)
    found: dict[str, Setting] = {}
    told = []
    for name, cells in tries.items():
        results = [(cell, usd(outcomes.of(cell)), p95(outcomes.of(cell))) for cell in cells]
        told += [(name, *result) for result in results]
        found[name] = best(results)
    return found | _alike(found), told


def grid(policy: str, *, quick: bool) -> list[Setting]:
    """All settings of an autoscaled policy that are tried; in a hurry a single one."""
    pools: tuple[Setting, ...] = ((),)
    if policy in POOLED:
        pools = ((("own_pools", False),), (("own_pools", True),))
    found = [
        (("target_s", target_s), ("idle_s", idle_s), *own)
        for target_s in TARGETS_S
        for idle_s in IDLE_S
        for own in pools
    ]
    return found[len(found) // 2 :][:1] if quick else found


def best(results: list[tuple[Cell, float, float]]) -> Setting:
    """The cheapest one, as ours is meant to be cheap too; of equal ones the quickest."""
    return min(results, key=lambda result: (result[1], result[2]))[0].settings


def _alike(found: Mapping[str, Setting]) -> dict[str, Setting]:
    same = {f"headline {name}": found[f"headline {other}"] for name, other in LIKE.items()}
    for name in ("best-fit", "best-fit-batched"):
        autoscaled = {**found, **same}
        same[f"headline {name}"] = autoscaled[f"headline {name}"] + found[f"fixed-fleet {name}"]
    same["fixed-fleet best-fit-as-is"] = found["fixed-fleet best-fit"]
    return same
