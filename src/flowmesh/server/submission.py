"""A submission, checked again on the server: document plus digests -> graph and bindings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.ids import RunId, StepId, TenantId
from flowmesh.core.records import OnError, Run, Step
from flowmesh.spec.action import Artifact, Bound
from flowmesh.spec.graph import build
from flowmesh.spec.limits import duration_ms
from flowmesh.spec.nodes import (
    Graph,
    InputFile,
    InputTable,
    LastOf,
    LocalFile,
    ModelRef,
    Source,
    Sources,
    StepNode,
    StepOutput,
    sources_of,
)
from flowmesh.spec.operator import Operator
from flowmesh.spec.workflow import load
from flowmesh.wire import ArtifactView, CreateRun


@dataclass(frozen=True, slots=True)
class Submission:
    """A run's request and the graph that it gives."""

    request: CreateRun
    graph: Graph

    @classmethod
    def of(cls, request: CreateRun, catalog: Mapping[str, Operator]) -> "Submission":
        """Raises SpecError with every problem found."""
        workflow, positions = load(request.document, request.file)
        columns = {name: made.columns for name, made in request.inputs.items() if made.columns}
        graph = build(workflow, positions, catalog, request.parameters, columns)
        submission = cls(request, graph)
        submission._check_resolved()
        return submission

    def _check_resolved(self) -> None:
        missing = [
            Problem(f"{source_name(source)} is not resolved to a digest", self.request.file)
            for node in self.graph.steps.values()
            for sources in node.inputs.values()
            for source in sources_of(sources)
            if not isinstance(source, StepOutput) and self._given(source) is None
        ]
        if missing:
            raise SpecError(*dict.fromkeys(missing))

    def artifacts(self) -> Iterator[Artifact]:
        """Everything that must be in the store before the run may be accepted."""
        for given in (self.request.inputs, self.request.models, self.request.files):
            yield from (artifact(view) for view in given.values())

    def node(self, step: StepId) -> StepNode:
        return self.graph.steps[step.split("/", 1)[1]]

    def bind(
        self, sources: Mapping[str, Sources], made: Mapping[StepOutput, Artifact]
    ) -> dict[str, Bound]:
        """What each port is bound to, given what the steps before have made."""

        def one(source: Source) -> Artifact:
            if isinstance(source, StepOutput):
                return made[source]
            given = self._given(source)
            assert given is not None, source
            return given

        def bound(found: Sources) -> Bound:
            if isinstance(found, list):
                return [one(source) for source in found]
            if isinstance(found, dict):
                return {name: one(source) for name, source in found.items()}
            return one(found)

        return {port: bound(found) for port, found in sources.items()}

    def _given(self, source: Source) -> Artifact | None:
        request = self.request
        match source:
            case InputTable(name) | InputFile(name):
                view = request.inputs.get(name)
            case ModelRef(alias):
                view = request.models.get(alias)
            case LocalFile(path):
                view = request.files.get(path)
            case _:
                view = None
        return artifact(view) if view else None

    def core_run(self, run: RunId, now_ms: int, weight: float) -> tuple[Run, tuple[Step, ...]]:
        """The run as the core knows it."""
        nodes = [self.graph.steps[name] for name in self.graph.order]
        steps = tuple(
            Step(
                StepId(f"{run}/{node.name}"),
                run,
                tuple(StepId(f"{run}/{before}") for before in node.upstream),
                OnError(node.on_error),
                operator=f"{node.op.name}@{node.op.version}",
            )
            for node in nodes
        )
        ids = tuple(step.id for step in steps)
        request, workflow = self.request, self.graph.workflow
        after_ms = duration_ms(workflow.deadline) if workflow.deadline else 0
        if request.deadline_s is not None:
            after_ms = max(1, round(request.deadline_s * 1000))
        made = Run(
            id=run,
            tenant=TenantId(request.tenant),
            priority=workflow.priority,
            steps=ids,
            submitted_ms=now_ms,
            weight=weight,
            deadline_ms=now_ms + after_ms if after_ms else 0,
            budget_usd=request.budget_usd or workflow.budget_usd or 0.0,
            objective=request.objective or workflow.objective or "",
        )
        return made, steps


def artifact(view: ArtifactView) -> Artifact:
    return Artifact(view.kind, view.digest, view.rows, view.columns)


def view_of(made: Artifact) -> ArtifactView:
    return ArtifactView(kind=made.kind, digest=made.digest, rows=made.rows, columns=made.columns)


def flat(sources: Mapping[str, Sources]) -> Iterator[tuple[str, Source]]:
    """Every source by port; one of many on a port has its name or number: `tables/judged`."""
    for port, found in sources.items():
        if isinstance(found, list):
            yield from ((f"{port}/{number}", source) for number, source in enumerate(found))
        elif isinstance(found, dict):
            yield from ((f"{port}/{name}", source) for name, source in found.items())
        else:
            yield port, found


def source_name(source: Source) -> str:
    """As lineage keeps it; what a loop carries is known by the one that is preferred."""
    match source:
        case StepOutput(step, port):
            return f"steps.{step}.{port}"
        case InputTable(name) | InputFile(name):
            return f"inputs.{name}"
        case ModelRef(alias):
            return f"models.{alias}"
        case LocalFile(path):
            return f"files.{path}"
        case LastOf(sources):
            return source_name(sources[-1])
