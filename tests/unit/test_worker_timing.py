"""What a batch takes: measured in the child, completed by the worker, told once."""

import asyncio
import time
from pathlib import Path

import pytest

from flowmesh.runtimes.base import Done, Failed, FailureKind
from flowmesh.spec.action import Result, Usage
from flowmesh.wire import BatchReport, LeaseBody, LeaseTask, TaskReport
from flowmesh.worker.cache import Cache
from flowmesh.worker.delivery import Assignment, delivering
from flowmesh.worker.progress import Tidings
from flowmesh.worker.timing import Batch, Stopwatch, Took

BATCH = BatchReport(tasks=2, exec_s=1.0)


def done(task: str = "t", **usage: int) -> Done:
    return Done(task, Result(rows=[], usage=Usage(**usage)))


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_opening_and_executing_are_told_apart() -> None:
    watch = Stopwatch()
    time.sleep(0.03)
    watch.opened(cold=True)
    busy(0.05)
    watch.made(done())
    took = watch.took(None)
    assert took.open_s is not None and took.open_s >= 0.03
    assert took.exec_s >= 0.05
    assert took.cpu_s >= 0.05


def test_a_warm_engine_took_no_time_to_open() -> None:
    watch = Stopwatch()
    watch.opened(cold=False)
    assert watch.took(None).open_s is None


def test_tokens_are_summed_and_steps_are_those_of_the_longest_row() -> None:
    watch = Stopwatch()
    watch.opened(cold=False)
    watch.made(done(prompt_tokens=10, generated_tokens=3))
    watch.made(done(prompt_tokens=10, generated_tokens=5, cached_tokens=8))
    watch.made(Failed("t", FailureKind.INPUT, "no"))
    took = watch.took(None)
    assert (took.prompt_tokens, took.output_tokens, took.steps) == (12, 8, 5)
    assert watch.took(7).steps == 7, "an engine that counts knows better"


def test_a_slow_worker_idles_in_proportion() -> None:
    watch = Stopwatch(slowdown=3.0)
    busy(0.02)
    watch.opened(cold=True)
    busy(0.02)
    watch.made(done())
    busy(0.02)
    took = watch.took(None)
    assert took.open_s is not None and took.open_s >= 0.06
    assert took.exec_s >= 0.12
    assert took.cpu_s < 0.09, "idling costs no processor time"


def test_a_report_holds_what_the_worker_knows_beside() -> None:
    batch = Batch(fetch_s=0.5, fetch_bytes=70, model_bytes=900, start_s=2.0)
    took = Took(open_s=1.0, exec_s=4.0, cpu_s=3.0, prompt_tokens=5, steps=6, output_tokens=7)
    told = batch.report(took, [1.5, 2.0], lambda seconds, cpu_s: 10 * seconds + cpu_s)
    assert told == BatchReport(
        tasks=2,
        fetch_s=0.5,
        fetch_bytes=70,
        load_s=3.0,
        load_bytes=900,
        exec_s=4.0,
        prompt_tokens=5,
        decode_steps=6,
        output_tokens=7,
        work=3.5,
        joules=78.0,
        cpu_s=3.0,
    )
    warm = batch.report(Took(exec_s=4.0, joules=33.0), [1.0], lambda seconds, cpu_s: 0.0)
    assert (warm.load_s, warm.load_bytes) == (0.0, 0)
    assert warm.joules == 33.0, "what an engine has measured counts"


class Deliveries:
    """A batch of the tasks `a` and `b`, and what was reported of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.reports: list[TaskReport] = []
        named = [LeaseTask(task=task, pack="p", line=0) for task in ("a", "b")]
        lease = LeaseBody(lease=1, batch_key="k", op="o", tasks=named)
        both = {"a", "b"}
        tell = Tidings(lambda: None)
        self.assignment = Assignment(lease, self.reports.append, set(both), set(both), tell)
        self.cache = Cache(tmp_path, None, limit_bytes=100)  # type: ignore[arg-type]

    async def deliver(self, *frames: dict[str, object], batch: BatchReport | None) -> None:
        with self.cache.pin() as pin:
            async with delivering(self.assignment, ["a", "b"], self.cache, pin) as delivery:
                for frame in frames:
                    delivery.add({"puts": [], **frame})
                delivery.flush()
                for _ in range(5):
                    await asyncio.sleep(0)
                self.early = list(self.reports)
                if not delivery.is_complete:
                    delivery.rest_failed(FailureKind.CRASH, "it died")
                delivery.ended(batch)


OK = Result(rows=[]).encode()


async def test_what_a_batch_took_goes_with_its_last_report(tmp_path: Path) -> None:
    one = Deliveries(tmp_path)
    await one.deliver({"task": "a", "result": OK}, {"task": "b", "result": OK}, batch=BATCH)
    assert [report.task for report in one.early] == ["a"], "the last one waits for it"
    assert [(report.task, report.batch) for report in one.reports] == [("a", None), ("b", BATCH)]


async def test_what_a_batch_took_is_told_even_if_its_last_row_failed(tmp_path: Path) -> None:
    one = Deliveries(tmp_path)
    wrong = {"task": "b", "kind": "input", "message": "no such column", "detail": ""}
    await one.deliver({"task": "a", "result": OK}, wrong, batch=BATCH)
    told = [(report.task, report.kind, report.batch) for report in one.reports]
    assert told == [("a", "", None), ("b", "input", BATCH)]


async def test_a_batch_that_died_tells_nothing_of_it(tmp_path: Path) -> None:
    one = Deliveries(tmp_path)
    await one.deliver({"task": "a", "result": OK}, batch=None)
    assert [(report.task, report.kind) for report in one.reports] == [("a", ""), ("b", "crash")]
    assert all(report.batch is None for report in one.reports)


async def test_a_result_is_reported_even_if_the_batch_tells_nothing(tmp_path: Path) -> None:
    one = Deliveries(tmp_path)
    await one.deliver({"task": "a", "result": OK}, {"task": "b", "result": OK}, batch=None)
    assert [report.task for report in one.reports] == ["a", "b"]


@pytest.mark.parametrize("tasks", [0, -1])
def test_a_batch_has_tasks(tasks: int) -> None:
    with pytest.raises(ValueError, match="tasks"):
        BatchReport(tasks=tasks)
