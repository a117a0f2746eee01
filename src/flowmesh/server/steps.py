"""What the driver does for the core: expand steps into tasks, assemble their outputs.

Runs in threads: reads tables and the action cache, writes blobs, and answers with an event.
Doing it twice does no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flowmesh.base.digest import Digest, canonical
from flowmesh.base.errors import BlobMissing, DigestMismatch, FlowMeshError, StoreError
from flowmesh.base.ids import StepId, TaskId
from flowmesh.core.events import StepAssembled, StepExpanded, StepReopened
from flowmesh.core.records import TaskSpec
from flowmesh.server import items
from flowmesh.server.project import AssembledRecord, ExpandedRecord, Use, pack
from flowmesh.server.submission import Submission, flat, source_name
from flowmesh.spec.action import Artifact, Bound, Result, artifacts_of
from flowmesh.spec.assemble import assemble
from flowmesh.spec.conditions import holds
from flowmesh.spec.expand import Expansion, Scope, expand
from flowmesh.spec.nodes import StepNode, StepOutput, facts, remaining
from flowmesh.spec.table import columns_of, decode_rows, encode_rows
from flowmesh.spec.templates import RenderError
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database

DEFAULT_DOMAIN = "default"
#: Most items of one step.
ITEMS_LIMIT = 1_000_000
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Cached:
    """What the action cache holds of one task."""

    result: Result
    usd: float


class StepWork:
    def __init__(self, database: Database, store: BlobStore) -> None:
        self._database = database
        self._store = store

    def expand(
        self, submission: Submission, step: StepId, at_ms: int
    ) -> StepExpanded | StepReopened:
        """A step's items and which of their tasks are done already."""
        node = submission.node(step)
        try:
            made, skipped = self._upstream(submission, step)
            if not self._due(submission, node, made, skipped):
                return StepExpanded(at_ms, step, skipped=True)
            sources = remaining(node, skipped)
            if sources is None:
                return StepExpanded(at_ms, step, skipped=True)
            bound = submission.bind(sources, made)
            rows = self._rows(bound["rows"]) if node.op.grain == "row" else None
            scope = _scope(submission, step)
            expansion = expand(node, bound, rows, scope)
        except (BlobMissing, DigestMismatch) as error:
            return self.lost(submission, step, _digest_of(error), at_ms) or StepExpanded(
                at_ms, step, error=str(error)
            )
        except (FlowMeshError, RenderError, ValueError) as error:
            return StepExpanded(at_ms, step, error=str(error))
        if len(expansion.items) > ITEMS_LIMIT:
            message = f"{len(expansion.items)} items are over the limit of {ITEMS_LIMIT} a step"
            return StepExpanded(at_ms, step, error=message)
        uses = [
            Use(port, artifact, source_name(source))
            for (port, source), artifact in zip(flat(sources), _flat(bound), strict=True)
        ]
        return self._expanded(step, at_ms, node, expansion, uses)

    def _expanded(
        self, step: StepId, at_ms: int, node: StepNode, expansion: Expansion, uses: list[Use]
    ) -> StepExpanded:
        tasks = list(expansion.actions)
        found, lost = self._found(tasks)
        wanted = [task for task in tasks if task not in found]
        documents = b"".join(canonical(expansion.actions[task]) + b"\n" for task in wanted)
        where = str(self._store.put(documents)) if wanted else ""
        pure = node.op.determinism(node.params) != "effect"
        specs = tuple(
            TaskSpec(
                id=TaskId(task),
                batch_key=expansion.keys[task][0],
                runtime=node.op.runtime,
                work=expansion.keys[task][1],
                max_batch=node.op.max_batch,
                pack=where,
                line=line,
                pure=pure,
            )
            for line, task in enumerate(wanted)
        )
        blob = self._store.put(items.encode(expansion))
        refused = expansion.failed
        error = refused[0].message if refused and node.on_error == "fail" else ""
        return StepExpanded(
            at_ms,
            step,
            items=len(expansion.items) + len(refused),
            found=len(found),
            wanted=specs,
            rows_failed=len(refused),
            error=error,
            lost=tuple(TaskId(task) for task in lost),
            saved_usd=sum(cached.usd for cached in found.values()),
            record=pack(ExpandedRecord(str(blob), uses)),
        )

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
        """Whether the step's condition holds."""
        if node.when is None:
            return True
        counts: dict[str, int | None] = {}
        for name in node.upstream:
            rows = made.get(StepOutput(name, "rows"))
            counts[name] = None if name in skipped else max(rows.rows, 0) if rows else 0
        return holds(node.when, facts(submission.graph, node, counts))

    def _rows(self, bound: Bound) -> list[dict[str, Any]]:
        assert isinstance(bound, Artifact), bound
        return decode_rows(self._store.read(bound.address))

    def cached(self, tasks: Sequence[str]) -> dict[str, Cached]:
        """What the action cache holds of `tasks`."""
        found: dict[str, Cached] = {}
        for start in range(0, len(tasks), _PAGE):
            page = tasks[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            rows = self._database.read(
                f"SELECT task, result, usd FROM results WHERE task IN ({marks})", page
            )
            found |= {task: Cached(Result.decode(text), usd) for task, text, usd in rows}
        return found

    def _found(self, tasks: Sequence[str]) -> tuple[dict[str, Cached], list[str]]:
        """Hits whose blobs are all there; and the tasks whose blobs are gone."""
        cached = self.cached(tasks)
        needed = {
            task: [Digest.parse(text) for text in hit.result.digests()]
            for task, hit in cached.items()
        }
        there = self._store.has({digest for digests in needed.values() for digest in digests})
        lost = [task for task, digests in needed.items() if not there.issuperset(digests)]
        for task in lost:
            del cached[task]
        return cached, lost

    def assemble(
        self, submission: Submission, step: StepId, at_ms: int
    ) -> StepAssembled | StepReopened:
        """A step's output artifacts, from the results of its tasks."""
        node = submission.node(step)
        try:
            if node.op.grain == "whole":
                record = self._whole(step)
            else:
                record = self._assembled(submission, step, node)
        except (BlobMissing, DigestMismatch) as error:
            return self.lost(submission, step, _digest_of(error), at_ms) or StepAssembled(
                at_ms, step, error=str(error)
            )
        except (FlowMeshError, ValueError) as error:
            return StepAssembled(at_ms, step, error=str(error))
        return StepAssembled(at_ms, step, record=pack(record))

    def lost(
        self, submission: Submission, step: StepId, digest: str, at_ms: int
    ) -> StepReopened | None:
        """Have a blob that `step` needs made again; None for one that came from outside.

        What another step of the run made, that step makes again; what belongs to the step
        itself (its items, documents, results) comes back with its own expansion.
        """
        made, _ = self._upstream(submission, step)
        makers = [source.step for source, artifact in made.items() if artifact.digest == digest]
        outside = {str(artifact.address) for artifact in submission.artifacts()}
        if not makers and digest in outside:
            return None
        run, own = step.split("/", 1)
        maker = StepId(f"{run}/{makers[0] if makers else own}")
        return StepReopened(at_ms, maker, f"{digest} was lost from the store again and again")

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

    def _assembled(self, submission: Submission, step: StepId, node: StepNode) -> AssembledRecord:
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
                port: str(self._store.put(items.lines_of(made.origins[port])))
                for port in made.tables
            },
        )

    def _loaded(self, result: Result) -> Result:
        if not result.rows_blob:
            return result
        rows = msgspec.json.decode(self._store.read(Digest.parse(result.rows_blob)))
        return Result(rows=rows)

    def _table(self, node: StepNode, port: str, rows: list[dict[str, Any]]) -> Artifact:
        """A table in the store; one without rows keeps the columns that the graph knows."""
        digest = self._store.put(encode_rows(rows))
        columns = columns_of(rows) or node.columns.get(port) or ()
        return Artifact("table", str(digest), len(rows), columns)


def _digest_of(error: BlobMissing | DigestMismatch) -> str:
    return str(error.want if isinstance(error, DigestMismatch) else error.digest)


def _gone(task: str) -> StoreError:
    return StoreError(f"the result of task {task[:12]} is gone from the store; run again")


def decode_outputs(text: str) -> dict[str, Artifact]:
    return msgspec.json.decode(text, type=dict[str, Artifact])


def _scope(submission: Submission, step: StepId) -> Scope:
    domain = submission.graph.workflow.domain or DEFAULT_DOMAIN
    return Scope(step.split("/", 1)[0], submission.request.tenant, domain)


def _flat(bound: Mapping[str, Bound]) -> list[Artifact]:
    return [artifact for one in bound.values() for artifact in artifacts_of(one)]
