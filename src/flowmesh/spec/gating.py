"""Conditions of one graph: their names become steps, and what they read is checked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmesh.base.nearest import nearest
from flowmesh.spec import conditions
from flowmesh.spec.document import Path
from flowmesh.spec.gates import Gate
from flowmesh.spec.loops import OUTSIDE, ROUND, Scope
from flowmesh.spec.outputs import Outputs
from flowmesh.spec.parameters import Instance
from flowmesh.spec.workflow import LoopStep, PlainInput, Workflow


@dataclass(slots=True)
class Gating:
    """Makes the gates of every step; `report` is told (message, *path) of what is wrong."""

    workflow: Workflow
    outputs: Outputs
    report: Callable[..., None]
    _made: list[tuple[Gate, Path]] = field(default_factory=list)
    _of_rounds: dict[tuple[str, int], tuple[Gate, ...]] = field(default_factory=dict)

    def of(self, instance: Instance) -> tuple[Gate, ...]:
        """The conditions that must hold for a step to be due; bad ones are reported."""
        place = instance.scope.name, instance.scope.round
        if place not in self._of_rounds:
            self._of_rounds[place] = tuple(self._of_loop(instance.scope))
        gates = [*self._of_rounds[place]]
        if (when := instance.step.when) is not None:
            path = (*instance.path, "when")
            gates += self._gate(when, path, instance.scope, instance.matrix)
        return tuple(gates)

    def _of_loop(self, scope: Scope) -> Iterator[Gate]:
        """The loop's own condition, and its `until` after the round before."""
        if scope.loop is None:
            return
        step = self.workflow.steps[scope.name]
        assert isinstance(step, LoopStep)
        if step.when is not None:
            yield from self._gate(step.when, ("steps", scope.name, "when"), OUTSIDE, {})
        if scope.loop.until is not None:
            *_, before = [scope, *scope.before()]
            gates = list(self._until(scope.loop.until, before))
            if scope.round > 1:  # before the first, there is nothing to ask about
                yield from gates

    def _until(self, condition: str, scope: Scope) -> Iterator[Gate]:
        path = ("steps", scope.name, "loop", "until")
        for gate in self._gate(condition, path, scope, {}):
            own = [name for name in gate.steps if scope.holds(name)]
            if not own:
                self.report(
                    "`until` must name a step of the loop: it is over what a round did", *path
                )
            ends = tuple(member for name in own for member in gate.steps[name])
            yield Gate(gate.condition, gate.steps, gate.values, round=scope.round, ends=ends)

    def _gate(
        self, condition: str, path: Path, scope: Scope, matrix: Mapping[str, Any]
    ) -> list[Gate]:
        """A gate, or none if the condition is refused."""
        try:
            asked = conditions.check(condition, self._known(scope, matrix))
        except ValueError as error:
            self.report(str(error), *path)
            return []
        instances = self.outputs.instances
        steps = {
            name: tuple(one.name for one in instances[scope.full(name)]) for name in asked.steps
        }
        gate = Gate(condition, steps, asked.values, matrix, scope.round)
        self._made.append((gate, path))
        return [gate]

    def _known(self, scope: Scope, matrix: Mapping[str, Any]) -> conditions.Known:
        inputs = self.workflow.inputs.items()
        return conditions.Known(
            inputs=[name for name, declared in inputs if isinstance(declared, PlainInput)],
            matrix=matrix,
            steps=[
                name
                for name in self.outputs.names(scope)
                if scope.holds(name) or name not in self.outputs.rounds
            ],
            loop=(ROUND,) if scope.loop else (),
            hidden=self._hidden(),
        )

    def _hidden(self) -> dict[str, str]:
        hidden: dict[str, str] = {}
        for loop, (first, *_) in self.outputs.rounds.items():
            hidden[loop] = "a loop; have a step after it look at what it carries"
            for name in first.loop.steps if first.loop else ():
                hidden[name] = f"a step within the loop {loop!r}"
        return hidden

    def check_values(self) -> None:
        """Report outputs that conditions read and that are not there, as far as is known."""
        for gate, path in self._made:
            for value in gate.values:
                if message := self._fault(value, gate.steps[value.step]):
                    self.report(f"{value}: {message}", *path)

    def _fault(self, value: conditions.Value, members: tuple[str, ...]) -> str:
        if len(members) > 1:
            return f"{value.step!r} has {len(members)} instances; a condition reads values of one"
        node = self.outputs.nodes.get(members[0]) if members else None
        if node is None:
            return ""
        if value.port not in node.outputs:
            return f"{value.step!r} has no output {value.port!r}{nearest(value.port, node.outputs)}"
        if (kind := node.outputs[value.port]) != "table":
            article = "an" if kind == "adapter" else "a"
            return f"this output is {article} {kind}; a condition reads tables"
        columns = node.columns.get(value.port)
        if columns is not None and value.column not in columns:
            return f"this table has no column {value.column!r}{nearest(value.column, columns)}"
        return ""
