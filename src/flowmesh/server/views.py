"""What people see of runs: read from the tables, never from the core's memory."""

import json
from typing import Any

import msgspec

from flowmesh.base.errors import NotFound, Problem, SpecError, StoreError
from flowmesh.base.ids import RunId, StepId
from flowmesh.server.driver import Driver
from flowmesh.server.lineage import Place, node_of
from flowmesh.server.project import ProgressRecord
from flowmesh.server.steps import decode_outputs
from flowmesh.server.submission import view_of
from flowmesh.spec.nodes import Graph, StepOutput, candidates
from flowmesh.wire import (
    ArtifactView,
    ProgressView,
    RowFailure,
    RunPage,
    RunView,
    StepView,
    TaskCounts,
)

FAILURES_SHOWN = 20

_RUN = (
    "run, tenant, name, status, message, submitted_ms, settled_ms, batches, usd, saved_usd,"
    " deadline_ms, budget_usd, objective"
)
_STEP = (
    "step, name, op, status, message, items, pending, executed, reused, joined, failed,"
    " rows_refused, outputs"
)


class Views:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._read = driver.database.read

    def run(self, run: RunId, tenant: str) -> RunView:
        """A tenant's run with its steps and first failures. Raises NotFound."""
        rows = self._read(f"SELECT {_RUN} FROM runs WHERE run = ? AND tenant = ?", (run, tenant))
        if not rows:
            raise NotFound(f"tenant {tenant} has no run {run}; `flowmesh runs` lists those it has")
        view = _run_view(rows[0], self._driver.now_ms())
        steps = self._read(f"SELECT {_STEP} FROM steps WHERE run = ? ORDER BY position", (run,))
        view.steps = [_step_view(row) for row in steps]
        for row, step in zip(steps, view.steps, strict=True):
            if step.status == "running" and step.items == 1:
                step.progress = self._progress(row[0])
            if step.status == "cancelled" and step.items == 1:
                step.progress = self._stopped(row[0])
        view.tasks = _total(view.steps)
        if view.status == "succeeded":
            view.outputs = _named_outputs(self._driver.submissions.of(run).graph, view.steps)
        view.failures = self._failures(run)
        return view

    def runs(self, tenant: str | None, limit: int, after: str | None) -> RunPage:
        """Runs from the newest on, without their steps; `after` is a page's `next`."""
        when, last = _page(after)
        found = self._read(
            f"SELECT {_RUN} FROM runs WHERE (submitted_ms, run) < (?, ?)"
            " AND (? IS NULL OR tenant = ?) ORDER BY submitted_ms DESC, run DESC LIMIT ?",
            (when, last, tenant, tenant, limit + 1),
        )
        views = [_run_view(row, self._driver.now_ms()) for row in found[:limit]]
        for view in views:
            counts = self._read(
                "SELECT sum(executed), sum(reused), sum(joined), sum(failed), sum(pending)"
                " FROM steps WHERE run = ?",
                (view.run,),
            )
            view.tasks = _counts(*counts[0])
        more = len(found) > limit
        token = f"{views[-1].submitted_ms}:{views[-1].run}" if more else None
        return RunPage(runs=views, next=token)

    def _progress(self, step: str) -> ProgressView | None:
        """Of the one task of a step; None while it has not said how far it is."""
        try:
            (item,) = self._driver.items(StepId(step)).items
        except StoreError:
            return None  # what is lost is found, and told, by whoever needs it
        found = self._read(
            "SELECT step, steps, record, saved_step, at_ms FROM progress WHERE task = ?",
            (item.task,),
        )
        if not found:
            return None
        ((number, steps, text, saved_step, at_ms),) = found
        record = msgspec.json.decode(text, type=ProgressRecord)
        return ProgressView(
            step=number,
            steps=steps,
            facts=record.facts,
            saved_step=saved_step,
            message=record.message,
            at_ms=at_ms,
        )

    def _stopped(self, step: str) -> ProgressView | None:
        """Where a long task was stopped; None for one that leaves no checkpoints, or is done."""
        node = node_of(self._driver, Place("", step, ""))
        if node is None or not node.op.resumable:
            return None
        if (known := self._progress(step)) is not None:
            return known
        try:
            (item,) = self._driver.items(StepId(step)).items
        except StoreError:
            return None
        is_done = bool(self._read("SELECT 1 FROM results WHERE task = ?", (item.task,)))
        return None if is_done else ProgressView(step=0, steps=0)

    def _is_whole(self, step: str) -> bool:
        node = node_of(self._driver, Place("", step, ""))
        return node is not None and node.op.grain == "whole"

    def _failures(self, run: RunId) -> list[RowFailure]:
        """The first failed rows: those whose task failed, and those that became none."""
        found = self._read(
            "SELECT f.step, f.task, f.kind, f.message, f.detail, s.name FROM failures f"
            " JOIN steps s USING (step) WHERE s.run = ? ORDER BY s.position, f.at_ms LIMIT ?",
            (run, FAILURES_SHOWN),
        )
        refusing = self._read(
            "SELECT step, name FROM steps WHERE run = ? AND rows_refused > 0 ORDER BY position",
            (run,),
        )
        steps = dict.fromkeys([*(row[0] for row in found), *(step for step, _ in refusing)])
        items = {step: self._driver.items(step) for step in steps}
        whole = {step for step in steps if self._is_whole(step)}
        failed = [
            RowFailure(
                step=name,
                row=item.row,
                sample=item.sample,
                kind=kind,
                message=message,
                detail=detail,
                whole=step in whole,
            )
            for step, task, kind, message, detail, name in found
            for item in items[step].items
            if item.task == task
        ]
        refused = [
            RowFailure(step=name, row=row, sample=sample, kind="input", message=message)
            for step, name in refusing
            for row, sample, message in items[step].refused[:FAILURES_SHOWN]
        ]
        return [*failed, *refused][:FAILURES_SHOWN]


