"""What a run may take: durations as people write them, a budget, an objective."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

from flowmesh.spec.messages import shown

Objective = Literal["balanced", "cost", "latency", "energy"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
DEADLINE_LIMIT_S = 366 * 86_400
LINGER_LIMIT_S = 3_600
BUDGET_LIMIT_USD = 1e9

_UNITS_MS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|min|h|d)"
_PATTERN = rf"^({_PART})+$"


def duration_ms(text: Any) -> int:
    """Milliseconds of `90s`, `30min` or `1h30min`. Raises ValueError, in the user's words."""
    if not isinstance(text, str) or not re.fullmatch(_PATTERN, text):
        raise ValueError(
            f"expected a duration with its unit (ms, s, min, h or d), as 90s, 30min or 2h, "
            f"found {shown(text)}"
        )
    parts = re.findall(_PART, text)
    return round(sum(float(number) * _UNITS_MS[unit] for number, unit in parts))


def _deadline(text: Any) -> str:
    if not 0 < duration_ms(text) <= DEADLINE_LIMIT_S * 1_000:
        raise ValueError(f"a deadline is more than 0s and at most 366d, found {shown(text)}")
    return str(text)


def _linger(text: Any) -> str:
    if duration_ms(text) > LINGER_LIMIT_S * 1_000:
        raise ValueError(f"a task lingers for at most 1h, found {shown(text)}")
    return str(text)


_DURATION = WithJsonSchema({"type": "string", "pattern": _PATTERN, "examples": ["90s", "2h"]})
#: A duration after the submission of a run.
Deadline = Annotated[str, BeforeValidator(_deadline), _DURATION]
Linger = Annotated[str, BeforeValidator(_linger), _DURATION]
BudgetUsd = Annotated[float, Field(gt=0, le=BUDGET_LIMIT_USD, strict=True, allow_inf_nan=False)]
