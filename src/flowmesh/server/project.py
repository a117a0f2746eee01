"""From what a record changed to rows of the read models: a pure function.

The core keeps what it needs; people ask for more. What only people need travels in the
events' opaque `record` fields, as the dataclasses below, so that the journal holds it all.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flowmesh.base.ids import LeaseId, RunId, StepId, TaskId
from flowmesh.core.decisions import Decision, GrantLease
from flowmesh.core.events import Event, RunSubmitted, StepAssembled, StepExpanded
from flowmesh.core.records import Run, RunStatus, Step
from flowmesh.core.state import Accepted, Changes, Progressed
from flowmesh.spec.action import Artifact
from flowmesh.stores.base import Statement


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Of RunSubmitted. `request` is the `wire.CreateRun` as JSON; `steps` are (name, operator)."""

    name: str
    request: str
    steps: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Use:
    """One artifact that a step read. `port` is `tables/judged` for a named one of many.

    `source` is `steps.<name>.<port>`, `inputs.<name>`, `models.<name>` or `files.<path>`.
    """

    port: str
    artifact: Artifact
    source: str


@dataclass(frozen=True, slots=True)
class ExpandedRecord:
    """Of StepExpanded. `items_blob`: JSON lines `[row, sample, task or null, message]`."""

    items_blob: str = ""
    uses: list[Use] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AssembledRecord:
    """Of StepAssembled. `origins`: by output port, a blob of JSON lines, one each row of it.

    A line is `[input port, input row]` or, of a row operator, `[input port, input row, sample]`.
    """

    outputs: dict[str, Artifact] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """Of TaskProgressed without a checkpoint; `facts` and `message` as `wire.TaskProgress` has."""

    steps: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    message: str = ""


def pack(record: object) -> str:
    return msgspec.json.encode(record).decode()


def statements(event: Event, decisions: Sequence[Decision], changes: Changes) -> list[Statement]:
    """All rows that one journal record changes, in order."""
    own = _of_event(event, changes) if changes.heard else ()
    return [*own, *_of_changes(event.at_ms, decisions, changes)]


def _of_event(event: Event, changes: Changes) -> Iterator[Statement]:
    match event:
        case RunSubmitted():
            yield from _new_run(event)
        case StepExpanded() if event.record:
            record = msgspec.json.decode(event.record, type=ExpandedRecord)
            yield (
                "UPDATE steps SET items_blob = ?, rows_refused = ? WHERE step = ?",
                (record.items_blob, event.rows_failed, event.step),
            )
            for use in record.uses:
                yield from _use(event.step, use)
            if event.saved_usd:
                yield _saved(changes.steps[event.step].run, event.saved_usd)
        case StepAssembled() if event.record:
            record_ = msgspec.json.decode(event.record, type=AssembledRecord)
            yield from _assembled(event.step, changes.steps[event.step].run, record_)


def _new_run(event: RunSubmitted) -> Iterator[Statement]:
    record, run = msgspec.json.decode(event.record, type=RunRecord), event.run
    yield (
        "INSERT INTO runs (run, tenant, name, status, submitted_ms, request, deadline_ms,"
        " budget_usd, objective) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(run.id, run.tenant, record.name, run.status.value, run.submitted_ms),
            *(record.request, run.deadline_ms, run.budget_usd, run.objective),
        ),
    )
    named = dict(zip((step.id for step in event.steps), record.steps, strict=True))
    for position, step in enumerate(event.steps):
        name, operator = named[step.id]
        yield (
            "INSERT INTO steps (step, run, position, name, op, status) VALUES (?, ?, ?, ?, ?, ?)",
            (step.id, run.id, position, name, operator, step.status.value),
        )


def _use(step: StepId, use: Use) -> Iterator[Statement]:
    made = use.artifact
    yield (
        "INSERT OR REPLACE INTO uses VALUES (?, ?, ?, ?, ?, ?)",
        (made.digest, step, use.port, made.kind, made.rows, use.source),
    )


def _assembled(step: StepId, run: RunId, record: AssembledRecord) -> Iterator[Statement]:
    yield (
        "UPDATE steps SET outputs = ?, origins = ? WHERE step = ?",
        (pack(record.outputs), pack(record.origins), step),
    )
    for port, made in record.outputs.items():
        yield (
            "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?)",
            (made.digest, step, run, port, made.kind, made.rows),
        )


def _of_changes(at_ms: int, decisions: Sequence[Decision], changes: Changes) -> Iterator[Statement]:
    for accepted in changes.accepted:
        yield from _accepted(at_ms, accepted)
    yield from _of_shares(changes.accepted)
    for spent in changes.spent:
        yield from _cost(spent.runs, spent.usd)
    yield from _of_progress(at_ms, changes)
    for step in changes.steps.values():
        yield _step(at_ms, step)
    for run in changes.runs.values():
        if run.status is not RunStatus.RUNNING:
            yield _settled(at_ms, run)
    scores = {
        choice.lease: choice.utility for choice in decisions if isinstance(choice, GrantLease)
    }
    for lease, runs in changes.granted:
        yield (
            "INSERT INTO leases"
            " (lease, worker, batch_key, tasks, score, granted_ms, kind, expected)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(lease.id, lease.worker, lease.batch_key, len(lease.tasks)),
                *(pack(scores[lease.id]), at_ms, lease.kind, pack(lease.expected)),
            ),
        )
        for run_id in runs:
            yield "INSERT INTO lease_runs VALUES (?, ?)", (lease.id, run_id)
            yield "UPDATE runs SET batches = batches + 1 WHERE run = ?", (run_id,)
    for measured in changes.measured:
        yield (
            "UPDATE leases SET timing = ? WHERE lease = ?",
            (pack(measured.timing), measured.lease.id),
        )
    for lease, reason in changes.ended:
        yield (
            "UPDATE leases SET ended_ms = ?, reason = ? WHERE lease = ?",
            (at_ms, reason, lease.id),
        )


