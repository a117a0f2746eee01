"""Why the policy chose as it did: what it keeps of its last decisions, for `explain`."""

from dataclasses import dataclass, field

from flowmesh.core.decisions import Decision
from flowmesh.core.utility import Score

#: Decisions that are remembered.
STORY_LIMIT = 1_000
#: Alternatives that are kept of each.
RUNNERS_UP = 3


@dataclass(frozen=True, slots=True)
class Alternative:
    """What could have been done instead.

    `worker` is an id, or empty where any idle worker of `kind` would have done.
    """

    batch_key: str
    worker: str
    kind: str
    size: int
    score: Score


@dataclass(frozen=True, slots=True)
class Explained:
    """A decision, the best of what was not chosen, and what could not be.

    Attributes:
        runners_up: the best first.
        excluded: why other pairs of a ready batch key and a kind of worker were impossible:
            a reason, as `busy` or `memory`, and of how many pairs.
        held: batch keys that wait for a better worker or a fuller batch, and why, in words.
    """

    decision: Decision
    runners_up: tuple[Alternative, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    held: tuple[str, ...] = ()
