"""The engine of the training operators: one task, from its action to its artifacts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.rows import TableError
from flowmesh.runtimes.training.isolation import isolated
from flowmesh.runtimes.training.job import Job
from flowmesh.runtimes.training.refused import Refused, Unfinished
from flowmesh.runtimes.weights import ModelRefused


def open_trainer(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "TrainingEngine":
    """An `OpenEngine`; the numeric format is told by each action's own parameters."""
    return TrainingEngine(blobs)


class TrainingEngine:
    """Trains one task after the other, and keeps nothing of one for the next."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield self._outcome(work)

    def _outcome(self, work: Work) -> Outcome:
        with isolated():
            try:
                return Done(work.task, Job(work, self._blobs).run())
            except (Refused, ModelRefused, TableError) as error:
                return Failed(work.task, FailureKind.INPUT, str(error))
            except MemoryError as error:
                return Failed(work.task, FailureKind.MEMORY, str(error) or "out of memory")
            except Unfinished as error:
                return Failed(work.task, FailureKind.INTERNAL, str(error))
