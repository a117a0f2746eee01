"""What tasks are worth to those who wait for them: importance, urgency, what they lead to.

All tasks of a step are alike in this; it is worked out by step, and kept while the step lasts.
"""

from dataclasses import dataclass
from math import inf

from flowmesh.base.ids import RunId, StepId
from flowmesh.core.records import Step
from flowmesh.core.state import State
from flowmesh.core.utility import importance

#: Runs whose chains are remembered beside those that are open.
SPARE_RUNS = 1_000


@dataclass(frozen=True, slots=True)
class StepWorth:
    """Of the tasks of one step.

    Attributes:
        importance: tenant weight times the factor of run priority.
        submitted_ms: of its run, for the age.
        rest_usd: reference cost of the rest of its run, as far as it comes one after another.
        deadline_ms: of its run; infinite for none.
        path_usd: of what comes after the step, for each task that it still waits for.
        objective: of its run.
        pending: its tasks that have not ended.
    """

    importance: float
    submitted_ms: int
    rest_usd: float
    deadline_ms: float
    path_usd: float
    objective: str
    pending: int


class Worths:
    """Learns what steps cost by their operator, and tells what tasks of a step are worth."""

    def __init__(self, *, path: bool) -> None:
        self._path = path
        self._chains: dict[RunId, dict[StepId, float]] = {}
        self._seen: dict[StepId, None] = {}
        #: By operator: reference USD of the tasks of its steps, and how many steps those were.
        self._cost: dict[str, tuple[float, int]] = {}

    def granted(self, step: Step, usd: float) -> None:
        """A lease has tasks of `step` that are worth `usd` of reference cost."""
        known, steps = self._cost.get(step.operator, (0.0, 0))
        steps += step.id not in self._seen
        self._seen[step.id] = None
        self._cost[step.operator] = known + usd, steps

    def forget(self, state: State) -> None:
        """Let go of runs and steps that have settled."""
        if len(self._chains) > 2 * len(state.runs) + SPARE_RUNS:
            self._chains = {run: c for run, c in self._chains.items() if run in state.runs}
        if len(self._seen) > 2 * len(state.steps) + SPARE_RUNS:
            self._seen = {step: None for step in self._seen if step in state.steps}

    def of(self, state: State, step_id: StepId, task_usd: float) -> StepWorth:
        """Of a step whose tasks cost about `task_usd` each."""
        step = state.steps[step_id]
        run = state.runs[step.run]
        tenant = state.tenants[run.tenant]
        later_usd = self._later_usd(state, step, task_usd) if self._path else 0.0
        pending = max(step.pending, 1)
        return StepWorth(
            importance=importance(tenant.weight, run.priority),
            submitted_ms=run.submitted_ms,
            rest_usd=pending * task_usd + later_usd,
            deadline_ms=run.deadline_ms or inf,
            path_usd=later_usd / pending,
            objective=run.objective,
            pending=pending,
        )

    def _later_usd(self, state: State, step: Step, task_usd: float) -> float:
        """Reference cost of the longest chain of steps that wait for this one."""
        chain = self._chains.get(step.run)
        if chain is None or step.id not in chain:
            chain = self._chains[step.run] = self._chain(state, step.run, task_usd)
        return chain[step.id]

    def _chain(self, state: State, run: RunId, default_usd: float) -> dict[StepId, float]:
        later: dict[StepId, float] = {}
        for step_id in reversed(state.runs[run].steps):
            waiting = state.dependents.get(step_id, ())
            each = (later[one] + self._step_usd(state.steps[one], default_usd) for one in waiting)
            later[step_id] = max(each, default=0.0)
        return later

    def _step_usd(self, step: Step, default_usd: float) -> float:
        usd, steps = self._cost.get(step.operator, (0.0, 0))
        return usd / steps if steps else default_usd
