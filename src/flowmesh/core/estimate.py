"""How long work takes: learnt by batch key from results, as seconds for each unit of work."""

from flowmesh.core.records import Estimate

#: Before anything is known of a key.
PRIOR = Estimate(unit_s=0.01, seen=0)
#: Weight of the newest result once enough are seen; before that, the plain mean.
RECENCY = 0.1
#: Seconds that a cold engine costs; a worker that has the key warm saves them.
COLD_START_S = 5.0
#: Seconds that any batch costs before its first task: fetch, hand over, report.
BATCH_START_S = 0.02


def learnt(old: Estimate | None, work: float, seconds: float) -> Estimate:
    """The estimate after one more task of `work` units took `seconds`."""
    known = old or PRIOR
    weight = max(RECENCY, 1 / (known.seen + 1))
    unit_s = known.unit_s + weight * (seconds / max(work, 1e-9) - known.unit_s)
    return Estimate(unit_s, known.seen + 1)


def start_s(*, warm: bool) -> float:
    """Seconds before a batch's first task runs."""
    return BATCH_START_S if warm else BATCH_START_S + COLD_START_S
