"""The checked graph: what `graph.build` makes of a document, and what the server runs."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowmesh.spec.operator import Columns, Operator
from flowmesh.spec.workflow import ModelSource, OnError, Share, Workflow

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


Source = StepOutput | InputTable | InputFile | ModelRef | LocalFile
#: What one port is bound to.
Sources = Source | list[Source] | dict[str, Source]


def sources_of(sources: Sources) -> Iterator[Source]:
    """The sources behind a port, in order."""
    if isinstance(sources, list):
        yield from sources
    elif isinstance(sources, dict):
        yield from sources.values()
    else:
        yield sources


@dataclass(frozen=True, slots=True)
class StepNode:
    """A step that is ready to be expanded once its inputs exist.

    Attributes:
        name: unique in the graph; of a matrix step, `judge[temperature=0.2]`.
        base: the step's key in the document; `matrix`, the values of this instance.
        params: validated, an instance of `op.params`.
        upstream: steps that must have settled before: sources, and those named in `when`.
        outputs: output port to kind: `table`, `file` or `model`.
        columns: of each output port that is a table; None where only running tells.
        line: of the step in the document, 0 if it has none.
    """

    name: str
    base: str
    op: Operator
    params: Any
    inputs: Mapping[str, Sources]
    upstream: tuple[str, ...]
    outputs: Mapping[str, str]
    columns: Mapping[str, Columns]
    matrix: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None
    on_error: OnError = "fail"
    share: Share = "domain"
    reuse: Literal["samples"] | None = None
    numerics: Literal["exact"] | None = None
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
    outputs: Mapping[str, StepOutput]
    models: Mapping[str, ModelSource]
    files: tuple[str, ...]
    parameters: Mapping[str, Any]


def facts(graph: Graph, node: StepNode, counts: Mapping[str, int | None]) -> dict[str, Any]:
    """What `conditions.holds` asks for a step's `when`.

    Args:
        counts: rows of the `rows` output of each settled step (0 if it has none), None for a
            skipped one. Of a matrix step, the condition sees the sum, and `skipped` only
            where every instance was.
    """
    steps: dict[str, dict[str, Any]] = {}
    for name, count in counts.items():
        fact = steps.setdefault(graph.steps[name].base, {"count": 0, "skipped": True})
        fact["count"] += count or 0
        fact["skipped"] = fact["skipped"] and count is None
    return {"inputs": dict(graph.parameters), "matrix": dict(node.matrix), "steps": steps}


def remaining(node: StepNode, skipped: Collection[str]) -> Mapping[str, Sources] | None:
    """A step's inputs without those that were skipped; None if the step is skipped for it.

    A list or a map of sources goes without the skipped ones as long as one remains.
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
    def stays(source: Source) -> bool:
        return not (isinstance(source, StepOutput) and source.step in skipped)

    if isinstance(sources, list):
        return [one for one in sources if stays(one)] or None
    if isinstance(sources, dict):
        return {name: one for name, one in sources.items() if stays(one)} or None
    return sources if stays(sources) else None
