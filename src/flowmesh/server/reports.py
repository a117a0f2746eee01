"""From what a worker says to what the core hears. Nothing that it says is believed unread."""

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.ids import InstanceId, LeaseId, TaskId, WorkerId
from flowmesh.core.events import BatchTiming, TaskResult, WorkerSynced
from flowmesh.core.fleet import Device
from flowmesh.core.records import Failure
from flowmesh.core.renting import LEAST_USD_PER_HOUR
from flowmesh.spec.action import Result
from flowmesh.wire import COUNT_LIMIT, SyncRequest, TaskReport


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
    failure = Failure(report.kind)
    return TaskResult(*ended, failure, "", report.message, report.detail, report.seconds)


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
        batch=BatchTiming(**report.batch.model_dump()) if report.batch else None,
    )


def _check_artifacts(result: Result) -> None:
    """Raises ValueError for what would not fit into the tables, or names nothing."""
    for text in result.digests():
        Digest.parse(text)
    for port, made in result.outputs.items():
        if not -1 <= made.rows <= COUNT_LIMIT:
            raise ValueError(f"its output {port!r} has {made.rows} rows")
