"""From a workflow to a request: all that is local is read and checked before anything moves.

Nothing here talks to a server, writes a file or starts a process, so what is wrong with a
workflow, its tables or its files is known before anything has been stored or started.
Paths in a document are relative to the document; paths that a caller gives, to where it is.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.operators.catalog import catalog
from flowmesh.sdk.builder import Workflow as BuiltWorkflow
from flowmesh.sdk.functions import check_function
from flowmesh.sdk.models import check_source
from flowmesh.sdk.tables import check_file, encoded, read_table, rows_in_memory
from flowmesh.spec.document import SIZE_LIMIT_BYTES, Positions
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import Graph, InputFile, LocalFile, ModelRef, sources_of
from flowmesh.spec.parameters import from_text
from flowmesh.spec.table import columns_of
from flowmesh.spec.workflow import FileInput, PlainInput, TableInput, Workflow, load
from flowmesh.wire import ArtifactView

#: A workflow's file, or the workflow itself.
AnyWorkflow = str | Path | Mapping[str, Any] | BuiltWorkflow


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workflow in which only the models are still to be resolved.

    Attributes:
        document: the text, as it will be sent.
        file: what messages call it.
        base: the directory that its paths are relative to.
        parameters: values of plain inputs that were given.
        inputs, files: artifacts as `wire.CreateRun` has them.
        blobs: the bytes of these, or the file that holds them, by digest.
    """

    document: str
    file: str
    base: Path
    graph: Graph
    positions: Positions
    parameters: Mapping[str, Any]
    inputs: Mapping[str, ArtifactView]
    files: Mapping[str, ArtifactView]
    blobs: Mapping[Digest, bytes | Path]

    def model_problem(self, message: str, alias: str) -> Problem:
        """A problem with a model, where the document declares it, or else where it uses it."""
        if alias not in self.graph.workflow.models:
            for node in self.graph.steps.values():
                for port, sources in node.inputs.items():
                    if ModelRef(alias) in sources_of(sources):
                        return self.positions.problem(message, *node.path, port)
        return self.positions.problem(message, "models", alias)


def prepare(
    workflow: AnyWorkflow,
    *,
    inputs: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    typed: bool = False,
) -> Prepared:
    """Read and check a workflow and all that it names on this machine.

    Args:
        inputs: for table inputs a path, a list of dicts or a data frame; for files a path.
        parameters: for plain inputs, their values.
        typed: the parameters are texts as typed on a command line.

    Raises:
        SpecError: with every problem found.
    """
    text, file, base = _read_document(workflow)
    document, positions = load(text, file)
    given = dict(parameters or {})
    if typed:
        given = {name: _value(document, name, value) for name, value in given.items()}
    local = _Local(document, positions, base)
    local.read_inputs(dict(inputs or {}))
    try:
        graph = build(document, positions, catalog(), given, local.columns)
    except SpecError as error:
        local.problems += error.problems
    else:
        local.read_files(graph)
        local.check_models(graph)
    if local.problems:
        raise SpecError(*dict.fromkeys(local.problems))
    return Prepared(
        document=text.decode() if isinstance(text, bytes) else text,
        file=file,
        base=base,
        graph=graph,
        positions=positions,
        parameters=given,
        inputs=local.inputs,
        files=local.files,
        blobs=local.blobs,
    )


def _read_document(workflow: AnyWorkflow) -> tuple[str | bytes, str, Path]:
    """Text, the name that messages use, and the directory that paths are relative to."""
    if isinstance(workflow, BuiltWorkflow):
        return workflow.to_yaml(), f"{workflow.name}.yaml", Path()
    if isinstance(workflow, Mapping):
        try:
            return json.dumps(dict(workflow), ensure_ascii=False, indent=1), "workflow", Path()
        except (TypeError, ValueError) as error:
            raise SpecError(Problem(f"the workflow is not plain data: {error}")) from None
    path = Path(workflow)
    shown = os.fsencode(path).decode(errors="replace")  # a name need not be text
    check_file(path, shown)
    size_bytes = path.stat().st_size
    if size_bytes > SIZE_LIMIT_BYTES:
        message = f"the document has {size_bytes:,} bytes; the limit is {SIZE_LIMIT_BYTES:,}"
        raise SpecError(Problem(message, shown))
    return path.read_bytes(), shown, path.parent


def _value(workflow: Workflow, name: str, text: Any) -> Any:
    declared = workflow.inputs.get(name)
    return from_text(declared, text) if isinstance(declared, PlainInput) else text


