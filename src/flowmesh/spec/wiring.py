"""What a step's port is bound to: references and names become sources of the right kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowmesh.base.names import name_and_tag
from flowmesh.base.nearest import nearest
from flowmesh.spec.document import Path
from flowmesh.spec.loops import OUTSIDE, ROUND, Scope
from flowmesh.spec.messages import shown
from flowmesh.spec.nodes import (
    InputFile,
    InputTable,
    LastOf,
    LocalFile,
    Made,
    ModelRef,
    Source,
    Sources,
    StepOutput,
    candidates,
)
from flowmesh.spec.operator import Columns, Port
from flowmesh.spec.outputs import Fault, Outputs
from flowmesh.spec.parameters import PlainValues, Unresolved
from flowmesh.spec.references import BadReference, Reference, substitute, whole
from flowmesh.spec.workflow import Carry, FileInput, ModelSource, PlainInput, TableInput, Workflow

_EXPECTED = {
    "table": "a table: ${inputs.NAME} or ${steps.NAME}",
    "model": "a model: ${models.NAME}, ${steps.NAME.PORT} or the name of a registered one",
    "adapter": "an adapter: ${models.NAME}, ${steps.NAME.PORT} or the name of a registered one",
    "file": "a file: ${inputs.NAME}, ${steps.NAME.PORT} or a path",
}


def normal_kind(kind: str) -> str:
    """Kinds of outputs in the vocabulary of ports: a tree of files is a model."""
    return "model" if kind == "tree" else kind


@dataclass(slots=True)
class Wiring:
    """Resolves ports of one graph; remembers the models and files that they name directly.

    `outside` has the values that can be seen from outside of all steps.
    """

    workflow: Workflow
    outputs: Outputs
    input_columns: Mapping[str, Columns]
    outside: PlainValues
    named_models: dict[str, ModelSource] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)

    def port(
        self, name: str, declared: Port, value: Any, plain: PlainValues
    ) -> tuple[Sources | None, list[Fault]]:
        """The sources that a port's value names; None where they are not known.

        What a loop carries has no source in the first round if it has no start.
        """
        match declared.arity:
            case "one":
                found, faults = self._entry(name, declared, value, (), plain)
                sources: Sources | None = found[0] if found else found
            case "list":
                sources, faults = self._list(name, declared, value, plain)
            case "map":
                sources, faults = self._map(name, declared, value, plain)
        if declared.required and sources is not None and sources in ([], {}):
            message = f"nothing of it is there in round 1, and port {name!r} needs something"
            return None, [((), f"{message}; give what is carried a `start`")]
        return sources, faults

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
        """One reference: one source, or in a list those of every instance of a matrix step.

        None for what is not known, and nothing for what a first round does not have.
        """
        try:
            found = self._sources(declared, entry, plain)
            if declared.arity != "list" and self.outputs.is_collected(whole(entry), plain.scope):
                raise BadReference(
                    f"{entry} is the list of what every round made, and port {name!r} takes one "
                    f"here; join them with a `concat` step"
                )
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
            case StepOutput() if sources.step in self.outputs.nodes:
                return self.outputs.nodes[sources.step].columns.get(sources.port)
            case LastOf():
                return self.columns(sources.sources[-1])  # the others stand in for skipped ones
            case _:
                return None

    def faults_of_loop(self, name: str) -> Iterator[Fault]:
        """What is wrong with what a loop carries and collects, whether it is used or not."""
        yield from self.outputs.faults_of_loop(name)
        loop = self.outputs.rounds[name][0].loop
        for key, carry in (loop.carry if loop else {}).items():
            try:
                self._check_start(carry)
            except BadReference as error:
                yield ("carry", key, "start"), str(error)
            except Unresolved:
                continue

    def _check_start(self, carry: Carry) -> None:
        """Raises BadReference for a start that would fit no port; Unresolved if it is broken."""
        reference = whole(carry.start)
        if reference is None or is_plain(self.workflow, reference):
            substitute(carry.start, self.outside)
            return
        found = self._referred(reference, OUTSIDE)
        if self.outputs.is_collected(reference):
            message = f"{reference} is the list of what every round made"
            raise BadReference(f"{message}; join them with a `concat` step")
        if len(found) > 1:
            message = f"{reference} has {len(found)} instances"
            raise BadReference(f"{message}; join them with a `concat` step")

    def _sources(self, declared: Port, value: Any, plain: PlainValues) -> list[Source]:
        expected = f"expected {_EXPECTED[declared.kind]}"
        if not isinstance(value, str):
            raise BadReference(f"{expected}, found {shown(value)}")
        reference = whole(value)
        if reference is None or is_plain(self.workflow, reference):
            text = substitute(value, plain)
            if declared.kind == "table" or not isinstance(text, str):
                names = [*self.workflow.inputs, *self.outputs.names(plain.scope)]
                raise BadReference(f"{expected}, found {shown(value)}{nearest(value, names)}")
            return [self._named(declared.kind, text)]
        if reference.kind == "loop":
            return self._carried(declared, reference, plain.scope)
        found = self._referred(reference, plain.scope)
        for source in found:
            self._check_kind(declared, source, f"{reference} is")
        return found

    def _carried(self, declared: Port, reference: Reference, scope: Scope) -> list[Source]:
        """What a round has of something that is carried: one source, or none if none is there."""
        carry = scope.carries(reference)
        assert carry is not None, reference
        start: list[Source] = []
        if carry.start is not None:
            try:
                self._check_start(carry)
            except BadReference:
                raise Unresolved from None  # told once, where the loop is checked
            try:
                start = self._sources(declared, carry.start, self.outside)
            except BadReference as error:
                raise BadReference(f"{reference} starts as {carry.start}: {error}") from None
        made = self.outputs.in_rounds(carry.next, scope.before(), single=True)
        for source in made[-1:]:
            self._check_kind(declared, source, f"{reference} is, from round 2 on,")
        last = tuple(one for source in (*start, *made) for one in candidates(source))
        return [*last] if len(last) < 2 else [LastOf(last)]

    def _check_kind(self, declared: Port, source: Source, what: str) -> None:
        """Raises BadReference. A model of the document may be an adapter: loading it tells."""
        for one in candidates(source):
            kind = self._kind(one)
            fits = isinstance(one, ModelRef) and declared.kind == "adapter"
            if kind != declared.kind and not fits:
                article = "an" if kind == "adapter" else "a"
                expected = _EXPECTED[declared.kind]
                raise BadReference(f"expected {expected}; {what} {article} {kind}")

    def _named(self, kind: str, text: str) -> Source:
        if kind == "file":
            self.files[text] = None
            return LocalFile(text)
        if text in self.workflow.models:
            raise BadReference(f"{text!r} is a model of this document: write ${{models.{text}}}")
        try:
            name_and_tag(text)
        except ValueError:
            raise BadReference(
                f"{shown(text)} is not the name of a registered {kind}, as NAME or NAME@TAG; "
                f"give paths and hub names under `models:`"
            ) from None
        self.named_models[text] = ModelSource(name=text)
        return ModelRef(text)

    def _referred(self, reference: Reference, scope: Scope) -> list[Source]:
        name = reference.name
        match reference.kind:
            case "steps":
                return [*self.outputs.of(reference, scope)]
            case "loop":
                raise BadReference(f"{reference} has a meaning within a loop only")
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

    def _kind(self, source: Made) -> str:
        match source:
            case StepOutput():
                return self.outputs.nodes[source.step].outputs[source.port]
            case InputTable():
                return "table"
            case ModelRef():
                return "model"
            case InputFile() | LocalFile():
                return "file"


def is_plain(workflow: Workflow, reference: Reference) -> bool:
    """Whether a reference stands for a value, and so for the name or path that it holds."""
    declared = workflow.inputs.get(reference.name)
    return (
        reference.kind == "matrix"
        or (reference.kind == "loop" and reference.name == ROUND)
        or (reference.kind == "inputs" and isinstance(declared, PlainInput))
    )
