"""From a document and a catalog to a checked graph; all problems are found and told together.

Steps are checked in the order of their edges, so that each knows the columns of what it
reads. A step with a problem has unknown outputs: those after it are checked for all else.
"""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path, Positions
from flowmesh.spec.gates import Gate
from flowmesh.spec.gating import Gating
from flowmesh.spec.limits import duration_ms
from flowmesh.spec.loops import OUTSIDE, Scope, count_of, instances_in, loops_of
from flowmesh.spec.nodes import (
    ERRORS_PORT,
    SUMMARY_PORT,
    Graph,
    LastOf,
    Sources,
    StepNode,
    StepOutput,
)
from flowmesh.spec.operator import Columns, Operator, ParamError
from flowmesh.spec.outputs import Outputs
from flowmesh.spec.parameters import Instance, PlainValues, Unresolved, instances, resolve, validate
from flowmesh.spec.parameters import refusal as param_problem
from flowmesh.spec.references import BadReference, Reference, parse, texts, whole
from flowmesh.spec.shapes import Shapes
from flowmesh.spec.wiring import Wiring, normal_kind
from flowmesh.spec.workflow import STEPS_LIMIT, LoopStep, Step, TableInput, Workflow

__all__ = ["Graph", "StepNode", "build"]


def build(
    workflow: Workflow,
    positions: Positions,
    catalog: Mapping[str, Operator],
    parameters: Mapping[str, Any],
    input_columns: Mapping[str, Columns],
) -> Graph:
    """Check a workflow against the operators there are.

    Args:
        parameters: values given for plain inputs.
        input_columns: of those table inputs whose columns are known.

    Raises:
        SpecError: with every problem found, in the order of the document.
    """
    return _Builder(workflow, positions, catalog, parameters, input_columns).build()


