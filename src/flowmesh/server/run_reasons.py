"""How a run went, by steps: where its batches were, what they took and what they waited for."""

from collections import Counter
from collections.abc import Mapping

import msgspec

from flowmesh.core.story import Alternative
from flowmesh.core.utility import Score
from flowmesh.planning import RunExplanation, StepExplanation
from flowmesh.server import wording
from flowmesh.server.driver import Driver
from flowmesh.server.reasons import Kept
from flowmesh.stores.sqlite import Database
from flowmesh.wire import RunView, StepView

#: Reasons that are told of a run; leases of a step that are looked at for them.
REASONS, LEASES_READ = 5, 1_000


def explain_run(driver: Driver, view: RunView, waits: Mapping[str, str]) -> RunExplanation:
    """`waits` says by step what its tasks wait for now."""
    reasons: Counter[str] = Counter()
    steps, sampled = [], 0
    for step in view.steps:
        made, kept = _step(driver.database, view.run, step, waits.get(step.step, ""), reasons)
        steps.append(made)
        sampled += kept
    return RunExplanation(
        run=view.run,
        status=view.status,
        steps=steps,
        reasons=[_counted(words, count) for words, count in reasons.most_common(REASONS)],
        decisions=view.batches,
        sampled=sampled,
    )


def _counted(words: str, count: int) -> str:
    return f"{words} ({count} times)" if count > 1 else words


def _step(
    database: Database, run: str, step: StepView, waits_for: str, reasons: Counter[str]
) -> tuple[StepExplanation, int]:
    """One step; and how many of its decisions were kept. Adds to `reasons`."""
    rows = database.read(
        "SELECT l.worker, l.batch_key, l.tasks, l.score, l.granted_ms, s.seconds, s.usd,"
        " d.explained FROM lease_steps s JOIN leases l USING (lease)"
        " LEFT JOIN decisions d USING (lease) WHERE s.step = ? ORDER BY s.lease LIMIT ?",
        (f"{run}/{step.step}", LEASES_READ),
    )
    where: Counter[str] = Counter()
    waited_s: list[float] = []
    sizes: list[int] = []
    seconds = usd = 0.0
    for worker, key, tasks, score, granted_ms, took_s, cost, explained in rows:
        where[worker] += 1
        sizes.append(tasks)
        seconds, usd = seconds + took_s, usd + cost
        if explained is None:
            continue
        kept = msgspec.json.decode(explained, type=Kept)
        waited_s.append(max(0, granted_ms - kept.ready_ms) / 1000)
        reasons.update(_reasons(key, tasks, score, kept))
    made = StepExplanation(
        step=step.step,
        op=step.op,
        status=step.status,
        tasks=step.tasks,
        batches=len(rows),
        where=dict(where),
        seconds=seconds,
        usd=usd,
        wait_s=max(waited_s, default=0.0),
        waits_for=waits_for,
    )
    made.words = _in_words(step, sizes, waits_for)
    return made, len(waited_s)


def _in_words(step: StepView, sizes: list[int], waits_for: str) -> str:
    words = []
    if sizes:
        of = f"{min(sizes)} to {max(sizes)}" if min(sizes) != max(sizes) else f"{sizes[0]}"
        words.append(f"batches of {of}")
    if step.tasks.reused:
        words.append(f"{step.tasks.reused} were there already")
    if step.tasks.joined:
        words.append(f"{step.tasks.joined} joined others' work")
    if waits_for:
        words.append(f"waits for {waits_for}")
    return ", ".join(words)


def _reasons(key: str, tasks: int, score: str, kept: Kept) -> list[str]:
    """What spoke against the first runner-up, and what its batch was held for."""
    found = [wording.told(words, key) for words in kept.held if key in words]
    chosen = msgspec.json.decode(score, type=Score)
    for other in kept.runners_up[:1]:
        found.append(_kind_of(chosen, tasks, key, other))
    return found


def _kind_of(chosen: Score, tasks: int, key: str, other: Alternative) -> str:
    """A reason without the figures of one decision, so that equal ones can be counted."""
    if other.batch_key != key:
        return f"other work was worth less: {wording.short_key(other.batch_key)}"
    words = wording.against(chosen, tasks, key, other)
    what = [term for term in wording.TOPICS if term in words] or ["later"]
    return f"{other.kind or other.worker or 'another worker'} was worse for {what[0]}"
