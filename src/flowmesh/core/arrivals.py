"""The law of arrivals: how tasks of each batch key come in, so that more can be foreseen.

A mean that forgets: what one burst brought is no forecast, what came again and again is.
"""

from math import exp, inf

from flowmesh.core.knowledge import Arrivals
from flowmesh.core.state import State

#: What came so long ago weighs a third.
MEMORY_S = 900.0
#: Most batch keys that are remembered; at the limit the one that is quiet for longest goes.
KEPT = 10_000
#: What the newest gap and size weigh at least in their means.
NEW = 0.25
#: Expansions from which on there is a pattern, the share by which its gaps may differ (chance
#: alone makes 0.74 of them), and how many gaps without one end it.
OFTEN = 3
EVEN = 0.4
OVERDUE = 1.5


def note(state: State, batch_key: str, tasks: int) -> None:
    """A step wants `tasks` new tasks of `batch_key`."""
    if not tasks:
        return
    old = state.arrivals.pop(batch_key, None)
    state.arrivals[batch_key] = _next(old, state.now_ms, tasks)
    if len(state.arrivals) > KEPT:
        del state.arrivals[next(iter(state.arrivals))]


def _next(old: Arrivals | None, now_ms: int, tasks: int) -> Arrivals:
    if old is None:
        return Arrivals(now_ms, 1.0, float(tasks), size=float(tasks))
    gap_s = (now_ms - old.at_ms) / 1000
    kept = exp(-gap_s / MEMORY_S)
    new = max(NEW, 1 / old.seen)
    error_s = abs(gap_s - old.gap_s) if old.gap_s else 0.0
    return Arrivals(
        at_ms=now_ms,
        steps=old.steps * kept + 1,
        tasks=old.tasks * kept + tasks,
        seen=old.seen + 1,
        gap_s=old.gap_s + new * (gap_s - old.gap_s),
        spread_s=old.spread_s + new * (error_s - old.spread_s),
        size=old.size + max(NEW, 1 / (old.seen + 1)) * (tasks - old.size),
    )


def rate_per_s(state: State, batch_key: str) -> float:
    """Tasks of `batch_key` that are expected to come in each second from now on.

    One expansion foretells nothing; the further ones count more and more.
    """
    known = state.arrivals.get(batch_key)
    if known is None:
        return 0.0
    kept = exp(-(state.now_ms - known.at_ms) / 1000 / MEMORY_S)
    steps = known.steps * kept
    return known.tasks * kept / MEMORY_S * max(0.0, 1 - 1 / max(steps, 1e-9))


def next_s(state: State, batch_key: str) -> float:
    """Seconds until tasks of `batch_key` are expected next; infinite where nothing is foreseen.

    When they are overdue, the longer they have been, the less soon they are expected.
    """
    known = state.arrivals.get(batch_key)
    if known is None or known.seen < 2:
        return inf
    since_s = (state.now_ms - known.at_ms) / 1000
    return known.gap_s - since_s if since_s < known.gap_s else since_s


def regular(known: Arrivals, now_ms: int) -> bool:
    """Whether they come like clockwork, and are not overdue by much."""
    overdue = (now_ms - known.at_ms) / 1000 > OVERDUE * known.gap_s
    return known.seen >= OFTEN and known.spread_s <= EVEN * known.gap_s and not overdue
