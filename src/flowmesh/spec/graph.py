"""From a document and a catalog to a checked graph; all problems are found and told together.

Steps are checked in the order of their edges, so that each knows the columns of what it
reads. A step with a problem has unknown outputs: those after it are checked for all else.
"""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.spec import conditions
from flowmesh.spec.document import Positions
from flowmesh.spec.nodes import (
    ERROR_COLUMN,
    ERRORS_PORT,
    Graph,
    InputFile,
    InputTable,
    LocalFile,
    ModelRef,
    Source,
    Sources,
    StepNode,
    StepOutput,
    facts,
    remaining,
    sources_of,
)
from flowmesh.spec.operator import Columns, Operator, ParamError
from flowmesh.spec.parameters import Instance, PlainValues, Unresolved, instances, resolve, validate
from flowmesh.spec.parameters import refusal as param_problem
from flowmesh.spec.references import BadReference, Reference, parse, texts, whole
from flowmesh.spec.templates import columns_named
from flowmesh.spec.wiring import Wiring, normal_kind
from flowmesh.spec.workflow import STEPS_LIMIT, PlainInput, TableInput, Workflow

__all__ = [
    "ERRORS_PORT",
    "ERROR_COLUMN",
    "Graph",
    "InputFile",
    "InputTable",
    "LocalFile",
    "ModelRef",
    "Source",
    "Sources",
    "StepNode",
    "StepOutput",
    "build",
    "facts",
    "remaining",
    "sources_of",
]


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
        self.nodes: dict[str, StepNode] = {}
        self.needs: dict[str, tuple[str, ...]] = {}
        self.values = resolve(workflow, parameters, positions, self.problems)
        self.instances = self._all_instances()
        self.wiring = Wiring(workflow, self.instances, self.nodes, input_columns)

    def build(self) -> Graph:
        self._check_input_columns()
        for name, instance in self._in_order():
            if node := self._node(instance):
                self.nodes[name] = node
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
        self.problems.append(self.positions.problem(message, *path))

    def _all_instances(self) -> dict[str, list[Instance]]:
        found: dict[str, list[Instance]] = {}
        for base, step in self.workflow.steps.items():
            plain = PlainValues(self.workflow, self.values, {})
            found[base] = []
            try:
                found[base] = list(instances(base, step, plain))
            except BadReference as error:
                self._report(str(error), "steps", base, "matrix")
            except Unresolved:
                continue
        if (total := sum(map(len, found.values()))) > STEPS_LIMIT:
            message = f"{total} steps after matrices are expanded; the limit is {STEPS_LIMIT}"
            raise SpecError(*self.problems, self.positions.problem(message, "steps"))
        return found

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
        """Instances, each after what it needs; in document order if there is a cycle."""
        by_name = {one.name: one for many in self.instances.values() for one in many}
        self.needs = {name: self._needs(instance) for name, instance in by_name.items()}
        try:
            order = list(TopologicalSorter(self.needs).static_order())
        except CycleError as error:
            cycle = [by_name[name].base for name in error.args[1]]
            start = min(range(len(cycle) - 1), key=lambda n: self._line(cycle[n]))
            turned = [*cycle[start:-1], *cycle[:start], cycle[start]]
            self._report(f"the steps form a cycle: {' -> '.join(turned)}", "steps", turned[0])
            order = list(by_name)
        return [(name, by_name[name]) for name in order]

    def _line(self, base: str) -> int:
        return self.positions.problem("", "steps", base).line

    def _needs(self, instance: Instance) -> tuple[str, ...]:
        """Names of the instances that this one needs, as far as they can be read."""
        bases: list[str] = []
        op = self.catalog.get(instance.step.op)
        for port in op.inputs if op else ():
            for _, text in texts(instance.step.settings.get(port)):
                try:
                    reference = whole(text)
                except BadReference:
                    continue  # reported when the port is wired
                if reference and reference.kind == "steps":
                    bases.append(reference.name)
        if instance.step.when is not None:
            try:
                bases += conditions.check(instance.step.when, self._known(instance))
            except ValueError as error:
                self._report(str(error), *instance.path, "when")
        needed = (one.name for base in bases for one in self.instances.get(base, ()))
        return tuple(dict.fromkeys(needed))

    def _known(self, instance: Instance) -> conditions.Known:
        inputs = self.workflow.inputs.items()
        plain = [name for name, declared in inputs if isinstance(declared, PlainInput)]
        return conditions.Known(plain, instance.matrix, self.instances)

    def _node(self, instance: Instance) -> StepNode | None:
        """The checked step, or None with its problems reported."""
        before = len(self.problems)
        step, path = instance.step, instance.path
        if (op := self.catalog.get(step.op)) is None:
            message = f"unknown operator {step.op!r}{nearest(step.op, self.catalog)}"
            self._report(message, *path, "op")
            return None
        written = {key: value for key, value in step.settings.items() if key not in op.inputs}
        plain = PlainValues(self.workflow, self.values, instance.matrix, tuple(op.inputs))
        params, problems = validate(op, written, plain, path, self.positions)
        self.problems += problems
        inputs = self._inputs(op, instance, plain)
        if op.grain == "whole" and step.on_error != "fail":
            message = f"{step.on_error!r} is about rows, and {op.name} works on whole tables"
            self._report(message, *path, "on_error")
        if params is None:
            return None
        if step.numerics == "exact" and not op.exact(params):
            message = f"{op.name} with {op.engine(params)} gives results that vary with the batch"
            self._report(f"{message}; take dtype: float32", *path, "numerics")
        try:
            columns = self._columns(op, params, inputs, instance)
            outputs = {port: normal_kind(kind) for port, kind in op.outputs(params).items()}
        except ParamError as error:
            self.problems.append(param_problem(error, path, self.positions))
            return None
        if len(self.problems) > before:
            return None
        if step.on_error == "quarantine":
            outputs[ERRORS_PORT] = "table"
        return StepNode(
            name=instance.name,
            base=instance.base,
            op=op,
            params=params,
            inputs=inputs,
            upstream=self.needs[instance.name],
            outputs=outputs,
            columns=columns,
            matrix=instance.matrix,
            when=step.when,
            on_error=step.on_error,
            share=step.share or self.workflow.share,
            reuse=step.reuse,
            numerics=step.numerics,
            line=self.positions.problem("", *path).line,
        )

    def _inputs(self, op: Operator, instance: Instance, plain: PlainValues) -> dict[str, Sources]:
        inputs: dict[str, Sources] = {}
        for port, declared in op.inputs.items():
            value = instance.step.settings.get(port)
            if value is None:
                if declared.required:
                    message = f"port {port!r} of {op.name} is missing: {declared.doc}"
                    self._report(message, *instance.path)
                continue
            sources, faults = self.wiring.port(port, declared, value, plain)
            for place, message in faults:
                self._report(message, *instance.path, port, *place)
            if sources is not None:
                inputs[port] = sources
        return inputs

    def _columns(
        self, op: Operator, params: Any, inputs: Mapping[str, Sources], instance: Instance
    ) -> dict[str, Columns]:
        """Of each output port that is a table. Raises ParamError."""
        if op.grain == "whole":
            return self._whole_columns(op, params, inputs, instance)
        base: Columns = self.wiring.columns(inputs["rows"]) if "rows" in inputs else None
        adds = op.adds(params)
        self._check_row(op, params, base, instance)
        if base is None:
            return {"rows": None, **({ERRORS_PORT: None} if self._quarantines(instance) else {})}
        found: dict[str, Columns] = {"rows": None if adds is None else (*base, *adds)}
        for column in adds or ():
            if column in base:
                into = "; give another name with `into`" if _has_into(op) else ""
                message = f"the rows already have a column {column!r}, which {op.name} adds{into}"
                where = ("into",) if "into" in instance.step.settings else ()
                self._report(message, *instance.path, *where)
        if self._quarantines(instance):
            if ERROR_COLUMN in base:
                message = f"the rows already have a column {ERROR_COLUMN!r}, which quarantine adds"
                self._report(message, *instance.path, "on_error")
            found[ERRORS_PORT] = (*base, ERROR_COLUMN)
        return found

    def _whole_columns(
        self, op: Operator, params: Any, inputs: Mapping[str, Sources], instance: Instance
    ) -> dict[str, Columns]:
        tables = {
            port: self.wiring.columns(sources)
            for port, sources in inputs.items()
            if op.inputs[port].kind == "table"
        }
        # What an operator says about half of its inputs would be wrong.
        wired = all(
            port in inputs or (not declared.required and instance.step.settings.get(port) is None)
            for port, declared in op.inputs.items()
        )
        known = op.columns(params, tables) if wired else {}
        kinds = op.outputs(params)
        return {port: known.get(port) for port in kinds if kinds[port] == "table"}

    def _quarantines(self, instance: Instance) -> bool:
        return instance.step.on_error == "quarantine"

    def _check_row(self, op: Operator, params: Any, base: Columns, instance: Instance) -> None:
        """Templates can be read, and name columns that the rows have."""
        plain = params.model_dump(mode="json", include=set(op.templated))
        for place, text in texts(plain):
            try:
                named = columns_named(text)
            except ValueError as error:
                self._report(str(error), *instance.path, *place)
                continue
            for column in sorted(named - set(base or named)):
                message = f"the template names {column!r}, a column that the rows do not have"
                self._report(message + nearest(column, base or ()), *instance.path, *place)
        for column in op.sees(params) or ():
            if base is not None and column not in base:
                message = f"{op.name} reads column {column!r}, which the rows do not have"
                self._report(message + nearest(column, base), *instance.path)

    def _outputs(self) -> Iterator[tuple[str, StepOutput]]:
        for name, text in self.workflow.outputs.items():
            try:
                pieces = parse(text)
                reference = pieces[0] if len(pieces) == 1 else None
                if not isinstance(reference, Reference) or reference.kind != "steps":
                    raise BadReference("an output is a step's: ${steps.NAME} or ${steps.NAME.PORT}")
                found = self.wiring.step_outputs(reference)
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


def _has_into(op: Operator) -> bool:
    return "into" in op.params.model_fields
