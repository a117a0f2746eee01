"""Why the policy chose as it did: what it keeps of its last decisions, for `explain`."""

from collections.abc import Callable
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
class Reasons:
    """The best of what was not chosen, and what could not be.

    Attributes:
        runners_up: the best first.
        excluded: why other pairs of a ready batch key and a kind of worker were impossible:
            a reason, as `busy` or `memory`, and of how many pairs.
        held: batch keys that wait for a better worker or a fuller batch, and why, in words.
    """

    runners_up: tuple[Alternative, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    held: tuple[str, ...] = ()


class Explained:
    """A decision and its reasons, which are put into words when somebody first asks for them.

    `tell` must have kept all that it needs as it was when the decision was made.
    """

    __slots__ = ("_tell", "_told", "decision")

    def __init__(self, decision: Decision, tell: Callable[[], Reasons] = Reasons) -> None:
        self.decision = decision
        self._tell: Callable[[], Reasons] | None = tell
        self._told = _NO_REASONS

    @property
    def reasons(self) -> Reasons:
        if self._tell is not None:
            self._told, self._tell = self._tell(), None
        return self._told

    @property
    def runners_up(self) -> tuple[Alternative, ...]:
        return self.reasons.runners_up

    @property
    def excluded(self) -> dict[str, int]:
        return self.reasons.excluded

    @property
    def held(self) -> tuple[str, ...]:
        return self.reasons.held


_NO_REASONS = Reasons()
