"""What a run should take: laid out on workers and offers, by what is known of both."""

from dataclasses import replace
from typing import Any

import pytest

from flowmesh.base.ids import LeaseId, OfferId, TaskId, WorkerId
from flowmesh.core import estimate, forecast
from flowmesh.core.fleet import Device, Offer, Worker
from flowmesh.core.forecast import Forecast, Interval
from flowmesh.core.layout import Ahead
from flowmesh.core.records import Demand, Expected, Lease, Tree
from flowmesh.core.state import State

MODEL = Demand(
    operator="generate@1",
    trees=(Tree("sha256:1/2", 300_000_000),),
    weights_bytes=300_000_000,
    flops_per_token=3e8,
    cache_bytes_per_token=40_000,
)
GPU = Device(
    kind="GPU",
    flops_per_s=1e14,
    bandwidth_bytes_per_s=1e12,
    memory_bytes=24_000_000_000,
    load_bytes_per_s=1e9,
    fetch_bytes_per_s=1e9,
    idle_w=50.0,
    busy_w=300.0,
)


def worker(name: str = "w", usd_per_hour: float = 1.0, **more: Any) -> Worker:
    plain = Worker(WorkerId(name), ("models", "tables"), 1, usd_per_hour, (), 0, device=GPU)
    return replace(plain, **more)


def ahead(name: str = "a", tasks: int = 64, **more: Any) -> Ahead:
    plain = Ahead(
        name,
        tasks=tasks,
        runtime="models",
        batch_key="k",
        demand=MODEL,
        max_batch=32,
        prompt_tokens=100.0,
        output_tokens=64,
    )
    return replace(plain, **more)


def of(steps: list[Ahead], *workers: Worker) -> Forecast:
    state = State(workers={one.id: one for one in workers})
    state.demands["k"] = MODEL
    return forecast.forecast(state, steps, forecast.workers_of(state))


def test_a_step_takes_what_its_batches_take_one_after_the_other() -> None:
    state = State(demands={"k": MODEL})
    made = of([ahead(tasks=64)], worker(warm=("k",), holds=("sha256:1/2",)))
    longest = estimate.longest_output(state, "k", 64, 32.0)
    known = estimate.coefficients(state, "k", GPU)
    mean = estimate.expected_output(state, "k", 64)
    batch_s = known.exec_s(estimate.Amounts(3200.0, longest, 32 * mean))
    (step,) = made.steps
    assert step.batches == 2
    assert step.seconds == pytest.approx(2 * float(batch_s))
    assert step.usd == pytest.approx(step.seconds / 3600)
    assert made.seconds.mid == pytest.approx(step.end_s)


def test_a_cold_worker_that_holds_nothing_fetches_and_loads_once() -> None:
    warm = of([ahead()], worker(warm=("k",), holds=("sha256:1/2",)))
    cold = of([ahead()], worker())
    state = State()
    once_s = estimate.load_s(state, MODEL, GPU) + estimate.fetch_s(state, 300_000_000, GPU)
    assert cold.steps[0].seconds == pytest.approx(warm.steps[0].seconds + once_s)


def test_steps_wait_for_those_before_them_and_others_do_not() -> None:
    steps = [
        ahead("one"),
        ahead("two", upstream=("one",)),
        ahead("apart", runtime="tables", batch_key="t", demand=Demand()),
    ]
    first, second, apart = of(steps, worker("v"), worker("w")).steps
    assert second.start_s >= first.end_s
    assert apart.start_s < first.end_s


def test_much_work_goes_to_all_workers_and_little_to_one() -> None:
    workers = [worker(f"w{n}") for n in range(4)]
    many, few = ahead(tasks=6400), ahead(tasks=2)
    assert len(of([many], *workers).steps[0].where) == 4
    assert len(of([few], *workers).steps[0].where) == 1


def test_a_dear_worker_of_the_same_kind_gets_less() -> None:
    (step,) = of([ahead(tasks=640)], worker("dear", 9.0), worker("cheap", 1.0)).steps
    assert step.where.get("cheap", 0) > step.where.get("dear", 0)


