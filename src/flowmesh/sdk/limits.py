"""What one submission may take, in place of what its workflow says."""

from dataclasses import dataclass
from typing import Any

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.limits import BUDGET_LIMIT_USD, DEADLINE_LIMIT_S, OBJECTIVES, duration_ms


@dataclass(frozen=True, slots=True)
class Limits:
    """What is not given is as the workflow says.

    Attributes:
        deadline: how long after its submission the run should have settled, as `90s` or `2h`.
        budget_usd: the most that it may spend; it is stopped before it spends more.
        objective: `balanced`, `cost`, `latency` or `energy`.
    """

    deadline: str | None = None
    budget_usd: float | None = None
    objective: str | None = None

    def fields(self) -> dict[str, Any]:
        """As `wire.CreateRun` has them. Raises SpecError."""
        problems = []
        seconds = None
        if self.deadline is not None:
            try:
                seconds = duration_ms(self.deadline) / 1000
            except ValueError as error:
                problems.append(Problem(str(error), path="deadline"))
            else:
                if not 0 < seconds <= DEADLINE_LIMIT_S:
                    message = f"a deadline is more than 0s and at most 366d, found {self.deadline}"
                    problems.append(Problem(message, path="deadline"))
        if self.budget_usd is not None and not 0 < self.budget_usd <= BUDGET_LIMIT_USD:
            message = f"a budget is more than 0 dollars and at most 1e9, found {self.budget_usd}"
            problems.append(Problem(message, path="budget_usd"))
        if self.objective is not None and self.objective not in OBJECTIVES:
            message = f"unknown objective {self.objective!r}{nearest(self.objective, OBJECTIVES)}"
            problems.append(Problem(message, path="objective"))
        if problems:
            raise SpecError(*problems)
        given = {"budget_usd": self.budget_usd, "objective": self.objective}
        return {"deadline_s": seconds, **given}
