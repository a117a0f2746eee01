"""The engine of a model that can not be run: every task fails with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowmesh.runtimes.base import Failed, FailureKind, Outcome, Work


@dataclass(frozen=True, slots=True)
class Refusal:
    """An `Engine` whose answer is always `reason`; the fault is the input's, not the worker's."""

    reason: str

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield Failed(work.task, FailureKind.INPUT, self.reason)
