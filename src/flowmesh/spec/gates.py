"""What decides whether a step is due: its own condition, and those of the loop it is in."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmesh.spec.conditions import Value, holds

#: (step, output port) to the first row of that table; None if it has none, or was skipped.
FirstRow = Callable[[str, str], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition that must hold for a step to be due.

    Attributes:
        steps: what the condition's names of steps stand for: steps of the graph, several
            where the name is that of a matrix step.
        values: what it reads of their outputs.
        matrix, round: what it sees of these; the round is 0 outside of loops.
        ends: of the `until` of a loop, the steps that it names in the round before; the
            step is due where the condition does *not* hold and one of these has run.
    """

    condition: str
    steps: Mapping[str, tuple[str, ...]]
    values: tuple[Value, ...] = ()
    matrix: Mapping[str, Any] = field(default_factory=dict)
    round: int = 0
    ends: tuple[str, ...] = ()


def due(
    gates: Iterable[Gate],
    parameters: Mapping[str, Any],
    counts: Mapping[str, int | None],
    first_row: FirstRow,
) -> bool:
    """Whether a step is due, once all that its gates name has settled.

    Args:
        counts: rows of the `rows` output of each settled step (0 if it has none), None for a
            skipped one.

    Raises:
        RenderError: the values do not fit the condition.
    """
    return all(_opens(gate, parameters, counts, first_row) for gate in gates)


def _opens(
    gate: Gate,
    parameters: Mapping[str, Any],
    counts: Mapping[str, int | None],
    first_row: FirstRow,
) -> bool:
    if gate.ends and all(counts[step] is None for step in gate.ends):
        return False
    return holds(gate.condition, facts(gate, parameters, counts, first_row)) != bool(gate.ends)


def facts(
    gate: Gate,
    parameters: Mapping[str, Any],
    counts: Mapping[str, int | None],
    first_row: FirstRow,
) -> dict[str, Any]:
    """What `conditions.holds` asks for.

    Of a matrix step, the condition sees the sum of the counts, and `skipped` only where
    every instance was.
    """
    steps: dict[str, dict[str, Any]] = {}
    for name, members in gate.steps.items():
        known = [counts[member] for member in members]
        steps[name] = {
            "count": sum(count or 0 for count in known),
            "skipped": all(count is None for count in known),
        }
    for value in gate.values:
        row = first_row(gate.steps[value.step][0], value.port) or {}
        steps[value.step].setdefault(value.port, {})[value.column] = row.get(value.column)
    return {
        "inputs": dict(parameters),
        "matrix": dict(gate.matrix),
        "loop": {"round": gate.round} if gate.round else {},
        "steps": steps,
    }
