"""Tasks of row operators as an engine gets them, and what came of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.spec.action import Action, Artifact
from flowmesh.spec.operator import Operator
from support.blobs import DirBlobs

ENGINE = "transformers/float32"


def tree(blobs: DirBlobs, folder: Path) -> Artifact:
    return Artifact("tree", str(blobs.put_tree(folder)))


def task_of(op: Operator, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a task, of templates that hold nothing to fill in."""
    params = op.params.model_validate(given)
    return op.task(params, params.model_dump(mode="json"), 0)


def work(name: str, op: str, ports: Mapping[str, Artifact], **given: Any) -> Work:
    return Work(name, Action(op, 1, task_of(catalog()[op], given), dict(ports), ENGINE))


def run(engine: Engine, *batch: Work) -> dict[str, Outcome]:
    found = list(engine.run(batch))
    assert len(found) == len(batch)
    return {outcome.task: outcome for outcome in found}


def row(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Done), outcome
    assert outcome.result.rows is not None
    (only,) = outcome.result.rows
    return only


def refusal(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind is FailureKind.INPUT
    return outcome.message
