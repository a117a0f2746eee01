"""What `${steps.x}` and `${steps.x.port}` mean at a place: outputs of steps, and of loops.

A loop's outputs are what it carries (the last that a round has made) and what it collects
(of every round). Its steps are named within it only.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path
from flowmesh.spec.loops import OUTSIDE, Scope, made_by_round
from flowmesh.spec.nodes import LastOf, StepNode, StepOutput
from flowmesh.spec.parameters import Instance, Unresolved
from flowmesh.spec.references import BadReference, Reference, whole
from flowmesh.spec.workflow import Loop, Workflow

Output = StepOutput | LastOf
#: A place within a value, and what is wrong there.
Fault = tuple[Path, str]


@dataclass(frozen=True, slots=True)
class Outputs:
    """`rounds` has the rounds of each loop; `nodes`, the steps that have been checked so far."""

    workflow: Workflow
    instances: Mapping[str, list[Instance]]
    nodes: Mapping[str, StepNode]
    rounds: Mapping[str, list[Scope]]

    def of(self, reference: Reference, scope: Scope = OUTSIDE) -> list[Output]:
        """Of each instance of a step, of a loop, or of each of its rounds.

        Raises BadReference; Unresolved if what it names is broken.
        """
        name = reference.name
        if scope.full(name) in self.instances:
            return [*self._of_instances(reference, scope)]
        if name in self.rounds and name != scope.name:
            return self._of_loop(reference)
        raise BadReference(self._no_step(reference, scope))

    def names(self, scope: Scope) -> list[str]:
        """The steps and loops that can be named at a place."""
        return [*self.workflow.steps, *(scope.loop.steps if scope.loop else ())]

    def needed(self, reference: Reference, scope: Scope) -> Iterator[str]:
        """The steps of the graph that a reference waits for, as far as it can be read."""
        name = reference.name
        if reference.kind == "loop":
            if scope.loop and name in scope.loop.carry:
                yield from self._needed_in(scope.loop.carry[name].start, [OUTSIDE])
                yield from self._needed_in(scope.loop.carry[name].next, scope.before())
        elif scope.full(name) in self.instances:
            yield from (one.name for one in self._instances(name, scope))
        elif name in self.rounds and name != scope.name:
            loop = self._loop(name)
            port = reference.port or next(iter([*loop.carry, *loop.collect]), "")
            text = loop.carry[port].next if port in loop.carry else loop.collect.get(port)
            yield from self._needed_in(text, self.rounds[name])

    def faults_of_loop(self, name: str) -> Iterator[Fault]:
        """What is wrong with what rounds hand on and collect, whether it is used or not."""
        first = self.rounds[name][0]
        loop = self._loop(name)
        made: dict[Path, str] = {
            ("carry", key, "next"): one.next for key, one in loop.carry.items()
        }
        made |= {("collect", key): text for key, text in loop.collect.items()}
        for place, text in made.items():
            try:
                found = self._of_instances(made_by_round(text, first), first)
                if len(found) > 1 and place[0] == "carry":
                    raise BadReference(
                        f"{text} has {len(found)} instances; join them with a `concat` step"
                    )
            except BadReference as error:
                yield place, str(error)
            except Unresolved:
                continue

    def in_rounds(
        self, text: str, rounds: Iterable[Scope], *, single: bool = False
    ) -> list[StepOutput]:
        """What each round makes. Raises Unresolved for what `faults_of_loop` tells about."""
        made: list[StepOutput] = []
        reference: Reference | None = None
        for scope in rounds:
            try:
                # Every round reads the text alike.
                reference = reference or made_by_round(text, scope)
                found = self._of_instances(reference, scope)
            except BadReference:
                raise Unresolved from None
            if single and len(found) > 1:
                raise Unresolved
            made += found
        return made

    def is_collected(self, reference: Reference | None, scope: Scope = OUTSIDE) -> bool:
        """Whether a reference means what all rounds of a loop have made."""
        if reference is None or reference.kind != "steps" or reference.name not in self.rounds:
            return False
        if scope.holds(reference.name):  # a step of the round may be called like a loop
            return False
        loop = self._loop(reference.name)
        return reference.port in loop.collect or not (reference.port or loop.carry)

    def _loop(self, name: str) -> Loop:
        loop = self.rounds[name][0].loop
        assert loop is not None
        return loop

    def _instances(self, name: str, scope: Scope) -> list[Instance]:
        return self.instances[scope.full(name)]

    def _needed_in(self, text: str | None, scopes: Iterable[Scope]) -> Iterator[str]:
        try:
            reference = whole(text)
        except BadReference:
            return  # reported where the loop is checked
        if reference is not None and reference.kind == "steps":
            for scope in scopes:
                yield from self.needed(reference, scope)

    def _of_instances(self, reference: Reference, scope: Scope) -> list[StepOutput]:
        found = [
            self._of_step(reference, one.name) for one in self._instances(reference.name, scope)
        ]
        if not found:
            raise Unresolved
        return found

    def _of_step(self, reference: Reference, step: str) -> StepOutput:
        if step not in self.nodes:
            raise Unresolved
        ports = self.nodes[step].outputs
        if reference.port:
            if reference.port not in ports:
                raise BadReference(
                    f"{reference} names no output of step {reference.name!r}"
                    f"{nearest(reference.port, ports)}"
                )
            return StepOutput(step, reference.port)
        if "rows" not in ports and len(ports) != 1:
            raise BadReference(f"{reference} has several outputs; name one of {', '.join(ports)}")
        return StepOutput(step, "rows" if "rows" in ports else next(iter(ports)))

    def _of_loop(self, reference: Reference) -> list[Output]:
        loop, rounds = self._loop(reference.name), self.rounds[reference.name]
        ports = [*loop.carry, *loop.collect]
        port = reference.port
        if not port:
            if len(ports) != 1:
                found = f"several outputs; name one of {', '.join(ports)}" if ports else "no output"
                raise BadReference(f"{reference} has {found}")
            port = ports[0]
        if port in loop.carry:
            made = self.in_rounds(loop.carry[port].next, rounds, single=True)
            return [made[0] if len(made) == 1 else LastOf(tuple(made))]
        if port in loop.collect:
            return [*self.in_rounds(loop.collect[port], rounds)]
        if port in loop.steps:
            raise BadReference(
                f"{reference} names a step within the loop: let the loop `carry` or `collect` "
                f"what it makes, and name that"
            )
        raise BadReference(
            f"{reference} names nothing that the loop carries or collects{nearest(port, ports)}"
        )

    def _no_step(self, reference: Reference, scope: Scope) -> str:
        name = reference.name
        if name == scope.name:
            return (
                f"{reference} is there when the loop has ended; "
                f"within it, ${{loop.NAME}} is what the round before carried on"
            )
        for loop, (first, *_) in self.rounds.items():
            if first.holds(name):
                return (
                    f"{name!r} is a step within the loop {loop!r}, done in every round: let the "
                    f"loop `carry` or `collect` what it makes, and write ${{steps.{loop}.NAME}}"
                )
        return f"{reference} names no step{nearest(name, self.names(scope))}"