def test_what_a_worker_is_busy_with_comes_first() -> None:
    busy = worker(leases=(LeaseId(1),))
    state = State(now_ms=10_000, workers={busy.id: busy})
    lease = Lease(LeaseId(1), busy.id, "other", (TaskId("t"),), 4_000, (), Expected(exec_s=20.0))
    state.leases[lease.id] = lease
    (step,) = forecast.forecast(state, [ahead()], forecast.workers_of(state)).steps
    assert step.start_s == pytest.approx(14.0)
    late = replace(lease, expected=Expected(exec_s=1.0))
    state.leases[lease.id] = late
    (step,) = forecast.forecast(state, [ahead()], forecast.workers_of(state)).steps
    assert step.start_s == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtimes": ("tables",)}, "does not offer models"),
        ({"devices": 1}, "has 1 of 2 devices"),
        ({"devices": 2, "memory_bytes": 10}, "has too little memory: a task takes 0.5 GB"),
        (
            {"devices": 2, "device": replace(GPU, memory_bytes=200_000_000)},
            "has 0.2 GB on its device, too few for the model's 0.3 GB",
        ),
    ],
)
def test_a_step_that_no_worker_fits_says_why(changes: dict[str, Any], words: str) -> None:
    needy = ahead("a", devices=2, memory_bytes=500_000_000)
    made = of([needy, ahead("b", upstream=("a",))], worker(**changes))
    assert dict(made.steps[0].why_not) == {words: 1}
    assert made.steps[0].impossible and made.steps[1].impossible
    assert not made.feasible


def test_a_step_that_is_done_takes_nothing() -> None:
    made = of([ahead(tasks=0), ahead("b", tasks=0, upstream=("a",))])
    assert made.feasible and made.batches == 0
    assert made.usd == made.seconds == Interval(0.0, 0.0, 0.0)


def offer(**more: Any) -> Offer:
    plain = Offer(OfferId("o"), "given", ("models",), 3.6, GPU, startup_s=100.0, count=2)
    return replace(plain, **more)


def test_a_machine_to_be_rented_starts_first_and_is_paid_for_from_then_on() -> None:
    state = State()
    places = forecast.machines_of(state, [offer()], 10)
    assert len(places) == 2
    made = forecast.forecast(state, [ahead(tasks=2)], places)
    assert made.steps[0].start_s == pytest.approx(100.0)
    assert made.startup_usd == pytest.approx(0.1)
    assert made.usd.mid == pytest.approx(0.1 + made.steps[0].usd)


def test_an_interval_is_wider_where_less_is_known() -> None:
    narrow, wide = Interval.around(10.0, 0.1), Interval.around(10.0, 1.0)
    assert wide.low < narrow.low < 10.0 < narrow.high < wide.high
    assert narrow.low * narrow.high == pytest.approx(100.0)
    assert Interval.around(10.0, 0.0) == Interval(10.0, 10.0, 10.0)


def test_what_may_be_done_already_lowers_the_low_end_alone() -> None:
    known = of([ahead(), ahead("b", upstream=("a",))], worker())
    half = of([ahead(), ahead("b", upstream=("a",), unsure=1.0)], worker())
    assert (half.usd.mid, half.usd.high) == (known.usd.mid, known.usd.high)
    first, second = half.steps
    for name, parts in (
        ("usd", (first.usd, second.usd)),
        ("joules", (first.joules, second.joules)),
    ):
        share = parts[0] / sum(parts)
        assert getattr(half, name).low == pytest.approx(getattr(known, name).low * share)
    assert half.seconds.low == pytest.approx(known.seconds.low * first.end_s / second.end_s)
    nothing = of([ahead(unsure=1.0)], worker())
    assert (nothing.usd.low, nothing.seconds.low) == (0.0, 0.0) and nothing.usd.mid > 0


def test_errors_of_one_batch_key_add_up_and_of_others_cancel() -> None:
    same = [ahead("a", tasks=320), ahead("b", tasks=320)]
    other = [same[0], replace(same[1], batch_key="l")]

    def width(steps: list[Ahead]) -> float:
        made = of(steps, worker(warm=("k", "l"), holds=("sha256:1/2",)))
        return made.usd.high / made.usd.low

    assert width(other) < width(same)


def test_doubt_about_the_number_of_tasks_widens_a_step() -> None:
    sure, unsure = of([ahead()], worker()), of([ahead(doubt=0.5)], worker())
    assert unsure.steps[0].sigma > sure.steps[0].sigma


def test_a_million_tasks_are_laid_out_in_lots() -> None:
    made = of([ahead(tasks=1_000_000)], worker("v"), worker("w"))
    assert made.batches >= 1_000_000 / 32
    assert made.seconds.mid > 0


def test_the_order_of_workers_does_not_matter() -> None:
    workers = [worker("a", 1.0), worker("b", 2.0), worker("c", 2.0, device=Device(kind="slow"))]
    one = of([ahead(tasks=500)], *workers)
    other = of([ahead(tasks=500)], *reversed(workers))
    assert one.seconds == other.seconds
    assert one.usd.mid == pytest.approx(other.usd.mid)
