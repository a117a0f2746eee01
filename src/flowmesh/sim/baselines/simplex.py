"""The smallest linear program solver that a throughput matrix needs: dense, with NumPy."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
STEPS_LIMIT = 10_000
EPSILON = 1e-9


def maximise(gain: FloatArray, rows: FloatArray, limits: FloatArray) -> FloatArray:
    """The `x >= 0` that maximises `gain @ x` with `rows @ x <= limits`.

    Args:
        gain: `[variables]`, any unit.
        rows: `[constraints, variables]`.
        limits: `[constraints]`, none below 0, so that `x = 0` is allowed.

    Returns:
        `[variables]`.

    Raises:
        ValueError: if a limit is negative, or the gain has no bound.

    Source: the simplex method on a tableau, with Bland's rule against cycles.
    """
    if (limits < 0).any():
        raise ValueError(f"limits must not be negative, got {limits.min()}")
    count, width = rows.shape
    table = np.zeros((count + 1, width + count + 1))
    table[:count, :width] = rows
    table[:count, width:-1] = np.eye(count)
    table[:count, -1] = limits
    table[-1, :width] = -gain
    basis = np.arange(width, width + count)
    for _ in range(STEPS_LIMIT):
        entering = int(np.argmax(table[-1, :-1] < -EPSILON))
        if table[-1, entering] >= -EPSILON:
            break
        leaving = _leaving(table, basis, entering)
        table[leaving] /= table[leaving, entering]
        for row in range(count + 1):
            if row != leaving:
                table[row] -= table[row, entering] * table[leaving]
        basis[leaving] = entering
    x = np.zeros(width + count)
    x[basis] = table[:-1, -1]
    return x[:width]


def _leaving(table: FloatArray, basis: NDArray[np.int64], entering: int) -> int:
    column = table[:-1, entering]
    ratios = np.where(column > EPSILON, table[:-1, -1] / np.maximum(column, EPSILON), np.inf)
    least = ratios.min()
    if not np.isfinite(least):
        raise ValueError("the gain has no bound")
    ties = np.flatnonzero(ratios <= least + EPSILON)
    return int(ties[np.argmin(basis[ties])])
