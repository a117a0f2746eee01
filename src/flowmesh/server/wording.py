"""Decisions in words: what was chosen against what else there was, and why it was that much."""

from collections.abc import Iterator, Mapping

from flowmesh.core.story import Alternative
from flowmesh.core.utility import Score

#: Differences below these are not told; the share is of what the batch is worth.
LEAST_USD, LEAST_SHARE, LEAST_S = 1e-9, 0.005, 0.01
_PARTS = {
    "load_s": "loading",
    "fetch_s": "fetching",
    "exec_s": "executing",
}
_TERMS = {
    "egress": "moving bytes",
    "energy": "energy",
    "risk": "the risk of an interruption",
}
_WORTH = {
    "value": "its tasks",
    "path": "later work that waits for it",
    "urgency": "urgency",
    "fairness": "fairness between tenants",
}
#: What `against` may be about, as its words have it.
TOPICS = (*_PARTS.values(), "price", *_TERMS.values(), *_WORTH.values(), "longer", "later")
#: Reasons as the policy counts them, in words.
_EXCLUDED = {
    "busy": "busy",
    "memory": "too little memory",
    "device memory": "too little device memory",
    "runtime": "without the runtime",
    "devices": "too few devices",
    "draining": "going",
    "held": "held for something better",
}


def usd(amount: float) -> str:
    """Two digits that count: $0.0042."""
    sign, amount = "-" if amount < 0 else "", abs(amount)
    if amount >= 1:
        return f"{sign}${amount:.2f}"
    return f"{sign}${float(f'{amount:.2g}'):.10f}".rstrip("0").rstrip(".")


def short_key(batch_key: str) -> str:
    """A batch key without the digests of its models."""
    parts = batch_key.split("/")
    return "/".join(one for one in parts if not one.startswith("sha256:") and not one.isdigit())


def told(text: str, batch_key: str) -> str:
    """A text of the policy's with the batch key as people read it."""
    return text.replace(batch_key, short_key(batch_key))


def against(chosen: Score, size: int, batch_key: str, other: Alternative) -> str:
    """What would have been different with `other`."""
    place = " ".join(filter(None, (other.kind, other.worker))) or "another worker"
    if other.batch_key != batch_key:
        what = f"{other.size} of {short_key(other.batch_key)} on {place}"
        return f"{what} would have been worth {_rate(other.score)}, less than {_rate(chosen)}"
    batch = f"{place}, {other.size} at once" if other.size != size else place
    more = list(_dearer(chosen, size, other.score, other.size))
    later_s = other.score.wait_s - chosen.wait_s
    if later_s > LEAST_S:
        more.append(f"would have begun {later_s:.1f} s later")
    slower_s = _busy_s(other.score) / other.size - _busy_s(chosen) / size
    if slower_s * size > LEAST_S and not more:
        more.append(f"would have taken {slower_s * size:.1f} s longer")
    if not more:
        return f"{batch} would have been as good"
    return f"{batch} {' and '.join(more)}"


def _dearer(chosen: Score, size: int, other: Score, other_size: int) -> Iterator[str]:
    """Terms that speak against another option, for as many tasks; the heaviest first."""
    scale = size / other_size
    worth = chosen.value + chosen.path + chosen.urgency + chosen.fairness
    least = max(LEAST_USD, LEAST_SHARE * worth)
    found: list[tuple[float, str]] = []
    cost = other.cost * scale - chosen.cost
    if cost > least:
        found.append((cost, f"would have cost {usd(cost)} more{_for(chosen, other, scale)}"))
    for name, words in _TERMS.items():
        more = getattr(other, name) * scale - getattr(chosen, name)
        found.append((more, f"would have cost {usd(more)} more for {words}"))
    for name, words in _WORTH.items():
        less = getattr(chosen, name) - getattr(other, name) * scale
        found.append((less, f"would have been worth {usd(less)} less for {words}"))
    found.sort(key=lambda one: -one[0])
    yield from (words for amount, words in found[:2] if amount > least)


def _for(chosen: Score, other: Score, scale: float) -> str:
    """The part of the time that makes an option dearer."""
    longer = {
        words: getattr(other, name) * scale - getattr(chosen, name)
        for name, words in _PARTS.items()
    }
    words = max(longer, key=longer.__getitem__)
    return f" for {words}" if longer[words] > LEAST_S else " by its price"


def _busy_s(score: Score) -> float:
    return score.load_s + score.fetch_s + score.exec_s


def _rate(score: Score) -> str:
    return f"{usd(score.usd / max(score.seconds, 0.05))} a second"


def why_size(size: int, left: int, limit: int) -> str:
    """Why a batch was as large as it was; `left` of its key stayed ready."""
    if size >= limit:
        return f"{size} at once: the most that its operator takes"
    if not left:
        return f"{size} at once: all that was ready"
    return f"{size} at once though {left} more were ready: a larger batch pays less a second"


def excluded(reasons: Mapping[str, int]) -> str:
    """What kept other pairs of ready work and kinds of workers from it, and how many of them."""
    words = (f"{count} {_EXCLUDED.get(reason, reason)}" for reason, count in reasons.items())
    told_ = ", ".join(words)
    return (
        f"of the pairs of ready work and kinds of workers, not possible: {told_}" if reasons else ""
    )
