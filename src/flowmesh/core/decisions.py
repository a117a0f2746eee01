"""Choices the core makes. The driver journals them, then carries them out."""

from dataclasses import dataclass

from flowmesh.base.ids import LeaseId, TaskId, WorkerId
from flowmesh.core.utility import Score


@dataclass(frozen=True, slots=True)
class GrantLease:
    """`worker` shall run these tasks as one batch. `score` says why, in dollars by term."""

    at_ms: int
    lease: LeaseId
    worker: WorkerId
    batch_key: str
    tasks: tuple[TaskId, ...]
    score: Score


@dataclass(frozen=True, slots=True)
class LoseWorker:
    """`worker` has been silent for too long: its leases end, their tasks go back."""

    at_ms: int
    worker: WorkerId


Decision = GrantLease | LoseWorker
DECISIONS: tuple[type, ...] = (GrantLease, LoseWorker)
