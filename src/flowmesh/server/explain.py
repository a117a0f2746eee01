"""Explanations over HTTP: why a task ran where and when it did, and how a run went.

What was weighed is read from the policy's memory, or from the tables, which have a sample of it;
what the chosen option was worth and should take is in the tables for every lease.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query

from flowmesh.base.errors import NotFound, Problem, SpecError
from flowmesh.base.ids import RunId, StepId, TaskId
from flowmesh.core.events import BatchTiming
from flowmesh.core.outlook import Outlook, outlook, waits_for
from flowmesh.core.records import Expected, Task, TaskStatus
from flowmesh.core.utility import Score
from flowmesh.planning import (
    AttemptView,
    OptionView,
    RunExplanation,
    ScoreView,
    TaskExplanation,
    Took,
)
from flowmesh.server import reasons, wording
from flowmesh.server.auth import Tenant, TheDriver
from flowmesh.server.driver import Driver
from flowmesh.server.run_reasons import explain_run
from flowmesh.server.views import Views

routes = APIRouter(prefix="/v1", tags=["explanations"])

#: Digits of a fingerprint that name a task at least.
PREFIX_DIGITS = 6
_PREFIX = re.compile(rf"[0-9a-f]{{{PREFIX_DIGITS},64}}")


@routes.get("/runs/{run}/explain")
async def explain_a_run(run: str, tenant: Tenant, driver: TheDriver) -> RunExplanation:
    """By step: where its batches went, what they took and what they waited for."""
    view = await asyncio.to_thread(Views(driver).run, RunId(run), tenant)
    waits = waits_of(driver, RunId(run))
    return await asyncio.to_thread(explain_run, driver, view, waits)


@routes.get("/runs/{run}/explain/task")
async def explain_a_row(
    run: str,
    tenant: Tenant,
    driver: TheDriver,
    step: str,
    row: Annotated[int, Query(ge=0)] = 0,
    sample: Annotated[int, Query(ge=0)] = 0,
) -> TaskExplanation:
    """Why the task of a row (and sample) of a step ran where and when it did, or will."""
    place = await asyncio.to_thread(_of_row, driver, tenant, (run, step, row, sample))
    return await _explained(driver, tenant, place)


@routes.get("/tasks/{task}/explain")
async def explain_a_task(task: str, tenant: Tenant, driver: TheDriver) -> TaskExplanation:
    """The same for a task by its fingerprint, of which the first digits are enough."""
    if not _PREFIX.fullmatch(task):
        message = (
            f"{task[:80]!r} is no task: expected {PREFIX_DIGITS} to 64 of the hex digits of a"
            " fingerprint, or RUN:STEP:ROW"
        )
        raise SpecError(Problem(message))
    found = await asyncio.to_thread(_named, driver, task)
    try:
        return await _explained(driver, tenant, _Asked(found))
    except NotFound:
        # No more of another tenant's fingerprint than was asked with.
        raise _unknown(task) from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The task that is asked about, and where it stands in a run if that was said."""

    task: TaskId
    run: str = ""
    step: str = ""
    row: int | None = None


@dataclass(frozen=True, slots=True)
class _Live:
    """What only the core knows of a task: nothing of one that it has let go."""

    task: Task | None = None
    outlook: Outlook | None = None
    runs: tuple[RunId, ...] = ()


def _of_row(driver: Driver, tenant: str, where: tuple[str, str, int, int]) -> _Asked:
    """Raises NotFound."""
    run, step, row, sample = where
    Views(driver).run(RunId(run), tenant)
    step_id = StepId(f"{run}/{step}")
    if not driver.database.read("SELECT 1 FROM steps WHERE step = ?", (step_id,)):
        raise NotFound(f"run {run} has no step {step!r}; `flowmesh show {run}` lists them")
    items = driver.items(step_id).items
    for item in items:
        if (item.row, item.sample) == (row, sample):
            return _Asked(TaskId(item.task), run, step, row)
    if not items:
        raise NotFound(f"step {step} of run {run} has no tasks (yet)")
    raise NotFound(f"step {step} of run {run} has no task for row {row}, sample {sample}")


def _named(driver: Driver, prefix: str) -> TaskId:
    """The one task whose fingerprint begins so. Raises NotFound, SpecError."""
    found = [task for task in tuple(driver.plane.state.tasks) if task.startswith(prefix)]
    for table in ("results", "attempts"):
        rows = driver.database.read(
            f"SELECT DISTINCT task FROM {table} WHERE task >= ? AND task < ? LIMIT 5",
            (prefix, f"{prefix}g"),
        )
        found += [TaskId(task) for (task,) in rows]
    distinct = list(dict.fromkeys(found))
    if len(distinct) > 1:
        raise SpecError(Problem(f"{prefix} begins several tasks: give more of its digits"))
    if not distinct:
        raise _unknown(prefix)
    return distinct[0]


