"""Loops are unrolled: each round's steps are ordinary steps with names of their own.

The step `answers` of the loop `improve` is `improve[1].answers` in the first round. A scope
says what the names that a step uses stand for: within a round, `${steps.x}` is the step of
that round if there is one, and `${loop.x}` what the round before has carried on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path
from flowmesh.spec.messages import shown
from flowmesh.spec.references import BadReference, Lookup, Reference, substitute, whole
from flowmesh.spec.workflow import ROUNDS_LIMIT, Carry, Loop, LoopStep, Step, Workflow

#: The name under which a round's number is known: `${loop.round}`.
ROUND = "round"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a step stands: in a round (counted from 1) of a loop, or outside of all."""

    name: str = ""
    round: int = 0
    loop: Loop | None = None

    def holds(self, step: str) -> bool:
        """Whether a step is one of this round."""
        return self.loop is not None and step in self.loop.steps

    def full(self, step: str) -> str:
        """The name in the graph of what this place calls `step`."""
        return f"{self.name}[{self.round}].{step}" if self.holds(step) else step

    def path(self, step: str) -> Path:
        """Where the document has it."""
        inside = ("steps", self.name, "loop", "steps", step)
        return inside if self.holds(step) else ("steps", step)

    def carries(self, reference: Reference) -> Carry | None:
        """What `${loop.NAME}` is carried by; None for `${loop.round}`. Raises BadReference."""
        if self.loop is None:
            raise BadReference(f"{reference} has a meaning within a loop only")
        if reference.name == ROUND:
            return None
        if reference.name not in self.loop.carry:
            known = [*self.loop.carry, ROUND]
            raise BadReference(
                f"{reference} names nothing that the loop carries{nearest(reference.name, known)}"
            )
        return self.loop.carry[reference.name]

    def before(self) -> Iterator["Scope"]:
        """The rounds before this one, the first one first."""
        for number in range(1, self.round):
            yield Scope(self.name, number, self.loop)


OUTSIDE = Scope()


def loops_of(workflow: Workflow) -> dict[str, LoopStep]:
    return {name: step for name, step in workflow.steps.items() if isinstance(step, LoopStep)}


def count_of(loop: Loop, plain: Lookup) -> int:
    """How many rounds a loop has. Raises BadReference, and what `plain` raises."""
    count: Any = substitute(loop.rounds, plain)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= ROUNDS_LIMIT:
        raise BadReference(
            f"expected a whole number from 1 to {ROUNDS_LIMIT}, found {shown(count)}"
        )
    return count


def made_by_round(text: str, scope: Scope) -> Reference:
    """What a round hands on or adds to a collection. Raises BadReference."""
    reference = whole(text)
    if reference is not None and reference.kind == "steps" and scope.holds(reference.name):
        return reference
    assert scope.loop is not None
    guess = nearest(reference.name if reference else text, scope.loop.steps)
    raise BadReference(
        f"expected an output of a step of the loop, as ${{steps.NAME.PORT}}; found {shown(text)}"
        f"{guess}"
    )


def instances_in(step: Step | LoopStep, rounds: int) -> int:
    """How many steps of the graph a step of the document becomes."""
    if isinstance(step, LoopStep):
        return rounds * sum(instances_in(inner, 1) for inner in step.loop.steps.values())
    return math.prod(len(values) for values in (step.matrix or {}).values())
