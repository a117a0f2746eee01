"""One isolated pipeline: a workflow in a process of its own, with its own model, and no service.

    python bench/isolated.py WORKFLOW.yaml ROWS.jsonl STORE TREES MODEL_DIGEST OUT.json

What a careful team writes for itself: the same operators and engines as FlowMesh runs, each
model loaded once, equal rows of a table answered once, and full batches within a step. There is
no scheduler, no journal and no cache of results. `bench/tenants.py` runs many of these.
"""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Engine, Work
from flowmesh.sdk.prepare import prepare
from flowmesh.server.submission import Submission
from flowmesh.spec.action import Action, Artifact, Bound, Result
from flowmesh.spec.assemble import assemble
from flowmesh.spec.expand import Expansion, Scope, expand
from flowmesh.spec.nodes import StepNode, StepOutput
from flowmesh.spec.table import decode_rows, encode_rows
from flowmesh.stores.files import FileStore
from flowmesh.wire import ArtifactView, CreateRun
from flowmesh.worker.child import LocalBlobs


class Pipeline:
    """Runs a workflow's steps one after another, in this process."""

    def __init__(self, submission: Submission, store: FileStore, trees: Path) -> None:
        self._submission, self._store = submission, store
        self._blobs = LocalBlobs(store, trees)
        self._engines: dict[tuple[object, ...], Engine] = {}
        self._made: dict[StepOutput, Artifact] = {}
        self.executed = 0

    def run(self) -> dict[str, str]:
        """All steps; the digests of what they made, by `step.port`."""
        graph = self._submission.graph
        for name in graph.order:
            node = graph.steps[name]
            bound = self._submission.bind(node.inputs, self._made)
            self._run_step(node, bound)
        return {f"{one.step}.{one.port}": made.digest for one, made in self._made.items()}

    def _run_step(self, node: StepNode, bound: Mapping[str, Bound]) -> None:
        rows = None
        if node.op.grain == "row":
            table = bound["rows"]
            assert isinstance(table, Artifact), table
            rows = decode_rows(self._store.read(table.address))
        expansion = expand(node, bound, rows, Scope("run", "tenant", "domain"))
        results = self._results(node, expansion)
        if rows is None:
            (result,) = results.values()
            for port, artifact in result.outputs.items():
                self._made[StepOutput(node.name, port)] = artifact
            return
        for port, made in assemble(node, rows, expansion.items, results, {}).tables.items():
            digest = str(self._store.put(encode_rows(made)))
            columns = tuple(made[0]) if made else ()
            self._made[StepOutput(node.name, port)] = Artifact("table", digest, len(made), columns)

    def _results(self, node: StepNode, expansion: Expansion) -> dict[str, Result]:
        works = [Work(task, Action.of(one)) for task, one in expansion.actions.items()]
        results: dict[str, Result] = {}
        for start in range(0, len(works), node.op.max_batch):
            batch = works[start : start + node.op.max_batch]
            for outcome in self._engine(node, batch).run(batch):
                assert isinstance(outcome, Done), outcome
                results[outcome.task] = outcome.result
        self.executed += len(results)
        return results

    def _engine(self, node: StepNode, batch: Sequence[Work]) -> Engine:
        """Opened once: steps with the same engine and models share it."""
        action = batch[0].action
        models = (str(action.inputs[port]) for port in node.op.inputs if port == "model")
        key = (node.op.entry, action.engine, *models)
        if key not in self._engines:
            module, _, name = node.op.entry.partition(":")
            opened = getattr(importlib.import_module(module), name)
            self._engines[key] = opened(self._blobs, action.inputs, action.engine)
        self._blobs.enter(Path(self._store.root) / "scratch")
        return self._engines[key]


def main() -> None:
    workflow, rows, store_root, trees, model, out = sys.argv[1:]
    store = FileStore(Path(store_root))
    prepared = prepare(workflow, inputs={"questions": rows})
    for content in prepared.blobs.values():
        store.put(content)
    request = CreateRun(
        document=prepared.document,
        key="isolated",
        inputs=dict(prepared.inputs),
        models={"chat": ArtifactView(kind="tree", digest=model)},
    )
    pipeline = Pipeline(Submission.of(request, catalog()), store, Path(trees))
    made = pipeline.run()
    Path(out).write_text(json.dumps({"made": made, "executed": pipeline.executed}))


if __name__ == "__main__":
    main()
