"""The checked graph: what `graph.build` makes of a document, and what the server runs."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowmesh.spec.document import Path
from flowmesh.spec.gates import Gate
from flowmesh.spec.operator import Columns, Operator
from flowmesh.spec.workflow import ModelSource, OnError, Share, Workflow

#: Output port of a row operator that measures the step as a whole.
SUMMARY_PORT = "summary"
#: Output port that `on_error: quarantine` adds, and the column that it adds to each row there.
ERRORS_PORT = "errors"
ERROR_COLUMN = "error"


@dataclass(frozen=True, slots=True)
class StepOutput:
    step: str
    port: str


@dataclass(frozen=True, slots=True)
class InputTable:
    name: str


@dataclass(frozen=True, slots=True)
class InputFile:
    name: str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A key of `Graph.models`."""

    alias: str


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A path as the document writes it."""

    path: str


Made = StepOutput | InputTable | InputFile | ModelRef | LocalFile


@dataclass(frozen=True, slots=True)
class LastOf:
    """What a loop carries: the last of these that was not skipped."""

    sources: tuple[Made, ...]


Source = Made | LastOf
#: What one port is bound to.
Sources = Source | list[Source] | dict[str, Source]


def candidates(source: Source) -> tuple[Made, ...]:
    """What a source may turn out to be, the one that is preferred last."""
    return source.sources if isinstance(source, LastOf) else (source,)


def sources_of(sources: Sources) -> Iterator[Made]:
    """The sources behind a port, in order."""
    if isinstance(sources, list):
        listed = sources
    else:
        listed = list(sources.values()) if isinstance(sources, dict) else [sources]
    for source in listed:
        yield from candidates(source)


@dataclass(frozen=True, slots=True)
class StepNode:
    """A step that is ready to be expanded once its inputs exist.

    Attributes:
        name: unique in the graph; of a matrix step, `judge[temperature=0.2]`, in a loop
            `improve[1].judge[temperature=0.2]`.
        path: where the step is in the document; `matrix`, the values of this instance.
        params: validated, an instance of `op.params`.
        upstream: steps that must have settled before: sources, and those that gates name.
        outputs: output port to kind: `table`, `file`, `model` or `adapter`.
        columns: of each output port that is a table; None where only running tells.
        gates: conditions that must hold; else the step is skipped.
        memory_bytes: what one of its tasks takes of a worker, 0 if that is not said.
        linger_ms: how long its tasks may wait for others to fill their batch.
        line: of the step in the document, 0 if it has none.
    """

    name: str
    path: Path
    op: Operator
    params: Any
    inputs: Mapping[str, Sources]
    upstream: tuple[str, ...]
    outputs: Mapping[str, str]
    columns: Mapping[str, Columns]
    matrix: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    on_error: OnError = "fail"
    share: Share = "domain"
    reuse: Literal["samples"] | None = None
    numerics: Literal["exact"] | None = None
    memory_bytes: int = 0
    linger_ms: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow in which everything names something that fits.

    Attributes:
        order: step names, each after all that it needs.
        outputs: the workflow's outputs.
        models: by alias: those of the document, and those that a port names directly.
        files: paths that `python` steps and the like name, as written.
        parameters: the value of every plain input.
    """

    workflow: Workflow
    order: tuple[str, ...]
    steps: Mapping[str, StepNode]
    outputs: Mapping[str, StepOutput | LastOf]
    models: Mapping[str, ModelSource]
    files: tuple[str, ...]
    parameters: Mapping[str, Any]


def remaining(node: StepNode, skipped: Collection[str]) -> Mapping[str, Sources] | None:
    """A step's inputs without those that were skipped; None if the step is skipped for it.

    A list or a map of sources goes without the skipped ones as long as one remains. What a
    loop carries is what the last round that was not skipped has made.
    """
    left: dict[str, Sources] = {}
    for port, sources in node.inputs.items():
        rest = _without(sources, skipped)
        if rest is not None:
            left[port] = rest
        elif node.op.inputs[port].required:
            return None
    return left


def _without(sources: Sources, skipped: Collection[str]) -> Sources | None:
    def left(source: Source) -> Source | None:
        for one in reversed(candidates(source)):
            if not (isinstance(one, StepOutput) and one.step in skipped):
                return one
        return None

    if isinstance(sources, list):
        return [one for source in sources if (one := left(source)) is not None] or None
    if isinstance(sources, dict):
        named = {name: left(source) for name, source in sources.items()}
        return {name: one for name, one in named.items() if one is not None} or None
    return left(sources)
