"""Choices the core makes. The driver journals them, then carries them out."""

from dataclasses import dataclass

from flowmesh.base.ids import InstanceId, LeaseId, RunId, TaskId, WorkerId
from flowmesh.core.fleet import Offer
from flowmesh.core.records import Expected
from flowmesh.core.utility import Score


@dataclass(frozen=True, slots=True)
class GrantLease:
    """`worker` shall run these tasks as one batch.

    `utility` says why, in dollars by term. (Journals of before November 2026 have `score`, in
    dollars a second, in its place; nothing reads it.)
    """

    at_ms: int
    lease: LeaseId
    worker: WorkerId
    batch_key: str
    tasks: tuple[TaskId, ...]
    utility: Score = Score()
    expected: Expected = Expected()


@dataclass(frozen=True, slots=True)
class LoseWorker:
    """`worker` has been silent for too long: its leases end, their tasks go back."""

    at_ms: int
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class StopRun:
    """A run may not spend what it needs to go on: it fails, and `reason` says why."""

    at_ms: int
    run: RunId
    reason: str


@dataclass(frozen=True, slots=True)
class LaunchInstance:
    """Rent a machine. The driver asks the provider for one tagged `instance`."""

    at_ms: int
    instance: InstanceId
    offer: Offer
    utility: Score = Score()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DrainInstance:
    """The workers of a rented machine get no new work."""

    at_ms: int
    instance: InstanceId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TerminateInstance:
    """Give a rented machine back, until the provider lists it no more."""

    at_ms: int
    instance: InstanceId
    reason: str = ""


Decision = GrantLease | LoseWorker | StopRun | LaunchInstance | DrainInstance | TerminateInstance
DECISIONS: tuple[type, ...] = (
    GrantLease,
    LoseWorker,
    StopRun,
    LaunchInstance,
    DrainInstance,
    TerminateInstance,
)