def _of_shares(accepted: Sequence[Accepted]) -> Iterator[Statement]:
    """By step and lease: tasks that succeeded, seconds of workers and USD, as shares.

    Runs pay equally, and so do the steps of one run.
    """
    sums: dict[tuple[StepId, LeaseId], tuple[float, ...]] = {}
    for one in accepted:
        result = one.result
        if len(one.runs) > 1:
            for run_id in one.runs:
                yield "INSERT OR IGNORE INTO task_runs VALUES (?, ?)", (result.task, run_id)
        of_run = Counter(step.split("/", 1)[0] for step in one.steps)
        for step in one.steps:
            share = 1 / len(one.runs) / of_run[step.split("/", 1)[0]]
            took = (result.seconds * share, one.usd * share)
            before = sums.get((step, result.lease), (0, 0.0, 0.0))
            more = (0 if result.failure else 1, *took)
            sums[step, result.lease] = tuple(map(sum, zip(before, more, strict=True)))
    for (step, lease), total in sums.items():
        yield (
            "INSERT INTO lease_steps VALUES (?, ?, ?, ?, ?) ON CONFLICT (step, lease)"
            " DO UPDATE SET tasks = tasks + excluded.tasks, seconds = seconds + excluded.seconds,"
            " usd = usd + excluded.usd",
            (step, lease, *total),
        )


def _of_progress(at_ms: int, changes: Changes) -> Iterator[Statement]:
    for progressed in changes.progressed:
        yield from (
            _saved_at(at_ms, progressed) if progressed.checkpoint else _seen(at_ms, progressed)
        )
    for tree in changes.stale:
        yield "INSERT OR IGNORE INTO superseded VALUES (?)", (tree,)
    for task in changes.forgotten:
        yield from _no_progress(task)


def _seen(at_ms: int, progressed: Progressed) -> Iterator[Statement]:
    record = msgspec.json.decode(progressed.record, type=ProgressRecord)
    yield (
        "INSERT INTO progress (task, step, steps, record, at_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (task) DO UPDATE SET step = excluded.step, steps = excluded.steps,"
        " record = excluded.record, at_ms = excluded.at_ms",
        (progressed.task, progressed.step, record.steps, progressed.record, at_ms),
    )


def _saved_at(at_ms: int, progressed: Progressed) -> Iterator[Statement]:
    task, step, tree = progressed.task, progressed.step, progressed.checkpoint
    yield (
        "INSERT OR IGNORE INTO superseded SELECT checkpoint FROM progress"
        " WHERE task = ? AND checkpoint NOT IN ('', ?)",
        (task, tree),
    )
    yield (
        "INSERT INTO progress (task, step, checkpoint, saved_step, at_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (task) DO UPDATE SET step = max(step, excluded.step),"
        " checkpoint = excluded.checkpoint, saved_step = excluded.saved_step,"
        " at_ms = excluded.at_ms",
        (task, step, tree, step, at_ms),
    )


def _no_progress(task: TaskId) -> Iterator[Statement]:
    """A task is done, or given up: its checkpoint is of no more use."""
    yield (
        "INSERT OR IGNORE INTO superseded SELECT checkpoint FROM progress"
        " WHERE task = ? AND checkpoint != ''",
        (task,),
    )
    yield "DELETE FROM progress WHERE task = ?", (task,)


def _step(at_ms: int, step: Step) -> Statement:
    done = step.status.value in ("succeeded", "skipped", "failed", "cancelled")
    counts: tuple[Any, ...] = (
        step.items,
        step.pending,
        step.executed,
        step.reused,
        step.joined,
        step.failed,
    )
    return (
        "UPDATE steps SET status = ?, message = ?, items = ?, pending = ?, executed = ?,"
        " reused = ?, joined = ?, failed = ?, settled_ms = ? WHERE step = ?",
        (step.status.value, step.message, *counts, at_ms if done else None, step.id),
    )


def _settled(at_ms: int, run: Run) -> Statement:
    return (
        "UPDATE runs SET status = ?, message = ?, settled_ms = ? WHERE run = ?",
        (run.status.value, run.message, at_ms, run.id),
    )


def _saved(run: RunId, usd: float) -> Statement:
    return "UPDATE runs SET saved_usd = saved_usd + ? WHERE run = ?", (usd, run)


def _cost(runs: Sequence[RunId], usd: float) -> Iterator[Statement]:
    """What an attempt has cost, split equally among the runs that waited for it."""
    share = usd / len(runs)
    for run_id in runs:
        yield "UPDATE runs SET usd = usd + ? WHERE run = ?", (share, run_id)
        if len(runs) > 1:
            yield _saved(run_id, usd - share)


def _accepted(at_ms: int, accepted: Accepted) -> Iterator[Statement]:
    """A result or a failed attempt, and its cost."""
    result, runs = accepted.result, accepted.runs
    yield from _cost(runs, accepted.usd)
    if result.failure is None:
        where = (accepted.spec_pack, accepted.spec_line, accepted.batch_key)
        took = (at_ms, result.seconds, accepted.usd)
        yield (
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (result.task, result.output, *where, accepted.worker, result.lease, runs[0], *took),
        )
        yield from _no_progress(result.task)
        return
    why = (result.failure.value, result.message)
    yield "INSERT INTO attempts VALUES (?, ?, ?, ?, ?)", (result.lease, result.task, *why, at_ms)
    if accepted.final:
        for step in accepted.steps:
            yield (
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)",
                (step, result.task, *why, result.detail, at_ms),
            )
