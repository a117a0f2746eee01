"""When a long task should leave its next checkpoint."""

import math
import time

#: Of a first checkpoint, until one was measured.
_GUESSED_COST_S = 1.0
_S_PER_HOUR = 3600.0


def interval_s(cost_s: float, interruptions_per_hour: float) -> float:
    """Seconds between checkpoints that waste the least time on them and on work done twice.

    Young's rule: sqrt(2 * cost / rate). J. W. Young, A first order approximation to the
    optimum checkpoint interval, CACM 17 (9), 1974.
    """
    return math.sqrt(2 * cost_s * _S_PER_HOUR / interruptions_per_hour)


class Pace:
    """Between two checkpoints: so many steps, or without a number the interval by what one costs.

    Attributes:
        saved_step: the step of the last one that is whole.
    """

    def __init__(self, every_steps: int | None, interruptions_per_hour: float) -> None:
        self._every_steps = every_steps
        self._interruptions_per_hour = interruptions_per_hour
        self._cost_s = _GUESSED_COST_S
        self._since = time.monotonic()
        self.saved_step = 0

    def is_due(self, step: int) -> bool:
        if self._every_steps is not None:
            return step - self.saved_step >= self._every_steps
        limit_s = interval_s(self._cost_s, self._interruptions_per_hour)
        return time.monotonic() - self._since >= limit_s

    def took(self, began_s: float) -> None:
        """One was taken, or could not be kept, since `began_s` of the monotonic clock."""
        self._since = time.monotonic()
        self._cost_s = max(self._since - began_s, 1e-3)
