"""What follows a failed attempt: a pure function of the task, the failure, the batch's size.

Limits count failures, not retries: `ATTEMPT_LIMIT = 3` allows 3 attempts in total.

| failure   | what happens                                                                |
| --------- | --------------------------------------------------------------------------- |
| input     | the task fails at once                                                      |
| transient | again after a back-off, on another worker if there is one; 3 attempts       |
| memory    | in half the batch; alone, it counts as transient                            |
| internal  | again; 2 attempts                                                           |
| crash     | in half the batch; alone, the second crash fails it (poison)                |
| lost      | at once and elsewhere, later with a back-off and alone; fails at 20 losses  |

A loss does not count where the attempt has left a checkpoint: the task gets on.
"""

from dataclasses import dataclass

from flowmesh.base.replacing import replace
from flowmesh.core.records import Failure, Task

ATTEMPT_LIMIT = 3
INTERNAL_LIMIT = 2
CRASH_LIMIT = 2
LOSS_LIMIT = 20
#: From this many losses on, a task runs alone: it may be what kills its workers.
LOSSES_BEFORE_ALONE = 3
BACKOFF_MS = 1_000
BACKOFF_LIMIT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The task with its counts raised, and whether that was the end of it.

    `delay_ms` is how long it must wait before it may run again; 0 for not at all.
    """

    task: Task
    fails: bool
    delay_ms: int = 0


def after(task: Task, failure: Failure, batch_size: int) -> Verdict:
    """What to do with `task` after one attempt in a batch of `batch_size` ended in `failure`."""
    match failure:
        case Failure.INPUT:
            return Verdict(task, fails=True)
        case Failure.MEMORY | Failure.CRASH if batch_size > 1:
            return Verdict(replace(task, batch_limit=(batch_size + 1) // 2), fails=False)
        case Failure.CRASH:
            crashed = replace(task, crashes=task.crashes + 1)
            return Verdict(crashed, fails=crashed.crashes >= CRASH_LIMIT)
        case Failure.LOST:
            return _lost(task)
        case Failure.INTERNAL:
            tried = replace(task, bugs=task.bugs + 1)
            return Verdict(tried, tried.bugs >= INTERNAL_LIMIT, backoff_ms(tried.bugs))
        case Failure.MEMORY | Failure.TRANSIENT:
            tried = replace(task, attempts=task.attempts + 1)
            return Verdict(tried, tried.attempts >= ATTEMPT_LIMIT, backoff_ms(tried.attempts))


def _lost(task: Task) -> Verdict:
    lost = replace(task, losses=task.losses + 1)
    if lost.losses >= LOSSES_BEFORE_ALONE:
        lost = replace(lost, batch_limit=1)
    return Verdict(lost, lost.losses >= LOSS_LIMIT, backoff_ms(lost.losses - 1))


def backoff_ms(failures: int) -> int:
    """1 s, 2 s, 4 s … up to a minute; nothing before the first failure."""
    if failures == 0:
        return 0
    return min(BACKOFF_LIMIT_MS, BACKOFF_MS << min(failures - 1, 10))
