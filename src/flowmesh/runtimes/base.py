"""What a worker asks of the code that carries out an operator.

An operator's `entry` names a function `open(blobs, inputs) -> Engine`. The worker
calls it once in a child process of its own, keeps the engine warm, and hands it batch
after batch. An engine may die with its process at any moment; nothing is lost by that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Action, Result


class FailureKind(StrEnum):
    """Why a task failed; it decides about the retry (`core/retry.py`)."""

    INPUT = "input"  #: the row or the parameters are at fault; never retried
    TRANSIENT = "transient"  #: may work elsewhere or later
    MEMORY = "memory"  #: out of memory: a smaller batch may fit
    INTERNAL = "internal"  #: a bug in an operator
    CRASH = "crash"  #: the process died under it; set by the worker, never by a runtime


class Stopped(Exception):
    """Raised by an engine that was asked to stop and has: nothing is left to say of its tasks."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long task is. `facts`: what else is known, as `loss`, `tokens_per_s`, `left_s`."""

    step: int
    steps: int
    facts: Mapping[str, float] = field(default_factory=dict)


class Monitor(Protocol):
    """Where a long task tells how far it is, and hears that it should stop. Calls are cheap."""

    @property
    def interruptions_per_hour(self) -> float:
        """How often this worker is expected to vanish; above 0."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the task should leave a checkpoint at the next safe point and raise Stopped."""
        ...

    def progress(self, progress: Progress) -> None:
        """Tell people; what comes too fast is thinned out."""
        ...

    def saved(self, tree: Digest, step: int) -> None:
        """A checkpoint is whole: `tree`, from `Blobs.put_tree`, is enough to go on from `step`.

        It counts once the worker has brought it to the store; it replaces the one before.
        """
        ...


class Unwatched:
    """A monitor that nobody reads: the task runs to its end."""

    interruptions_per_hour = 0.01
    stopping = False

    def progress(self, progress: Progress) -> None:
        pass

    def saved(self, tree: Digest, step: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Work:
    """One task. `checkpoint`: the tree that an earlier attempt left last, if it left one."""

    task: str
    action: Action
    checkpoint: Digest | None = None
    monitor: Monitor = field(default_factory=Unwatched, compare=False)


@dataclass(frozen=True, slots=True)
class Done:
    task: str
    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """`message` is for the user: what is wrong and what to do. `detail` may hold a traceback."""

    task: str
    kind: FailureKind
    message: str
    detail: str = ""


Outcome = Done | Failed


class Blobs(Protocol):
    """The worker's local copy of the store, seen from inside a child process.

    Every artifact that a batch's actions name is there before the batch starts.
    """

    def path(self, digest: Digest) -> Path:
        """A file with these bytes; not to be written. Raises BlobMissing."""
        ...

    def tree(self, digest: Digest) -> Path:
        """A directory with the files of this tree; not to be written. Raises BlobMissing."""
        ...

    def put(self, content: bytes | Path) -> Digest:
        """Keep bytes or a file; the worker uploads it before it reports the result."""
        ...

    def put_tree(self, folder: Path) -> Digest:
        """Keep the files of a directory as a tree; the digest of its manifest."""
        ...

    def scratch(self) -> Path:
        """An empty directory of this batch, removed after it."""
        ...


class Engine(Protocol):
    """May have an attribute `steps`: passes so far that wrote a token for each of their rows."""

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        """Yield one outcome for each task of the batch, in any order, as each is known.

        `Result.usage.seconds` may stay 0: the worker fills in shares of the batch's time.
        An exception that leaves `run` fails the tasks not yet yielded as `internal`,
        MemoryError as `memory`.
        """
        ...


class OpenEngine(Protocol):
    def __call__(self, blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
        """Open an engine for a batch key.

        Args:
            inputs: of the first action: the model ports are equal over the whole key.
            engine: the actions' `engine`, as `transformers/float32`.
        """
        ...
