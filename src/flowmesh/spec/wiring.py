"""What a step's port is bound to: references and names become sources of the right kind."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path
from flowmesh.spec.messages import shown
from flowmesh.spec.nodes import (
    InputFile,
    InputTable,
    LocalFile,
    ModelRef,
    Source,
    Sources,
    StepNode,
    StepOutput,
)
from flowmesh.spec.operator import Columns, Port
from flowmesh.spec.parameters import Instance, PlainValues, Unresolved
from flowmesh.spec.references import BadReference, Reference, substitute, whole
from flowmesh.spec.workflow import (
    REGISTERED_PATTERN,
    FileInput,
    ModelSource,
    PlainInput,
    TableInput,
    Workflow,
)

_EXPECTED = {
    "table": "a table: ${inputs.NAME} or ${steps.NAME}",
    "model": "a model: ${models.NAME}, ${steps.NAME.PORT} or the name of a registered one",
    "file": "a file: ${inputs.NAME}, ${steps.NAME.PORT} or a path",
}

#: A place within a port's value, and what is wrong there.
Fault = tuple[Path, str]


def normal_kind(kind: str) -> str:
    """Port and artifact kinds in one vocabulary: a model is a tree of files."""
    return "model" if kind == "tree" else kind


@dataclass(slots=True)
class Wiring:
    """Resolves ports of one graph; remembers the models and files that they name directly."""

    workflow: Workflow
    instances: Mapping[str, list[Instance]]
    nodes: Mapping[str, StepNode]
    input_columns: Mapping[str, Columns]
    named_models: dict[str, ModelSource] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)

    def port(
        self, name: str, declared: Port, value: Any, plain: PlainValues
    ) -> tuple[Sources | None, list[Fault]]:
        """The sources that a port's value names; None where they are not known."""
        match declared.arity:
            case "one":
                found, faults = self._entry(name, declared, value, (), plain)
                return (found[0] if found else None), faults
            case "list":
                return self._list(name, declared, value, plain)
            case "map":
                return self._map(name, declared, value, plain)

    def _list(
        self, name: str, declared: Port, value: Any, plain: PlainValues
    ) -> tuple[Sources | None, list[Fault]]:
        if not isinstance(value, list):
            alone, wrong = self._entry(name, declared, value, (), plain)
            return (None if alone is None else [*alone]), wrong
        if not value:
            return None, [((), f"port {name!r} holds nothing; it takes a list of references")]
        sources: list[Source] = []
        faults: list[Fault] = []
        known = True
        for n, entry in enumerate(value):
            found, wrong = self._entry(name, declared, entry, (str(n),), plain)
            known = known and found is not None
            sources += found or ()
            faults += wrong
        return (sources if known else None), faults

    def _map(
        self, name: str, declared: Port, value: Any, plain: PlainValues
    ) -> tuple[Sources | None, list[Fault]]:
        if not isinstance(value, dict) or not value:
            message = f"port {name!r} takes a mapping of names to references"
            return None, [((), f"{message}, found {shown(value)}")]
        sources: dict[str, Source] = {}
        faults: list[Fault] = []
        known = True
        for key, entry in value.items():
            found, wrong = self._entry(name, declared, entry, (key,), plain)
            known = known and found is not None
            sources.update((key, one) for one in found or ())
            faults += wrong
        return (sources if known else None), faults

    def _entry(
        self, name: str, declared: Port, entry: Any, place: Path, plain: PlainValues
    ) -> tuple[list[Source] | None, list[Fault]]:
        """One reference: one source, or in a list those of every instance of a matrix step."""
        try:
            found = self._sources(declared, entry, plain)
        except BadReference as error:
            return None, [(place, str(error))]
        except Unresolved:
            return None, []
        if len(found) > 1 and declared.arity != "list":
            message = f"{entry} has {len(found)} instances, and port {name!r} takes one here"
            return None, [(place, f"{message}; join them with a `concat` step")]
        return found, []

    def columns(self, sources: Sources) -> Any:
        """Columns in the shape of the sources: of one, a list or a dict of them."""
        match sources:
            case list():
                return [self.columns(one) for one in sources]
            case dict():
                return {name: self.columns(one) for name, one in sources.items()}
            case InputTable():
                return self.input_columns.get(sources.name)
            case StepOutput() if sources.step in self.nodes:
                return self.nodes[sources.step].columns.get(sources.port)
            case _:
                return None

    def step_outputs(self, reference: Reference) -> list[StepOutput]:
        """A step's output, of each instance. Raises BadReference; Unresolved if it is broken."""
        if reference.name not in self.instances:
            raise BadReference(
                f"{reference} names no step{nearest(reference.name, self.instances)}"
            )
        found = [self._output(reference, one.name) for one in self.instances[reference.name]]
        if not found:
            raise Unresolved
        return found

    def _output(self, reference: Reference, step: str) -> StepOutput:
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

    def _sources(self, declared: Port, value: Any, plain: PlainValues) -> list[Source]:
        expected = f"expected {_EXPECTED[declared.kind]}"
        if not isinstance(value, str):
            raise BadReference(f"{expected}, found {shown(value)}")
        reference = whole(value)
        if reference is None or self._is_plain(reference):
            text = substitute(value, plain)
            if declared.kind == "table" or not isinstance(text, str):
                guess = nearest(value, [*self.workflow.inputs, *self.workflow.steps])
                raise BadReference(f"{expected}, found {shown(value)}{guess}")
            return [self._named(declared.kind, text)]
        found = self._referred(reference)
        for source in found:
            kind = self._kind(source)
            if kind != declared.kind:
                raise BadReference(f"{expected}; {reference} is a {kind}")
        return found

    def _is_plain(self, reference: Reference) -> bool:
        """Whether a reference stands for a value, and so for the name or path that it holds."""
        declared = self.workflow.inputs.get(reference.name)
        return reference.kind == "matrix" or (
            reference.kind == "inputs" and isinstance(declared, PlainInput)
        )

    def _named(self, kind: str, text: str) -> Source:
        if kind == "file":
            self.files[text] = None
            return LocalFile(text)
        if text in self.workflow.models:
            raise BadReference(f"{text!r} is a model of this document: write ${{models.{text}}}")
        if not re.fullmatch(REGISTERED_PATTERN, text):
            raise BadReference(
                f"{shown(text)} is not the name of a registered model; "
                f"give paths and hub names under `models:`"
            )
        self.named_models[text] = ModelSource(name=text)
        return ModelRef(text)

    def _referred(self, reference: Reference) -> list[Source]:
        name = reference.name
        match reference.kind:
            case "steps":
                return list(self.step_outputs(reference))
            case "models":
                if name not in self.workflow.models:
                    raise BadReference(
                        f"{reference} names no model{nearest(name, self.workflow.models)}"
                    )
                return [ModelRef(name)]
            case _:
                match self.workflow.inputs.get(name):
                    case TableInput():
                        return [InputTable(name)]
                    case FileInput():
                        return [InputFile(name)]
                    case _:
                        raise BadReference(
                            f"{reference} names no input{nearest(name, self.workflow.inputs)}"
                        )

    def _kind(self, source: Source) -> str:
        match source:
            case StepOutput():
                return self.nodes[source.step].outputs[source.port]
            case InputTable():
                return "table"
            case ModelRef():
                return "model"
            case InputFile() | LocalFile():
                return "file"