@dataclass(slots=True)
class _Local:
    """What a document names on this machine, and what is wrong with it."""

    workflow: Workflow
    positions: Positions
    base: Path
    problems: list[Problem] = field(default_factory=list)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: dict[str, ArtifactView] = field(default_factory=dict)
    files: dict[str, ArtifactView] = field(default_factory=dict)
    blobs: dict[Digest, bytes | Path] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)  #: of file inputs

    def read_inputs(self, given: dict[str, Any]) -> None:
        declared = self.workflow.inputs
        for name in given:
            if isinstance(declared.get(name), PlainInput):
                message = f"{name!r} is a plain input, not a file: use --set {name}=VALUE"
                self.problems.append(self.positions.problem(message, "inputs", name))
            elif name not in declared:
                taken = [key for key, one in declared.items() if not isinstance(one, PlainInput)]
                message = f"no table or file input is called {name!r}{nearest(name, taken)}"
                self.problems.append(Problem(message, self.positions.file))
        for name, one in declared.items():
            if not isinstance(one, PlainInput):
                try:
                    self._read_input(name, one, given.get(name))
                except SpecError as error:
                    self.problems += error.problems

    def _read_input(self, name: str, declared: TableInput | FileInput, given: Any) -> None:
        if given is None and declared.file is None:
            message = f"needs a {declared.type}: use --input {name}=FILE, or give it a `file`"
            raise SpecError(self.positions.problem(message, "inputs", name))
        if given is None:
            assert declared.file is not None
            try:
                self._keep_input(name, declared, self.base / declared.file)
            except SpecError as error:
                raise SpecError(*(self._placed(one, name) for one in error.problems)) from None
        else:
            self._keep_input(name, declared, given)

    def _placed(self, problem: Problem, name: str) -> Problem:
        """A problem of a file that the document names: said with the line that names it."""
        place = self.positions.problem("", "inputs", name, "file")
        where = f"{place.file}:{place.line}" if place.line else place.path
        if not problem.line:
            return self.positions.problem(
                f"{problem.file}: {problem.message}", "inputs", name, "file"
            )
        message = f"{problem.message} (input {name!r} of {where})"
        return Problem(message, problem.file, problem.line, problem.column, problem.path)

    def _keep_input(self, name: str, declared: TableInput | FileInput, given: Any) -> None:
        is_path = isinstance(given, str | Path)
        if isinstance(declared, FileInput):
            if not is_path:
                message = f"expected a path, found {type(given).__name__}"
                raise SpecError(Problem(message, path=f"inputs.{name}"))
            check_file(Path(given), str(given))
            self.inputs[name] = self._keep_file(Path(given))
            self.paths[name] = Path(given)
            return
        shown = str(given) if is_path else f"input {name!r}"
        rows = read_table(Path(given), shown) if is_path else rows_in_memory(given, shown)
        data, columns = encoded(rows, shown), columns_of(rows)
        digest = Digest.of(data)
        self.blobs[digest] = data
        self.columns[name] = columns
        self.inputs[name] = ArtifactView(
            kind="table", digest=str(digest), rows=len(rows), columns=columns
        )

    def _keep_file(self, path: Path) -> ArtifactView:
        with path.open("rb") as file:
            digest = Digest(hashlib.file_digest(file, "sha256").hexdigest(), file.tell())
        self.blobs[digest] = path
        return ArtifactView(kind="file", digest=str(digest))

    def read_files(self, graph: Graph) -> None:
        """The files that steps name, and the functions that are to be called in them."""
        for node in graph.steps.values():
            for port, sources in node.inputs.items():
                place = (*node.path, port)
                for source in sources_of(sources):
                    if not isinstance(source, LocalFile | InputFile):
                        continue
                    try:
                        path = self._local_path(source)
                        function = getattr(node.params, "function", None)
                        if path is not None and port == "file" and function is not None:
                            check_function(path, function, str(path))
                    except SpecError as error:
                        self.problems += (self._about(one, place) for one in error.problems)

    def _local_path(self, source: LocalFile | InputFile) -> Path | None:
        """Where a file is; None if that is not known, because of a problem told already."""
        if isinstance(source, InputFile):
            return self.paths.get(source.name)
        path = self.base / source.path
        check_file(path, str(path))
        if source.path not in self.files:
            self.files[source.path] = self._keep_file(path)
        return path

    def check_models(self, graph: Graph) -> None:
        for alias, source in graph.models.items():
            if fault := check_source(source, self.base):
                key, message = fault
                self.problems.append(self.positions.problem(message, "models", alias, key))

    def _about(self, problem: Problem, place: tuple[str, ...]) -> Problem:
        if problem.line:
            return problem
        return self.positions.problem(f"{problem.file}: {problem.message}", *place)
