"""The policy: what to do next. Reads the state, changes nothing."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from flowmesh.base.ids import TaskId
from flowmesh.base.replacing import replace
from flowmesh.core import budgets, holding, options, placement, pool
from flowmesh.core.board import Board
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.estimate import Coefficients, coefficients
from flowmesh.core.fleet import Device, Offer, Worker
from flowmesh.core.placement import AVOID_MS
from flowmesh.core.scale import FleetLimits, Scaler
from flowmesh.core.state import State
from flowmesh.core.story import STORY_LIMIT, Explained
from flowmesh.core.utility import PRESETS, Knobs, Score, Weights

__all__ = ["AVOID_MS", "LEASE_MS", "Policy", "Utility", "score_of"]

#: A worker that is silent for so long is lost.
LEASE_MS = 15_000
#: The whole policy, and nothing to rent.
ALL_ON, NO_FLEET = Knobs(), FleetLimits()
#: When work that nobody may run now is looked at again.
AGAIN_MS = 1_000


class Policy(Protocol):
    """Chooses. It may keep an index of the state, by `State.touched`, and changes nothing else.

    A policy drives one plane only.
    """

    def decide(self, state: State) -> Decision | None:
        """The next decision, or None; asked again after each one was applied."""

    def wakes_ms(self, state: State) -> int | None:
        """When it should be asked again, if nothing happens before."""


class Utility:
    """The one policy of a deployment: the best batch by rate, but for those whose turn it is.

    Attributes:
        board: its index of the state.
        story: the last decisions, with what else could have been done.
    """

    def __init__(
        self,
        weights: Weights = PRESETS["balanced"],
        knobs: Knobs = ALL_ON,
        fleet: FleetLimits = NO_FLEET,
    ) -> None:
        self.weights = weights
        self.knobs = knobs
        self.board = Board(weights, knobs)
        self.story: deque[Explained] = deque(maxlen=STORY_LIMIT)
        self._watch = budgets.Watch()
        self._scaler = Scaler(fleet)

    def decide(self, state: State) -> Decision | None:
        """Money first, then what is here, then what could be rented or given back."""
        choice: Decision | None = self._watch.decide(state)
        if choice is None and state.idle and state.ready:
            choice = self._place(state)
        if choice is None:
            choice = self._scaler.decide(state, self.weights, self._predict)
            if choice is not None:
                self.story.append(Explained(choice))
        return choice

    def wakes_ms(self, state: State) -> int | None:
        wakes = (
            self._watch.wakes_ms(state),
            self.board.wakes_ms(state),
            self._scaler.wakes_ms(state),
        )
        return min((one for one in wakes if one is not None), default=None)

    def _place(self, state: State) -> GrantLease | None:
        board = self.board
        board.look(state)
        for cell in board.cells(state):
            hold = holding.better(state, board, cell)
            if hold is not None:
                board.wait(cell, hold.until_ms, hold.reason)
                continue
            found = placement.grant(state, board, cell)
            if found is None:
                board.wait(cell, state.now_ms + AGAIN_MS, "avoided or out of budget")
                continue
            choice, batch = found
            board.granted(state, cell, choice, batch)
            self.story.append(board.explained(state, cell, choice))
            return choice
        return None

    def _predict(self, state: State, batch_key: str, device: Device) -> Coefficients:
        """Estimates as the knobs have them."""
        known = coefficients(state, batch_key, device, learning=self.knobs.learning)
        wrong = options.misjudged(batch_key, device.kind, self.knobs)
        return replace(known, seconds=tuple(each * wrong for each in known.seconds))


def score_of(
    state: State, policy: Utility, worker: Worker | Offer, tasks: Sequence[TaskId]
) -> Score:
    """What these ready tasks, of one key of the pool, would be worth as one batch there now."""
    policy.board.look(state)
    row = policy.board.rows[pool.key_of(state.tasks[tasks[0]].spec)]
    batch = placement.batch_of(state, row, tasks)
    return placement.scored(state, policy.board, row, worker, batch)[0]
