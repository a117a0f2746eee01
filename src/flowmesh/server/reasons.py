"""Decisions with their reasons, sampled into the tables: what `explain` still knows afterwards.

All are remembered in the policy's ring for a while. Of those, the first leases of every run and
every tenth lease are written down, the newest so many; `leases` holds the score of every one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.machine import ControlPlane
from flowmesh.core.pool import key_of
from flowmesh.core.story import Alternative, Explained
from flowmesh.stores.base import Statement

#: Leases of a run that are kept from its first on, and then each so many of all.
FIRST, EACH = 20, 10
#: Kept in all, and after how many leases those beyond are removed.
LIMIT, TRIM_EACH = 100_000, 1_000


@dataclass(frozen=True, slots=True)
class Kept:
    """What was weighed when a lease was granted; its score is in `leases`.

    Attributes:
        ready_ms: since when its oldest task was ready.
        left: tasks of the same batch key that stayed ready.
        limit: most tasks that the lease could have had.
        runners_up, excluded, held: as `story.Explained` has them.
    """

    ready_ms: int
    left: int
    limit: int
    runners_up: tuple[Alternative, ...] = ()
    excluded: dict[str, int] = field(default_factory=dict)
    held: tuple[str, ...] = ()


def statements(plane: ControlPlane, decisions: Sequence[Decision]) -> Iterator[Statement]:
    """Rows for the leases that were just granted; behind those of `project.statements`."""
    granted = [one for one in decisions if isinstance(one, GrantLease)]
    if not granted:
        return
    told = {id(one.decision): one for one in _newest(plane, 2 * len(decisions))}
    for choice in granted:
        text = msgspec.json.encode(_kept(plane, choice, told.get(id(choice)))).decode()
        yield (
            "INSERT OR REPLACE INTO decisions SELECT ?1, ?2 WHERE ?1 % ?3 = 0 OR (SELECT"
            " min(r.batches) FROM lease_runs l JOIN runs r USING (run) WHERE l.lease = ?1) <= ?4",
            (choice.lease, text, EACH, FIRST),
        )
        if choice.lease % TRIM_EACH == 0:
            yield (
                "DELETE FROM decisions WHERE lease < coalesce((SELECT lease FROM decisions"
                " ORDER BY lease DESC LIMIT 1 OFFSET ?), 0)",
                (LIMIT - 1,),
            )


def recalled(plane: ControlPlane, lease: int) -> Explained | None:
    """From the ring in memory, as long as it is there."""
    story: Sequence[Explained] = getattr(plane.policy, "story", ())
    for one in reversed(tuple(story)):
        if isinstance(one.decision, GrantLease) and one.decision.lease == lease:
            return one
    return None


def _newest(plane: ControlPlane, count: int) -> list[Explained]:
    """Policies need not keep a story; baselines have none."""
    story: Sequence[Explained] = getattr(plane.policy, "story", ())
    return list(islice(reversed(story), count))


def _kept(plane: ControlPlane, choice: GrantLease, told: Explained | None) -> Kept:
    state = plane.state
    tasks = [state.tasks[task] for task in choice.tasks if task in state.tasks]
    left = 0
    for name in dict.fromkeys(key_of(task.spec) for task in tasks):
        left += state.ready[name].count if name in state.ready else 0
    return Kept(
        ready_ms=min((task.since_ms for task in tasks), default=choice.at_ms),
        left=left,
        limit=min((task.batch_limit for task in tasks), default=len(choice.tasks)),
        runners_up=told.runners_up if told else (),
        excluded=dict(told.excluded) if told else {},
        held=told.held if told else (),
    )
