"""What the driver does for the core: expand steps into tasks, assemble their outputs.

Runs in threads: reads tables and the action cache, writes blobs, and answers with an event.
Doing it twice does no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from flowmesh.base.digest import Digest, canonical
from flowmesh.base.errors import (
    BlobMissing,
    DigestMismatch,
    LimitExceeded,
    Problem,
    SpecError,
    StoreError,
)
from flowmesh.base.ids import StepId, TaskId
from flowmesh.core.events import StepAssembled, StepExpanded, StepReopened
from flowmesh.core.records import Step, TaskSpec, Tree
from flowmesh.server import items
from flowmesh.server.demand import Models
from flowmesh.server.parts import parts_of
from flowmesh.server.project import AssembledRecord, ExpandedRecord, Use, pack
from flowmesh.server.submission import Submission, flat, source_name
from flowmesh.spec.action import Artifact, Bound, Result, artifacts_of
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Expansion, Scope, expand
from flowmesh.spec.gates import due
from flowmesh.spec.nodes import StepNode, StepOutput, remaining
from flowmesh.spec.prefixes import Prefix
from flowmesh.spec.table import columns_of, decode_rows, encode_rows
from flowmesh.spec.templates import RenderError
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database

DEFAULT_DOMAIN = "default"
#: Most items of one step.
ITEMS_LIMIT = 1_000_000
#: Largest table whose rows become tasks: it is read whole.
TABLE_LIMIT_BYTES = 1 << 30
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Cached:
    """What the action cache holds of one task."""

    result: Result
    usd: float
    made_ms: int


class StepWork:
    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store
        self.models = Models(store)

    def expand(self, submission: Submission, step: Step, at_ms: int) -> StepExpanded | StepReopened:
        """A step's items and which of their tasks are done already.

        Raises StoreError where the store has trouble that may pass.
        """
        node = submission.node(step.id)
        try:
            made, skipped = self._upstream(submission, step.id)
            sources = remaining(node, skipped)
            if sources is None or not self._due(submission, node, made, skipped):
                return StepExpanded(at_ms, step.id, skipped=True, turn=step.turn)
            bound = submission.bind(sources, made)
            expansion = expand(node, bound, self._rows(node, bound), scope_of(submission, step.id))
        except (BlobMissing, DigestMismatch) as error:
            return self._mended(submission, step, error, at_ms) or StepExpanded(
                at_ms, step.id, error=str(error), turn=step.turn
            )
        except (RenderError, LimitExceeded) as error:
            return StepExpanded(at_ms, step.id, error=str(error), turn=step.turn)
        uses = [
            Use(port, artifact, source_name(source))
            for (port, source), artifact in zip(flat(sources), _flat(bound), strict=True)
        ]
        trees = self.models.adapters(node, bound)
        expanded = self._expanded(step, at_ms, node, expansion, uses, trees)
        return replace(expanded, demand=self.models.demand(node, bound))

    def _expanded(
        self,
        step: Step,
        at_ms: int,
        node: StepNode,
        expansion: Expansion,
        uses: list[Use],
        trees: tuple[Tree, ...],
    ) -> StepExpanded:
        tasks = list(expansion.actions)
        found, lost = self._found(tasks)
        wanted = [task for task in tasks if task not in found]
        documents = b"".join(canonical(expansion.actions[task]) + b"\n" for task in wanted)
        where = str(self._store.put(documents)) if wanted else ""
        blob = self._store.put(items.encode(expansion))
        refused = expansion.failed
        error = refused[0].message if refused and node.on_error == "fail" else ""
        return StepExpanded(
            at_ms,
            step.id,
            items=len(expansion.items) + len(refused),
            found=len(found),
            wanted=specs_of(node, expansion, wanted, where, self._saved(node, wanted), trees),
            rows_failed=len(refused),
            error=error,
            lost=tuple(TaskId(task) for task in lost),
            saved_usd=sum(cached.usd for cached in found.values()),
            record=pack(ExpandedRecord(str(blob), uses)),
            turn=step.turn,
        )

    def _saved(self, node: StepNode, tasks: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Checkpoints that tasks left when they were wanted before, and their steps."""
        if not node.op.resumable:
            return {}
        found: dict[str, tuple[str, int]] = {}
        for start in range(0, len(tasks), _PAGE):
            page = tasks[start : start + _PAGE]
            rows = self._database.read(
                "SELECT task, checkpoint, saved_step FROM progress"
                f" WHERE checkpoint != '' AND task IN ({','.join('?' * len(page))})",
                page,
            )
            found |= {task: (tree, step) for task, tree, step in rows}
        return found

    def _upstream(
        self, submission: Submission, step: StepId
    ) -> tuple[dict[StepOutput, Artifact], frozenset[str]]:
        """Outputs of the steps before, and the names of those that were skipped."""
        run = step.split("/", 1)[0]
        made: dict[StepOutput, Artifact] = {}
        skipped: set[str] = set()
        for name in submission.node(step).upstream:
            ((status, outputs),) = self._database.read(
                "SELECT status, outputs FROM steps WHERE step = ?", (f"{run}/{name}",)
            )
            if status == "skipped":
                skipped.add(name)
            for port, artifact in decode_outputs(outputs).items():
                made[StepOutput(name, port)] = artifact
        return made, frozenset(skipped)

    def _due(
        self,
        submission: Submission,
        node: StepNode,
        made: Mapping[StepOutput, Artifact],
        skipped: frozenset[str],
    ) -> bool:
        """Whether the step's conditions hold. Raises RenderError, LimitExceeded."""

        def first_row(step: str, port: str) -> Mapping[str, Any] | None:
            table = made.get(StepOutput(step, port))
            return self._first_row(f"{step}.{port}", table) if table and table.rows else None

        counts: dict[str, int | None] = {}
        for name in node.upstream:
            rows = made.get(StepOutput(name, "rows"))
            counts[name] = None if name in skipped else max(rows.rows, 0) if rows else 0
        return due(node.gates, submission.graph.parameters, counts, first_row)

    def _first_row(self, name: str, table: Artifact) -> dict[str, Any]:
        """The first row of a table that has one; the rest is read past, so as to be verified."""
        if table.address.size_bytes > TABLE_LIMIT_BYTES:
            raise LimitExceeded(
                f"a condition reads {name}, a table of {table.address.size_bytes} bytes; "
                f"the limit is {TABLE_LIMIT_BYTES}"
            )
        head = b""
        for chunk in self._store.stream(table.address):
            if b"\n" not in head:
                head += chunk
        return decode_rows(head.partition(b"\n")[0], name)[0]

    def _rows(self, node: StepNode, bound: Mapping[str, Bound]) -> list[dict[str, Any]] | None:
        """The rows that a row operator works on. Raises LimitExceeded if they are too many."""
        if node.op.grain == "whole":
            return None
        table = bound["rows"]
        assert isinstance(table, Artifact), table
        if table.address.size_bytes > TABLE_LIMIT_BYTES:
            raise LimitExceeded(
                f"{node.name} has a table of {table.address.size_bytes} bytes; "
                f"the limit is {TABLE_LIMIT_BYTES}"
            )
        rows = decode_rows(self._store.read(table.address))
        count = len(rows) * node.op.samples(node.params)
        if count > ITEMS_LIMIT:
            raise LimitExceeded(
                f"{node.name} has {count} items (rows times samples); the limit is {ITEMS_LIMIT}"
            )
        return rows

    def cached(self, tasks: Sequence[str]) -> dict[str, Cached]:
        """What the action cache holds of `tasks`."""
        found: dict[str, Cached] = {}
        for start in range(0, len(tasks), _PAGE):
            page = tasks[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            rows = self._database.read(
                f"SELECT task, result, usd, made_ms FROM results WHERE task IN ({marks})", page
            )
            found |= {task: Cached(Result.decode(text), *more) for task, text, *more in rows}
        return found

    def _found(self, tasks: Sequence[str]) -> tuple[dict[str, Cached], list[str]]:
        """Hits whose blobs are all there; and the tasks whose blobs are gone."""
        cached = self.cached(tasks)
        needed = {
            task: {
                *map(Digest.parse, hit.result.digests()),
                *parts_of(self._store, hit.result.outputs.values()),
            }
            for task, hit in cached.items()
        }
        there = self._store.has({digest for digests in needed.values() for digest in digests})
        lost = [task for task, digests in needed.items() if not there.issuperset(digests)]
        for task in lost:
            del cached[task]
        return cached, lost

    def assemble(
        self, submission: Submission, step: Step, at_ms: int
    ) -> StepAssembled | StepReopened:
        """A step's output artifacts, from the results of its tasks. Raises StoreError."""
        node = submission.node(step.id)
        try:
            if node.op.grain == "whole":
                record = self._whole(step.id)
            else:
                record = self._assembled(step.id, node)
        except (BlobMissing, DigestMismatch) as error:
            return self._mended(submission, step, error, at_ms) or StepAssembled(
                at_ms, step.id, error=str(error), turn=step.turn
            )
        return StepAssembled(at_ms, step.id, record=pack(record), turn=step.turn)

    def _mended(
        self, submission: Submission, step: Step, error: BlobMissing | DigestMismatch, at_ms: int
    ) -> StepReopened | None:
        digest = error.want if isinstance(error, DigestMismatch) else error.digest
        return self.lost(submission, step, str(digest), at_ms)

    def lost(
        self, submission: Submission, step: Step, digest: str, at_ms: int
    ) -> StepReopened | None:
        """Have a blob that `step` needs made again.

        What another step of the run made, that step makes again; what belongs to the step
        itself (its items, documents, results) comes back with its own expansion. A file of a
        tree is made again with the tree. None for what came from outside, and for what is
        there after all.
        """
        address = Digest.parse(digest)
        made, _ = self._upstream(submission, step.id)
        given = list(submission.artifacts())
        # Of a tree, a file may be what is lost, and either may be what is reported.
        named = [one for one in (*made.values(), *given) if one.address == address]
        wanted = {address} | parts_of(self._store, named)
        makers = [
            source.step for source, one in made.items() if address in parts_of(self._store, [one])
        ]
        is_given = not makers and address in parts_of(self._store, given)
        if is_given or self._store.has(wanted) == wanted:
            return None
        run, own = step.id.split("/", 1)
        maker = StepId(f"{run}/{makers[0] if makers else own}")
        message = f"{digest} was lost from the store again and again"
        return StepReopened(at_ms, maker, message, step.id, step.turn)

    def items(self, step: StepId) -> items.Items:
        ((blob,),) = self._database.read("SELECT items_blob FROM steps WHERE step = ?", (step,))
        return items.decode(self._store.read(Digest.parse(blob))) if blob else items.Items((), ())

    def _whole(self, step: StepId) -> AssembledRecord:
        """The one task's outputs are the step's."""
        (item,) = self.items(step).items
        hit = self.cached([item.task]).get(item.task)
        if hit is None:
            raise _gone(item.task)
        origins = {port: made.digest for port, made in hit.result.origins.items()}
        return AssembledRecord(hit.result.outputs, origins)

    def _assembled(self, step: StepId, node: StepNode) -> AssembledRecord:
        known = self.items(step)
        ((digest,),) = self._database.read(
            "SELECT digest FROM uses WHERE step = ? AND port = 'rows'", (step,)
        )
        rows = decode_rows(self._store.read(Digest.parse(digest)))
        tasks = list(dict.fromkeys(item.task for item in known.items))
        results = {task: self._loaded(hit.result) for task, hit in self.cached(tasks).items()}
        failed = dict(
            self._database.read("SELECT task, message FROM failures WHERE step = ?", (step,))
        )
        failures = {(row, sample): message for row, sample, message in known.refused}
        for item in known.items:
            if item.task not in results:
                if item.task not in failed:
                    raise _gone(item.task)
                failures[item.row, item.sample] = failed[item.task]
        made = assemble(node, rows, known.items, results, failures)
        return AssembledRecord(
            {port: self._table(node, port, table) for port, table in made.tables.items()},
            {
                port: str(self._store.put(items.lines_of(origins)))
                for port, origins in made.origins.items()
            },
        )

    def _loaded(self, result: Result) -> Result:
        if not result.rows_blob:
            return result
        rows = msgspec.json.decode(self._store.read(Digest.parse(result.rows_blob)))
        return Result(rows=rows)

    def _table(self, node: StepNode, port: str, rows: list[dict[str, Any]]) -> Artifact:
        """A table in the store; one without rows keeps the columns that the graph knows."""
        try:
            encoded = encode_rows(rows)
        except (ValueError, TypeError, RecursionError) as error:
            raise SpecError(Problem(f"a row of its output {port!r} is {error}")) from None
        digest = self._store.put(encoded)
        columns = columns_of(rows) or node.columns.get(port) or ()
        return Artifact("table", str(digest), len(rows), columns)


def specs_of(
    node: StepNode,
    expansion: Expansion,
    wanted: Sequence[str],
    where: str,
    saved: Mapping[str, tuple[str, int]],
    trees: tuple[Tree, ...] = (),
) -> tuple[TaskSpec, ...]:
    """Of the tasks whose documents are the lines of the pack `where`; all need `trees`."""
    pure = node.op.determinism(node.params) != "effect"
    devices = node.op.devices(node.params)

    def spec(line: int, task: str) -> TaskSpec:
        amounts = expansion.amounts[task]
        prefix = expansion.prefixes.get(task, Prefix("", 0))
        checkpoint, step = saved.get(task, ("", 0))
        return TaskSpec(
            id=TaskId(task),
            batch_key=expansion.batch_key,
            runtime=node.op.runtime,
            work=amounts.work,
            max_batch=node.op.max_batch,
            pack=where,
            line=line,
            pure=pure,
            devices=devices,
            memory_bytes=node.memory_bytes,
            checkpoint=checkpoint,
            step=step,
            prompt_tokens=amounts.prompt_tokens,
            output_tokens=amounts.output_tokens,
            prefix=prefix.name,
            prefix_tokens=prefix.tokens,
            linger_ms=node.linger_ms,
            trees=trees,
        )

    return tuple(spec(line, task) for line, task in enumerate(wanted))


def _gone(task: str) -> StoreError:
    return StoreError(f"the result of task {task[:12]} is gone from the store; run again")


def decode_outputs(text: str) -> dict[str, Artifact]:
    return msgspec.json.decode(text, type=dict[str, Artifact])


def scope_of(submission: Submission, step: StepId) -> Scope:
    domain = submission.graph.workflow.domain or DEFAULT_DOMAIN
    return Scope(step.split("/", 1)[0], submission.request.tenant, domain)


def _flat(bound: Mapping[str, Bound]) -> list[Artifact]:
    return [artifact for one in bound.values() for artifact in artifacts_of(one)]
