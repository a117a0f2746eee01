"""The tasks of a run that has not begun: what is done already, and what would be executed.

Steps are expanded as they will be, against the action cache, for as far as their inputs are
known: those of the run itself, and what follows from results that exist. Of a table that is
known in part, the rows that are known are expanded. The rest is foreseen by counts: by what
earlier steps of the same name or operator made of their inputs, else by the workflow's shape.

Nothing is journaled. A table that follows from reused results alone is put into the store,
where it mostly is already.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowmesh.base.errors import BlobMissing, DigestMismatch, LimitExceeded
from flowmesh.base.ids import RunId, StepId
from flowmesh.core.records import Demand, TaskSpec
from flowmesh.planning import Basis
from flowmesh.server.steps import Cached, StepWork, decode_outputs, scope_of, specs_of
from flowmesh.server.submission import Submission
from flowmesh.spec.action import Artifact, Bound, artifacts_of
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Expansion, expand
from flowmesh.spec.nodes import Sources, StepNode, StepOutput, remaining, sources_of
from flowmesh.spec.operator import Amounts
from flowmesh.spec.table import decode_rows, encode_rows
from flowmesh.spec.templates import RenderError
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database

Rows = list[dict[str, Any]]

#: Runs that are looked through for steps to learn counts from, and steps that are taken.
RUNS_READ, STEPS_READ = 1_000, 5
#: A smaller table is read as a whole even where a sample of it is looked up.
READ_WHOLE_BYTES = 1 << 20
#: Relative deviation of counts that were learnt, and of those that follow from shapes alone.
LEARNT_DOUBT, SHAPE_DOUBT = 0.2, 0.5
#: Rows by which the bytes of a table are reckoned, and bytes of a row where none is known.
ROWS_MEASURED, ROW_BYTES = 100, 1000
_WORST: Mapping[Basis, int] = {"exact": 0, "sampled": 1, "learnt": 2, "shape": 3}


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A step of a run that has not begun.

    Attributes:
        items: rows times samples.
        reused: distinct tasks whose results exist; `saved_usd` is what those had cost.
        executed: distinct tasks that nobody has done, as far as is known.
        unsure: of these, those that may be done already: their rows do not exist yet, and steps
            like theirs have run before.
        specs: of those among them that are known; where none is, of one that stands for all.
        demand: of their batch key.
        message: why it could not be expanded, where that is known already.
    """

    node: StepNode
    basis: Basis = "exact"
    items: int = 0
    reused: int = 0
    executed: int = 0
    saved_usd: float = 0.0
    specs: tuple[TaskSpec, ...] = ()
    demand: Demand = field(default_factory=Demand)
    skipped: bool = False
    message: str = ""
    unsure: int = 0

    @property
    def doubt(self) -> float:
        """Relative deviation of `executed`."""
        return {"exact": 0.0, "sampled": 0.05, "learnt": LEARNT_DOUBT, "shape": SHAPE_DOUBT}[
            self.basis
        ]


@dataclass(frozen=True, slots=True)
class Output:
    """An output port of a step: an artifact, or rows of it that are known, and how many more."""

    artifact: Artifact | None = None
    rows: Rows = field(default_factory=list)
    unknown: int = 0
    basis: Basis = "exact"

    @property
    def count(self) -> int:
        if self.artifact is not None:
            return max(self.artifact.rows, 0)
        return len(self.rows) + self.unknown


@dataclass(frozen=True, slots=True)
class _Counts:
    """What earlier steps made of what they read: output rows and distinct tasks, by item."""

    basis: Basis
    rows: Mapping[str, float] = field(default_factory=dict)
    distinct: float = 1.0