class _Builder:
    def __init__(
        self,
        workflow: Workflow,
        positions: Positions,
        catalog: Mapping[str, Operator],
        parameters: Mapping[str, Any],
        input_columns: Mapping[str, Columns],
    ) -> None:
        self.workflow = workflow
        self.positions = positions
        self.catalog = catalog
        self.input_columns = input_columns
        self.problems: list[Problem] = []
        self.told: dict[tuple[str, str], int] = {}
        self.round = 0  #: of the step that is being looked at
        self.sound = True  #: whether nothing has been found wrong with it
        self.nodes: dict[str, StepNode] = {}
        self.values = resolve(workflow, parameters, positions, self.problems)
        self.rounds = self._rounds()
        self.outputs = Outputs(workflow, self._all_instances(), self.nodes, self.rounds)
        self.wiring = Wiring(workflow, self.outputs, input_columns, self._plain(OUTSIDE))
        self.shapes = Shapes(self.wiring, self._report)
        self.gating = Gating(workflow, self.outputs, self._report)
        self.gates: dict[str, tuple[Gate, ...]] = {}
        self.upstream: dict[str, tuple[str, ...]] = {}

    def build(self) -> Graph:
        self._check_input_columns()
        for name, instance in self._in_order():
            self.round = instance.scope.round
            if node := self._node(instance):
                self.nodes[name] = node
        self.round = 0
        self.gating.check_values()
        for name in self.rounds:
            for place, message in self.wiring.faults_of_loop(name):
                self._report(message, "steps", name, "loop", *place)
        outputs = dict(self._outputs())
        if self.problems:
            distinct = dict.fromkeys(self.problems)  # instances of a matrix share their faults
            raise SpecError(*sorted(distinct, key=lambda one: (one.line, one.column)))
        return Graph(
            workflow=self.workflow,
            order=tuple(self.nodes),
            steps=self.nodes,
            outputs=outputs,
            models={**self.workflow.models, **self.wiring.named_models},
            files=tuple(self.wiring.files),
            parameters=self.values,
        )

    def _report(self, message: str, *path: str) -> None:
        self._add(self.positions.problem(message, *path))

    def _add(self, *problems: Problem) -> None:
        """Tell of problems, but only once of those that differ by the round's number."""
        self.sound = self.sound and not problems
        for problem in problems:
            key = (problem.path, re.sub(r"\d+", "0", problem.message))
            if self.told.setdefault(key, self.round) == self.round:
                self.problems.append(problem)

    def _plain(self, scope: Scope) -> PlainValues:
        return PlainValues(self.workflow, self.values, {}, scope=scope)

    def _rounds(self) -> dict[str, list[Scope]]:
        """The rounds of every loop; two, to find what else is wrong, where that is not known."""
        found: dict[str, list[Scope]] = {}
        for name, step in loops_of(self.workflow).items():
            count = 2
            try:
                count = count_of(step.loop, self._plain(OUTSIDE))
            except BadReference as error:
                self._report(str(error), "steps", name, "loop", "rounds")
            except Unresolved:
                pass
            found[name] = [Scope(name, number, step.loop) for number in range(1, count + 1)]
        return found

    def _all_instances(self) -> dict[str, list[Instance]]:
        rounds = self.rounds
        total = sum(
            instances_in(step, len(rounds.get(name, ())))
            for name, step in self.workflow.steps.items()
        )
        if total > STEPS_LIMIT:
            message = (
                f"{total} steps after matrices are expanded and loops unrolled; "
                f"the limit is {STEPS_LIMIT}"
            )
            raise SpecError(*self.problems, self.positions.problem(message, "steps"))
        found: dict[str, list[Instance]] = {}
        for base, step in self.workflow.steps.items():
            places = rounds.get(base, [OUTSIDE])
            steps = step.loop.steps if isinstance(step, LoopStep) else {base: step}
            for scope in places:
                for name, one in steps.items():
                    found[scope.full(name)] = self._instances(name, one, scope)
        return found

    def _instances(self, name: str, step: Step, scope: Scope) -> list[Instance]:
        self.round = scope.round
        try:
            return list(instances(name, step, self._plain(scope)))
        except BadReference as error:
            self._report(str(error), *scope.path(name), "matrix")
        except Unresolved:
            pass
        return []

    def _check_input_columns(self) -> None:
        for name, declared in self.workflow.inputs.items():
            columns = self.input_columns.get(name)
            if not isinstance(declared, TableInput) or columns is None:
                continue
            for column in declared.columns or ():
                if column not in columns:
                    message = f"the table has no column {column!r}{nearest(column, columns)}"
                    self._report(message, "inputs", name, "columns")

    def _in_order(self) -> list[tuple[str, Instance]]:
        """Instances in the order of the document, but each after what it needs.

        In the order of the document alone if there is a cycle.
        """
        by_name = {one.name: one for many in self.outputs.instances.values() for one in many}
        for name, instance in by_name.items():
            self.round = instance.scope.round
            self.gates[name] = self.gating.of(instance)
            self.upstream[name] = tuple(dict.fromkeys(self._needed(instance)))
        places = {name: place for place, name in enumerate(by_name)}
        sorter = TopologicalSorter(self.upstream)
        order: list[str] = []
        ready: list[tuple[int, str]] = []
        try:
            sorter.prepare()
            while sorter.is_active():
                for name in sorter.get_ready():
                    heappush(ready, (places[name], name))
                order.append(heappop(ready)[1])
                sorter.done(order[-1])
        except CycleError as error:
            cycle = [by_name[name] for name in error.args[1]]
            start = min(range(len(cycle) - 1), key=lambda n: self._line(cycle[n].path))
            turned = [*cycle[start:-1], *cycle[:start], cycle[start]]
            words = " -> ".join(one.base for one in turned)
            self._report(f"the steps form a cycle: {words}", *turned[0].path)
            order = list(by_name)
        return [(name, by_name[name]) for name in order]

    def _line(self, path: Path) -> int:
        return self.positions.problem("", *path).line

    def _needed(self, instance: Instance) -> Iterator[str]:
        """Names of the instances that this one needs, as far as they can be read."""
        op = self.catalog.get(instance.step.op)
        for port in op.inputs if op else ():
            for _, text in texts(instance.step.settings.get(port)):
                try:
                    reference = whole(text)
                except BadReference:
                    continue  # reported when the port is wired
                if reference and reference.kind in ("steps", "loop"):
                    yield from self.outputs.needed(reference, instance.scope)
        for gate in self.gates[instance.name]:
            for members in gate.steps.values():
                yield from members

    def _node(self, instance: Instance) -> StepNode | None:
        """The checked step, or None with its problems reported."""
        self.sound = True
        step, path = instance.step, instance.path
        if (op := self.catalog.get(step.op)) is None:
            message = f"unknown operator {step.op!r}{nearest(step.op, self.catalog)}"
            self._report(message, *path, "op")
            return None
        written = {key: value for key, value in step.settings.items() if key not in op.inputs}
        ports = tuple(op.inputs)
        plain = PlainValues(self.workflow, self.values, instance.matrix, ports, instance.scope)
        params, problems = validate(op, written, plain, path, self.positions)
        self._add(*problems)
        inputs, wired = self._inputs(op, instance, plain)
        self._check_settings(op, params, instance)
        if params is None:
            return None
        try:
            if wired:
                op.check(params, inputs.keys())
            columns = self.shapes.columns(op, params, inputs, instance, wired=wired)
            outputs = _kinds_of_outputs(op, params, step)
        except ParamError as error:
            self._add(param_problem(error, path, self.positions))
            return None
        if not self.sound:
            return None
        return StepNode(
            name=instance.name,
            path=path,
            op=op,
            params=params,
            inputs=inputs,
            upstream=self.upstream[instance.name],
            outputs=outputs,
            columns=columns,
            matrix=instance.matrix,
            gates=self.gates[instance.name],
            on_error=step.on_error,
            share=step.share or self.workflow.share,
            reuse=step.reuse,
            numerics=step.numerics,
            memory_bytes=round(step.needs.memory_gb * 1e9) if step.needs else 0,
            linger_ms=duration_ms(step.linger),
            line=self.positions.problem("", *path).line,
        )

    def _check_settings(self, op: Operator, params: Any, instance: Instance) -> None:
        step, path = instance.step, instance.path
        if op.grain == "whole" and step.on_error != "fail":
            message = f"{step.on_error!r} is about rows, and {op.name} works on whole tables"
            self._report(message, *path, "on_error")
        if step.numerics == "exact" and params is not None and not op.exact(params):
            message = f"{op.name} with {op.engine(params)} gives results that vary with the batch"
            self._report(f"{message}; take dtype: float32", *path, "numerics")

    def _inputs(
        self, op: Operator, instance: Instance, plain: PlainValues
    ) -> tuple[dict[str, Sources], bool]:
        """The sources of each port that is bound, and whether all are known."""
        inputs: dict[str, Sources] = {}
        wired = True
        for port, declared in op.inputs.items():
            value = instance.step.settings.get(port)
            if value is None:
                if declared.required:
                    message = f"port {port!r} of {op.name} is missing: {declared.doc}"
                    self._report(message, *instance.path)
                    wired = False
                continue
            sources, faults = self.wiring.port(port, declared, value, plain)
            for place, message in faults:
                self._report(message, *instance.path, port, *place)
            wired = wired and sources is not None
            if sources is not None and sources not in ([], {}):
                inputs[port] = sources
        return inputs, wired

    def _outputs(self) -> Iterator[tuple[str, StepOutput | LastOf]]:
        for name, text in self.workflow.outputs.items():
            try:
                pieces = parse(text)
                reference = pieces[0] if len(pieces) == 1 else None
                if not isinstance(reference, Reference) or reference.kind != "steps":
                    raise BadReference("an output is a step's: ${steps.NAME} or ${steps.NAME.PORT}")
                found = self.outputs.of(reference)
                if self.outputs.is_collected(reference):
                    raise BadReference(
                        f"{reference} is the list of what every round made; "
                        f"join them with a `concat` step"
                    )
                if len(found) > 1:
                    raise BadReference(
                        f"{reference} has {len(found)} instances; join them with a `concat` step"
                    )
            except BadReference as error:
                self._report(str(error), "outputs", name)
            except Unresolved:
                continue
            else:
                yield name, found[0]


def _kinds_of_outputs(op: Operator, params: Any, step: Step) -> dict[str, str]:
    """By output port. Raises ParamError."""
    outputs = {port: normal_kind(kind) for port, kind in op.outputs(params).items()}
    if op.aggregate is not None:
        outputs[SUMMARY_PORT] = "table"
    if step.on_error == "quarantine":
        outputs[ERRORS_PORT] = "table"
    return outputs