def _page(after: str | None) -> tuple[int, str]:
    """Where a page begins, from the `next` of the one before."""
    if after is None:
        return 2**62, ""
    when, _, last = after.partition(":")
    if not (when.isascii() and when.isdecimal()) or len(when) > 18 or not last:
        raise SpecError(Problem(f"{after[:80]!r} is not what a page gave as its `next`"))
    return int(when), last


def _run_view(row: tuple[Any, ...], now_ms: int) -> RunView:
    run, tenant, name, status, message, submitted_ms, settled_ms, *rest = row
    batches, usd, saved_usd, deadline_ms, budget_usd, objective = rest
    late = bool(deadline_ms) and (settled_ms or now_ms) > deadline_ms
    met = None if not deadline_ms or not (late or settled_ms) else not late
    return RunView(
        run=run,
        tenant=tenant,
        name=name,
        status=status,
        message=message,
        submitted_ms=submitted_ms,
        settled_ms=settled_ms,
        seconds=((settled_ms or now_ms) - submitted_ms) / 1000,
        batches=batches,
        cost_usd=usd,
        saved_usd=saved_usd,
        budget_usd=budget_usd,
        deadline_ms=deadline_ms,
        deadline_met=met if met is None else met and status == "succeeded",
        objective=objective,
    )


def _step_view(row: tuple[Any, ...]) -> StepView:
    _, name, op, status, message, items, pending, *counts, rows_refused, outputs = row
    executed, reused, joined, failed = counts
    tasks = _counts(executed, reused, joined, failed, pending)
    return StepView(
        step=name,
        op=op,
        status=status,
        message=message,
        items=items,
        done=tasks.total - pending,
        tasks=tasks,
        rows_refused=rows_refused,
        outputs={port: view_of(made) for port, made in decode_outputs(outputs).items()},
    )


def _counts(executed: int, reused: int, joined: int, failed: int, pending: int) -> TaskCounts:
    return TaskCounts(
        total=executed + reused + joined + failed + pending,
        executed=executed,
        reused=reused,
        joined=joined,
        failed=failed,
    )


def _total(steps: list[StepView]) -> TaskCounts:
    return TaskCounts(
        **{
            name: sum(getattr(step.tasks, name) for step in steps)
            for name in TaskCounts.model_fields
        }
    )


def _named_outputs(graph: Graph, steps: list[StepView]) -> dict[str, ArtifactView]:
    """The workflow's outputs; those of a skipped step are left out.

    Of what a loop carries, the one of the last round that was not skipped.
    """
    made = {
        StepOutput(step.step, port): one for step in steps for port, one in step.outputs.items()
    }
    found: dict[str, ArtifactView] = {}
    for name, source in graph.outputs.items():
        there = [made[one] for one in candidates(source) if one in made]
        if there:
            found[name] = there[-1]
    return found


def as_event(view: RunView) -> bytes:
    """One server-sent event."""
    return b"event: run\ndata: " + json.dumps(view.model_dump(mode="json")).encode() + b"\n\n"