class Foresight(StepWork):
    """One run that is looked ahead at.

    Args:
        before_ms: results that were made later are not seen: the run itself may have made them.
        items_limit: of one step, that are expanded; of more, a sample stands for all.
    """

    def __init__(
        self, database: Database, store: BlobStore, *, before_ms: int, items_limit: int
    ) -> None:
        super().__init__(database, store)
        self._before_ms = before_ms
        self._items_limit = items_limit
        self._outputs: dict[StepOutput, Output] = {}
        self._skipped: dict[str, None] = {}

    def steps(self, submission: Submission, run: RunId) -> Iterator[Foreseen]:
        """The steps in topological order. Raises StoreError, SpecError."""
        for name in submission.graph.order:
            node = submission.graph.steps[name]
            try:
                yield self._step(submission, run, node)
            except (BlobMissing, DigestMismatch, RenderError, LimitExceeded) as error:
                self._foresee(node, 0, _Counts("shape"), "shape")
                yield Foreseen(node, message=str(error))

    def cached(self, tasks: Sequence[str]) -> dict[str, Cached]:
        found = super().cached(tasks)
        return {task: hit for task, hit in found.items() if hit.made_ms < self._before_ms}

    def _step(self, submission: Submission, run: RunId, node: StepNode) -> Foreseen:
        sources = remaining(node, self._skipped)
        made = {
            where: out.artifact for where, out in self._outputs.items() if out.artifact is not None
        }
        is_known = all(
            StepOutput(name, port) in made
            for name in node.upstream
            if name not in self._skipped
            for port in submission.graph.steps[name].outputs
        )
        skipped = frozenset(self._skipped)
        if sources is None or (is_known and not self._due(submission, node, made, skipped)):
            self._skipped[node.name] = None
            return Foreseen(node, skipped=True)
        known = {port: one for port, one in sources.items() if _is_made(one, made)}
        bound = submission.bind(known, made)
        least: Basis = "shape" if node.gates and not is_known else "exact"
        if node.op.grain == "whole":
            return self._whole_step(submission, run, node, sources, bound, least)
        return self._row_step(submission, run, node, sources, bound, least)

    # One task for the step

    def _whole_step(
        self,
        submission: Submission,
        run: RunId,
        node: StepNode,
        sources: Mapping[str, Sources],
        bound: Mapping[str, Bound],
        least: Basis,
    ) -> Foreseen:
        counts = self._learnt(submission, node)
        rows, basis = self._read_rows(sources, bound)
        basis = _worse(basis, least)
        demand = self.models.demand(node, bound)
        if len(bound) < len(sources):
            self._foresee(node, rows, counts, _worse(basis, counts.basis))
            guess = self._guessed(node, {**self._supposed(sources), **bound})
            unsure = int(counts.basis == "learnt")
            return Foreseen(node, basis, 1, 0, 1, specs=guess, demand=demand, unsure=unsure)
        scope = scope_of(submission, StepId(f"{run}/{node.name}"))
        expansion = expand(node, bound, None, scope)
        (task,) = expansion.actions
        found, _ = self._found([task])
        if task in found:
            hit = found[task]
            for port, artifact in hit.result.outputs.items():
                self._outputs[StepOutput(node.name, port)] = Output(artifact)
            return Foreseen(node, basis, items=1, reused=1, saved_usd=hit.usd)
        self._foresee(node, rows, counts, counts.basis)
        specs = self._specs(node, expansion, [task], bound)
        return Foreseen(node, basis, 1, 0, 1, specs=specs, demand=demand)

    def _read_rows(
        self, sources: Mapping[str, Sources], bound: Mapping[str, Bound]
    ) -> tuple[int, Basis]:
        """Rows of all tables that a step reads, and how they are known."""
        count = 0
        basis: Basis = "exact"
        for port, found in sources.items():
            if port in bound:
                count += sum(max(0, one.rows) for one in artifacts_of(bound[port]))
                continue
            for source in sources_of(found):
                out = self._outputs.get(source) if isinstance(source, StepOutput) else None
                count += out.count if out else 0
                basis = _worse(basis, out.basis if out else "exact")
        return count, basis

    # One task for each row and sample

    def _row_step(
        self,
        submission: Submission,
        run: RunId,
        node: StepNode,
        sources: Mapping[str, Sources],
        bound: Mapping[str, Bound],
        least: Basis,
    ) -> Foreseen:
        samples = node.op.samples(node.params)
        given, factor = self._given_rows(node, sources, bound)
        counts = self._learnt(submission, node)
        if any(port not in bound for port in sources if port != "rows"):
            items = round(given.count * factor) * samples
            basis = _worse(_worse(given.basis, counts.basis if items else "exact"), least)
            self._foresee(node, items, counts, basis)
            executed, specs = round(items * counts.distinct), self._guessed(node, bound)
            counted = (items, 0, executed, 0.0, specs, self.models.demand(node, bound))
            unsure = executed if counts.basis == "learnt" else 0
            return Foreseen(node, basis, *counted, unsure=unsure)
        stride = max(1, -(-len(given.rows) * samples // self._items_limit))
        rows = given.rows[::stride]
        factor *= len(given.rows) / len(rows) if rows else 1.0
        others = {port: one for port, one in bound.items() if port != "rows"}
        scope = scope_of(submission, StepId(f"{run}/{node.name}"))
        expansion = expand(node, others, rows, scope)
        part = _Part(node, given, rows, expansion, factor, samples)
        return self._joined(part, counts, least, others)

    def _given_rows(
        self, node: StepNode, sources: Mapping[str, Sources], bound: Mapping[str, Bound]
    ) -> tuple[Output, float]:
        """The rows that a row operator works on, as far as they are known.

        Of a large table the first ones, each of which stands for so many.
        """
        if "rows" not in bound:
            (source,) = sources_of(sources["rows"])
            assert isinstance(source, StepOutput), source
            return self._outputs[source], 1.0
        table, wanted = bound["rows"], max(1, self._items_limit // node.op.samples(node.params))
        assert isinstance(table, Artifact), table
        if table.rows <= wanted or table.address.size_bytes <= READ_WHOLE_BYTES:
            return Output(None, self._rows(node, bound) or []), 1.0
        rows = self._head(table, wanted)
        return Output(None, rows), table.rows / len(rows)

    def _head(self, table: Artifact, count: int) -> Rows:
        """The first rows of a table; the rest is not read."""
        data = b""
        for chunk in self._store.stream(table.address):
            data += chunk
            if data.count(b"\n") >= count:
                break
        return decode_rows(b"\n".join(data.split(b"\n")[:count]))

    def _joined(
        self, part: "_Part", counts: _Counts, least: Basis, bound: Mapping[str, Bound]
    ) -> Foreseen:
        """What is known of a row step's tasks, and the rest by what is known or was learnt."""
        node, expansion = part.node, part.expansion
        tasks = list(expansion.actions)
        found, _ = self._found(tasks)
        more = part.given.unknown * part.samples
        items = round((len(expansion.items) + len(expansion.failed)) * part.factor) + more
        distinct = len(tasks) / len(expansion.items) if len(tasks) > 20 else counts.distinct
        total = round(len(tasks) * part.factor + more * distinct)
        reused = round(len(found) * part.factor)
        basis: Basis = "exact" if part.factor == 1 else "sampled"
        if more:
            basis = _worse(part.given.basis, counts.basis if len(tasks) <= 20 else "learnt")
        basis = _worse(basis, least)
        refused = expansion.failed
        if refused and node.on_error == "fail":
            self._foresee(node, 0, counts, basis)
            return Foreseen(node, basis, items, message=refused[0].message)
        self._made(part, found, items, counts, basis)
        wanted = [task for task in tasks if task not in found]
        specs = self._specs(node, expansion, wanted, bound)
        if not specs and total > reused:
            # What is done already stands for the rows that are not known.
            specs = self._specs(node, expansion, tasks[:ROWS_MEASURED], bound)
            specs = specs or self._guessed(node, bound)
        saved_usd = sum(hit.usd for hit in found.values()) * part.factor
        counted = (items, reused, total - reused, saved_usd)
        demand = self.models.demand(node, bound)
        unknown = min(total - reused, round(more * distinct))
        unsure = unknown if counts.basis == "learnt" else 0
        return Foreseen(node, basis, *counted, specs, demand, unsure=unsure)

    def _made(
        self,
        part: "_Part",
        found: Mapping[str, Cached],
        items: int,
        counts: _Counts,
        basis: Basis,
    ) -> None:
        """The outputs of a row step: for real where all is there, else the rows that are."""
        node, expansion = part.node, part.expansion
        results = {task: self._loaded(hit.result) for task, hit in found.items()}
        known = [item for item in expansion.items if item.task in results]
        is_whole = part.factor == 1 and not part.given.unknown
        if is_whole and len(known) == len(expansion.items):
            failures = {(row, sample): message for row, sample, message in expansion.failed}
            made = assemble(node, part.rows, known, results, failures)
            for port, rows in made.tables.items():
                self._outputs[StepOutput(node.name, port)] = Output(self._table(node, port, rows))
            return
        rows = assemble(node, part.rows, known, results, {}).tables["rows"] if known else []
        by_item = len(rows) / len(known) if len(known) > 20 else counts.rows.get("rows", 1.0)
        unknown = round(max(0, items - len(known)) * by_item)
        self._foresee(node, items, counts, _worse(basis, counts.basis))
        self._outputs[StepOutput(node.name, "rows")] = Output(
            None, rows, unknown, _worse(basis, counts.basis)
        )

    # What is not known

    def _supposed(self, sources: Mapping[str, Sources]) -> dict[str, Bound]:
        """Tables on the ports of a step that are not there yet."""
        tables: dict[str, Bound] = {}
        for port, found in sources.items():
            if isinstance(found, StepOutput) and (out := self._outputs.get(found)) is not None:
                is_table = out.artifact is None and out.count > 0
                tables |= {port: _supposed(out)} if is_table else {}
        return tables

    def _specs(
        self,
        node: StepNode,
        expansion: Expansion,
        wanted: Sequence[str],
        bound: Mapping[str, Bound],
    ) -> tuple[TaskSpec, ...]:
        return specs_of(node, expansion, wanted, "", {}, self.models.adapters(node, bound))

    def _guessed(self, node: StepNode, bound: Mapping[str, Bound]) -> tuple[TaskSpec, ...]:
        """A task whose row is not known: its templates stand for what they will say."""
        op, plain = node.op, node.params.model_dump(mode="json")
        models = [
            artifact.digest
            for port, declared in op.inputs.items()
            if declared.kind == "model" and port in bound
            for artifact in artifacts_of(bound[port])
        ]
        try:
            amounts = op.amounts_of(op.task(node.params, plain, 0), bound)
        except Exception:  # an operator may want what only a row can give
            amounts = Amounts()
        key = op.batch_key(op.engine(node.params), models)
        return self._specs(node, Expansion((), {"": {}}, key, {"": amounts}, {}), [""], bound)

    def _foresee(self, node: StepNode, items: int, counts: _Counts, basis: Basis) -> None:
        """Outputs of a step whose results are not there, by count."""
        for port, kind in node.outputs.items():
            count = round(items * counts.rows.get(port, 1.0)) if kind == "table" else 0
            self._outputs[StepOutput(node.name, port)] = Output(None, [], count, basis)

    def _learnt(self, submission: Submission, node: StepNode) -> _Counts:
        """From the newest steps of the same name in runs of the same workflow, else operator."""
        name = submission.graph.workflow.name or submission.request.file
        for where, given in (("s.name = ? AND r.name = ?", (node.name, name)), ("1", ())):
            found = self._database.read(
                "SELECT s.items, s.executed + s.reused + s.joined + s.failed, s.outputs,"
                " (SELECT sum(u.rows) FROM uses u WHERE u.step = s.step AND u.rows > 0)"
                " FROM (SELECT run, name, submitted_ms FROM runs"
                "  ORDER BY submitted_ms DESC LIMIT ?) r JOIN steps s USING (run)"
                f" WHERE s.op = ? AND s.status = 'succeeded' AND s.items > 0 AND {where}"
                " ORDER BY r.submitted_ms DESC LIMIT ?",
                (RUNS_READ, node.op.name, *given, STEPS_READ),
            )
            if found:
                return _counted(node, found)
        return _Counts("shape")


@dataclass(frozen=True, slots=True)
class _Part:
    """A row step, and what of it was expanded; each row stands for `factor` of them."""

    node: StepNode
    given: Output
    rows: Rows
    expansion: Expansion
    factor: float
    samples: int


def _is_made(sources: Sources, made: Mapping[StepOutput, Artifact]) -> bool:
    return all(not isinstance(one, StepOutput) or one in made for one in sources_of(sources))


def _worse(one: Basis, other: Basis) -> Basis:
    return max(one, other, key=_WORST.__getitem__)


def _counted(node: StepNode, found: Sequence[tuple[int, int, str, int | None]]) -> _Counts:
    read = tasks = 0
    rows: dict[str, int] = {}
    for items, distinct, outputs, rows_read in found:
        read += (rows_read or 0) if node.op.grain == "whole" else items
        tasks += distinct
        for port, artifact in decode_outputs(outputs).items():
            rows[port] = rows.get(port, 0) + max(0, artifact.rows)
    if not read:
        return _Counts("shape")
    by_item = {port: count / read for port, count in rows.items()}
    return _Counts("learnt", by_item, min(1.0, tasks / read))


def _supposed(out: Output) -> Artifact:
    """A table that is not there yet, by its rows and what one of them should take."""
    known = encode_rows(out.rows[:ROWS_MEASURED]) if out.rows else b""
    row_bytes = len(known) / min(len(out.rows), ROWS_MEASURED) if known else ROW_BYTES
    return Artifact("table", f"sha256:{'0' * 64}/{round(row_bytes * out.count)}", out.count)
