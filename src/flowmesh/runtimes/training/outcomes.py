"""What a training's end means for its task."""

from collections.abc import Callable

from flowmesh.runtimes.base import Done, Failed, FailureKind, Outcome
from flowmesh.runtimes.rows import TableError
from flowmesh.runtimes.training.refused import LaunchFailed, Refused, Unfinished
from flowmesh.runtimes.weights import ModelRefused
from flowmesh.spec.action import Result


def outcome_of(task: str, train: Callable[[], Result]) -> Outcome:
    """Done, or failed with words for the user. What nobody foresaw goes on as an exception."""
    try:
        return Done(task, train())
    except (Refused, ModelRefused, TableError) as error:
        return Failed(task, FailureKind.INPUT, str(error))
    except MemoryError as error:
        return Failed(task, FailureKind.MEMORY, str(error) or "out of memory")
    except Unfinished as error:
        return Failed(task, FailureKind.INTERNAL, str(error))
    except LaunchFailed as error:
        return Failed(task, error.kind, str(error), error.detail)