def _unknown(task: str) -> NotFound:
    return NotFound(f"no task {task[:12]} is known here; name it by its place: RUN:STEP:ROW")


async def _explained(driver: Driver, tenant: str, asked: _Asked) -> TaskExplanation:
    live = _live(driver, asked.task)
    return await asyncio.to_thread(_Answer(driver, tenant, asked, live).made)


def _live(driver: Driver, task_id: TaskId) -> _Live:
    """On the thread that steps the core."""
    state, policy = driver.plane.state, driver.plane.policy
    task = state.tasks.get(task_id)
    if task is None:
        return _Live()
    runs = tuple(dict.fromkeys(state.steps[one].run for one in state.wants.get(task_id, ())))
    if task.status is TaskStatus.SUCCEEDED:
        return _Live(task, None, runs)
    return _Live(task, outlook(state, task, policy), runs)


def waits_of(driver: Driver, run: RunId) -> dict[str, str]:
    """By step of a run that goes on: what the first of its tasks that waits is waiting for."""
    state, policy = driver.plane.state, driver.plane.policy
    known, found = state.runs.get(run), {}
    for step in known.steps if known else ():
        waiting = (state.tasks[task] for task in state.tasks_of.get(step, ()))
        first = next((task for task in waiting if task.status is not TaskStatus.LEASED), None)
        if first is not None:
            words = waits_for(state, first, policy)
            found[step.removeprefix(f"{run}/")] = wording.told(words, first.spec.batch_key)
    return found


class _Answer:
    """One answer, put together from what the core knew and what the tables have."""

    def __init__(self, driver: Driver, tenant: str, asked: _Asked, live: _Live) -> None:
        self._driver = driver
        self._read = driver.database.read
        self._tenant = tenant
        self._asked = asked
        self._live = live
        self._task = asked.task
        #: Tasks of the key that stayed ready when its lease was granted, and the most it may have.
        self._kept_left: tuple[int, int] | None = None
        self._made = TaskExplanation(task=asked.task, run=asked.run, step=asked.step, row=asked.row)

    def made(self) -> TaskExplanation:
        """Raises NotFound for a task that none of the tenant's runs is known to want."""
        made = self._made
        result = self._result()
        self._sharers(result)
        if not self._asked.run and not made.runs:
            raise _unknown(self._task)
        self._attempts()
        task = self._live.task
        if task is not None:
            made.batch_key, made.status = task.spec.batch_key, task.status.value
            made.ready_ms = task.since_ms
        lease = result["lease"] if result else (task.lease if task else None)
        if lease is not None:
            self._lease(int(lease))
        elif task is not None and self._live.outlook is not None:
            self._waits(task, self._live.outlook)
        elif task is None:
            failed = self._read("SELECT 1 FROM failures WHERE task = ? LIMIT 1", (self._task,))
            made.status = "failed" if failed else "cancelled"
        made.op = made.batch_key.partition("@")[0]
        made.relation = self._relation(result)
        made.words = list(_words(made, self._kept_left))
        return made

    def _result(self) -> dict[str, Any] | None:
        names = ("batch_key", "worker", "lease", "run", "made_ms", "usd")
        rows = self._read(f"SELECT {', '.join(names)} FROM results WHERE task = ?", (self._task,))
        if not rows:
            return None
        found = dict(zip(names, rows[0], strict=True))
        self._made.status, self._made.batch_key = "succeeded", found["batch_key"]
        self._made.usd, self._made.ended_ms = found["usd"], found["made_ms"]
        return found

    def _sharers(self, result: dict[str, Any] | None) -> None:
        """Runs that waited for it together; of other tenants, how many there are."""
        made = self._made
        runs: dict[str, None] = dict.fromkeys(self._live.runs)
        runs |= {result["run"]: None} if result else {}
        shared = self._read("SELECT run FROM task_runs WHERE task = ?", (self._task,))
        runs |= {run: None for (run,) in shared}
        named = self._read("SELECT step FROM failures WHERE task = ?", (self._task,))
        runs |= {step.partition("/")[0]: None for (step,) in named}
        others: dict[str, None] = {}
        for run in runs:
            for (tenant,) in self._read("SELECT tenant FROM runs WHERE run = ?", (run,)):
                if tenant == self._tenant:
                    made.runs.append(run)
                else:
                    others[tenant] = None
        made.other_tenants = len(others)
        if result:
            waiting = max(1, len(shared))
            is_payer = self._asked.run in {*(run for (run,) in shared), result["run"]}
            is_payer = is_payer or not self._asked.run
            made.share_usd = made.usd / waiting if is_payer else 0.0
            made.saved_usd = made.usd - made.share_usd

    def _relation(self, result: dict[str, Any] | None) -> str:
        """How the run that was asked about came by it."""
        run = self._asked.run
        if result is None:
            return "open" if self._live.task is not None else self._made.status
        if not run or result["run"] == run:
            return "executed"
        return "joined" if run in self._made.runs else "reused"

    def _attempts(self) -> None:
        rows = self._read(
            "SELECT lease, kind, message, at_ms FROM attempts WHERE task = ? ORDER BY at_ms",
            (self._task,),
        )
        names = ("lease", "kind", "message", "at_ms")
        self._made.attempts = [AttemptView(**dict(zip(names, row, strict=True))) for row in rows]

    def _waits(self, task: Task, view: Outlook) -> None:
        made = self._made
        made.waits_for = wording.told(view.waits_for, task.spec.batch_key)
        made.why_not = view.excluded
        made.others = [
            OptionView(place=one.worker, kind=one.kind, batch=one.size, score=_score(one.score))
            for one in view.options
        ]

    def _lease(self, lease: int) -> None:
        made = self._made
        rows = self._read(
            "SELECT worker, batch_key, tasks, score, granted_ms, ended_ms, kind, expected, timing"
            " FROM leases WHERE lease = ?",
            (lease,),
        )
        if not rows:
            return
        worker, key, tasks, score, granted_ms, ended_ms, kind, expected, timing = rows[0]
        made.lease, made.worker, made.kind, made.batch = lease, worker, kind, tasks
        made.batch_key = key
        made.granted_ms, made.ended_ms = granted_ms, made.ended_ms or ended_ms
        chosen = _decoded(score, Score)
        made.score = _score(chosen)
        if expected:
            told = _decoded(expected, Expected)
            took = (told.load_s, told.fetch_s, told.exec_s, told.usd, told.joules)
            made.expected = _took(*took)
        if timing:
            one = _decoded(timing, BatchTiming)
            ((usd,),) = self._read("SELECT sum(usd) FROM lease_steps WHERE lease = ?", (lease,))
            made.measured = _took(one.load_s, one.fetch_s, one.exec_s, usd or 0.0, one.joules)
        self._weighed(lease, chosen)

    def _weighed(self, lease: int, chosen: Score) -> None:
        """What else there was: from the policy's memory, else from the sample in the tables."""
        made = self._made
        found = self._read("SELECT explained FROM decisions WHERE lease = ?", (lease,))
        kept = msgspec.json.decode(found[0][0], type=reasons.Kept) if found else None
        story = kept or reasons.recalled(self._driver.plane, lease)
        if kept is not None:
            made.ready_ms = kept.ready_ms
            self._kept_left = (kept.left, kept.limit)
        if made.ready_ms is not None and made.granted_ms is not None:
            # The tables have the time of the event that a decision followed on.
            made.ready_ms = min(made.ready_ms, made.granted_ms)
            made.waited_s = (made.granted_ms - made.ready_ms) / 1000
        if story is None:
            return
        made.sampled = True
        made.why_not = dict(story.excluded)
        made.others = [
            OptionView(
                place=one.worker,
                kind=one.kind,
                batch=one.size,
                score=_score(one.score),
                words=wording.against(chosen, made.batch, made.batch_key, one),
            )
            for one in story.runners_up
        ]
        held = (words for words in story.held if made.batch_key in words)
        made.waits_for = "; ".join(wording.told(words, made.batch_key) for words in held)


