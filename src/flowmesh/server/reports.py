"""From what a worker says to what the core hears. Nothing that it says is believed unread."""

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.ids import InstanceId, LeaseId, TaskId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import checkpoints
from flowmesh.core.events import BatchTiming, TaskResult, WorkerSynced
from flowmesh.core.fleet import Device
from flowmesh.core.records import Failure
from flowmesh.core.renting import LEAST_USD_PER_HOUR
from flowmesh.core.state import State
from flowmesh.spec.action import Result
from flowmesh.wire import COUNT_LIMIT, SyncRequest, TaskReport

#: What a task may have taken beyond the time since the grant of its lease: clocks differ.
CLOCKS_S = 10.0


def synced(request: SyncRequest, at_ms: int) -> WorkerSynced:
    """What a worker is and has finished, as the core takes it."""
    info = request.info
    return WorkerSynced(
        at_ms,
        WorkerId(info.worker),
        info.runtimes,
        info.slots,
        info.usd_per_hour if info.usd_per_hour >= LEAST_USD_PER_HOUR else 0.0,
        info.warm,
        tuple(_task_result(report) for report in request.reports),
        request.leaving,
        info.devices,
        info.memory_bytes,
        request.draining,
        Device(**info.device.model_dump()).believable(),
        info.place,
        tuple(info.holds),
        InstanceId(info.instance),
        info.interruptions_per_hour,
    )


def within_time(event: WorkerSynced, state: State) -> WorkerSynced:
    """The same, where nothing took longer than there was time since its lease was granted."""
    at_ms = max(event.at_ms, state.now_ms)
    results = [_cut(state, result, event.worker, at_ms) for result in event.results]
    return replace(event, results=tuple(results))


def _cut(state: State, result: TaskResult, worker: WorkerId, at_ms: int) -> TaskResult:
    batch = result.batch
    told = (batch.fetch_s, batch.load_s, batch.exec_s) if batch else ()
    if max((result.seconds, *told)) <= CLOCKS_S:
        return result
    lease = checkpoints.granted(state, result.lease, result.task, worker)
    if lease is None:
        return result  # It counts for nothing.
    most_s = (at_ms - lease.granted_ms) / 1000 + CLOCKS_S
    if batch is not None:
        fetch_s, load_s, exec_s = (min(one, most_s) for one in told)
        batch = replace(batch, fetch_s=fetch_s, load_s=load_s, exec_s=exec_s)
    return replace(result, seconds=min(result.seconds, most_s), batch=batch)


def _task_result(report: TaskReport) -> TaskResult:
    """A report that cannot be read is a failure of its task, not of the sync."""
    ended = (LeaseId(report.lease), TaskId(report.task))
    if report.result is not None:
        try:
            result = Result.decode(report.result)
            _check_artifacts(result)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            message = f"the worker's result cannot be read: {error}"
            return TaskResult(*ended, Failure.INTERNAL, message=message)
        return _task_done(report, result)
    if not report.kind:
        message = "the worker reported neither a result nor a failure"
        return TaskResult(*ended, Failure.INTERNAL, message=message)
    return TaskResult(
        *ended,
        Failure(report.kind),
        message=report.message,
        detail=report.detail,
        seconds=report.seconds,
        batch=_timing(report),
    )


def _task_done(report: TaskReport, result: Result) -> TaskResult:
    """Raises nothing: a worker that tells nonsense of a task has failed it."""
    ended = (LeaseId(report.lease), TaskId(report.task))
    usage = result.usage
    taken = (usage.seconds, usage.joules or 0.0, usage.generated_tokens)
    if not all(0 <= amount <= COUNT_LIMIT for amount in taken):
        told = f"a task took {usage.seconds} seconds, {usage.joules} joules"
        message = f"{told} and wrote {usage.generated_tokens} tokens"
        return TaskResult(*ended, Failure.INTERNAL, message=message)
    return TaskResult(
        *ended,
        output=report.result or "",
        seconds=usage.seconds,
        output_tokens=usage.generated_tokens,
        joules=usage.joules or 0.0,
        batch=_timing(report),
    )


def _timing(report: TaskReport) -> BatchTiming | None:
    return BatchTiming(**report.batch.model_dump()) if report.batch else None


def _check_artifacts(result: Result) -> None:
    """Raises ValueError for what would not fit into the tables, or names nothing."""
    for text in result.digests():
        Digest.parse(text)
    for port, made in result.outputs.items():
        if not -1 <= made.rows <= COUNT_LIMIT:
            raise ValueError(f"its output {port!r} has {made.rows} rows")
