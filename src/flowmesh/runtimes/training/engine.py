"""The engine of the training operators: one task, from its action to its artifacts."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowmesh.runtimes.base import Blobs, Outcome, Work
from flowmesh.runtimes.training.attempts import Start, train
from flowmesh.runtimes.training.isolation import isolated
from flowmesh.runtimes.training.job import Job
from flowmesh.runtimes.training.launch import launched
from flowmesh.runtimes.training.outcomes import outcome_of
from flowmesh.spec.action import Result


def open_trainer(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "TrainingEngine":
    """An `OpenEngine`; the numeric format is told by each action's own parameters."""
    return TrainingEngine(blobs)


class TrainingEngine:
    """Trains one task after the other, and keeps nothing of one for the next."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield outcome_of(work.task, partial(self._train, work))

    def _train(self, work: Work) -> Result:
        blobs = self._blobs

        def here(start: Start, folder: Path) -> Result:
            made = Job(work.action, work.monitor, blobs, start, folder).run()
            assert made is not None, work.task
            return made

        if work.action.params["devices"] > 1:
            return train(work, blobs, lambda start, home: launched(work, blobs, start, home))
        with isolated():
            return train(work, blobs, here)