def _words(made: TaskExplanation, kept: tuple[int, int] | None) -> Iterator[str]:
    """The answer in sentences."""
    if made.relation == "reused":
        yield f"found in the action cache: an earlier run paid {wording.usd(made.usd)} for it"
    if made.relation == "joined":
        yield "it was in flight for another run already, and joined"
    if made.granted_ms is None:
        if made.waits_for:
            yield f"it waits for {made.waits_for}"
        yield from (f"of the workers, {count} {why}" for why, count in made.why_not.items())
        if made.status == "cancelled":
            yield "no run wants it any more, and nothing came of it"
        return
    if made.waited_s is not None:
        yield (
            "granted as soon as it was ready"
            if made.waited_s < 0.1
            else (f"it was ready for {made.waited_s:.1f} s before it was granted")
        )
    if made.waits_for:
        yield f"it was held before: {made.waits_for}"
    if kept is not None:
        yield wording.why_size(made.batch, *kept)
    elif made.batch:
        yield f"{made.batch} at once"
    yield from (option.words for option in made.others if option.words)
    if words := wording.excluded(made.why_not):
        yield words
    if not made.sampled:
        yield "what else was weighed was not kept: a sample of the decisions is"


def _score(score: Score) -> ScoreView:
    terms = {name: getattr(score, name) for name in Score.__slots__}
    return ScoreView(**terms, usd=score.usd, seconds=score.seconds)


def _took(load_s: float, fetch_s: float, exec_s: float, usd: float, joules: float) -> Took:
    return Took(load_s=load_s, fetch_s=fetch_s, exec_s=exec_s, usd=usd, joules=joules)


def _decoded(text: str, cls: type[Any]) -> Any:
    """Of a lease that an older version wrote, what it did not have is zero."""
    try:
        return msgspec.json.decode(text, type=cls)
    except msgspec.DecodeError:
        return cls()
