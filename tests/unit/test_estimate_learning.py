"""What results teach, and what they do not."""

from dataclasses import replace
from typing import Any

import pytest

from flowmesh.base.ids import TaskId, WorkerId
from flowmesh.core import estimate, learning, lengths
from flowmesh.core.apply import apply
from flowmesh.core.events import BatchTiming, TaskProgressed, TaskResult, WorkerGone
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.records import Demand, Expected, Failure
from flowmesh.core.roofline import Amounts
from flowmesh.core.state import State
from flowmesh.server.estimates import summary
from flowmesh.stores.codec import decode_state, encode_state
from support.learning import A100, MODEL, PLAIN, Told

BATCH = BatchTiming(4, exec_s=2.0, prompt_tokens=2000, decode_steps=100, output_tokens=300)
AMOUNTS = Amounts(2000, 100, 300)


def told(*timings: BatchTiming, **more: Any) -> Told:
    world = Told(**more)
    for timing in timings:
        world.batch(timing)
    return world


def exec_s(world: Told, amounts: Amounts = AMOUNTS, device: Device = A100) -> float:
    return float(estimate.coefficients(world.state, "k", device).exec_s(amounts))


def test_a_batch_teaches_the_fit_of_its_key_and_kind() -> None:
    world = told(BATCH)
    assert list(world.state.fits) == ["k|A100-80"]
    assert estimate.coefficients(world.state, "k", A100).seen == 1
    assert "k" in world.state.touched.estimates


@pytest.mark.parametrize("wrong", [3.0, 1 / 3])
def test_ten_batches_correct_a_prior_that_is_wrong_by_three(wrong: float) -> None:
    sizes = [(1, 60), (8, 128), (2, 100), (32, 200), (4, 30), (16, 90), (64, 128), (1, 128)]
    world = Told()
    world.state.demands["k"] = MODEL
    prior = estimate.prior(world.state, "k", A100)
    for rows, steps in (*sizes, *sizes[:2]):
        amounts = Amounts(500.0 * rows, float(steps), 0.8 * rows * steps)
        world.batch(timing(amounts, rows, wrong * float(prior.exec_s(amounts))))
    for rows, steps in sizes:
        amounts = Amounts(500.0 * rows, float(steps), 0.8 * rows * steps)
        right = wrong * float(prior.exec_s(amounts))
        assert exec_s(world, amounts) == pytest.approx(right, rel=0.2)


def timing(amounts: Amounts, rows: int, seconds: float, **more: Any) -> BatchTiming:
    return BatchTiming(
        rows,
        exec_s=seconds,
        prompt_tokens=int(float(amounts.prompt_tokens)),
        decode_steps=int(float(amounts.decode_steps)),
        output_tokens=int(float(amounts.output_tokens)),
        **more,
    )


def test_one_odd_batch_does_not_destroy_what_was_learnt() -> None:
    world = told(*[BATCH] * 12)
    world.batch(replace(BATCH, exec_s=200.0))
    assert exec_s(world) == pytest.approx(2.0, rel=0.35)
    for _ in range(3):
        world.batch(BATCH)
    assert exec_s(world) == pytest.approx(2.0, rel=0.1)


def test_several_odd_batches_mean_that_the_machine_has_changed() -> None:
    world = told(*[BATCH] * 30)
    for _ in range(6):
        world.batch(replace(BATCH, exec_s=6.0))
    assert exec_s(world) == pytest.approx(6.0, rel=0.15)


def test_the_uncertainty_falls_with_what_was_seen_and_rises_with_scatter() -> None:
    sigmas = []
    for count in (0, 1, 4, 16):
        world = told(*[BATCH] * count)
        world.state.demands["k"] = MODEL
        sigmas.append(estimate.coefficients(world.state, "k", A100).sigma)
    assert sigmas[0] == estimate.SHEET_SIGMA
    assert sigmas[1] == pytest.approx(0.27, abs=0.01)
    assert sigmas[0] > sigmas[1] > sigmas[2] > sigmas[3]
    assert sigmas[3] < 0.2
    scattered = [replace(BATCH, exec_s=2.0 * (1.5 if i % 2 else 0.67)) for i in range(16)]
    known = estimate.coefficients(told(*scattered).state, "k", A100)
    assert known.sigma > 1.5 * sigmas[3]


def test_the_error_is_of_what_was_expected_when_the_batch_was_granted() -> None:
    world = Told()
    world.batch(BATCH, expected=Expected(exec_s=3.0))
    assert world.state.fits["k|A100-80"].error == pytest.approx(0.5)
    world.batch(BATCH, expected=Expected(exec_s=1.0))
    assert world.state.fits["k|A100-80"].error == pytest.approx(0.5)
    world.batch(BATCH, expected=Expected(exec_s=2.0))
    assert world.state.fits["k|A100-80"].error == pytest.approx(1 / 3)
    assert estimate.error_by_operator_and_kind(world.state) == {
        ("generate@1", "A100-80"): pytest.approx(1 / 3)
    }


def test_of_a_lease_that_became_smaller_what_is_known_is_judged() -> None:
    world = Told()
    world.batch(BATCH)
    known = exec_s(world, Amounts(1000, 100, 150))
    smaller = BatchTiming(2, exec_s=2.0, prompt_tokens=1000, decode_steps=100, output_tokens=150)
    world.batch(smaller, count=4, expected=Expected(exec_s=40.0))
    before = told(BATCH).state.fits["k|A100-80"].error
    error = world.state.fits["k|A100-80"].error
    assert error == pytest.approx((before + abs(known - 2.0) / 2.0) / 2)


def test_predicted_and_measured_are_kept_side_by_side() -> None:
    world = told(BATCH)
    (measured,) = world.state.drain().measured
    assert (measured.timing, measured.lease.kind) == (BATCH, "A100-80")


@pytest.mark.parametrize("failure", [one for one in Failure if one is not Failure.INPUT])
def test_a_batch_that_failed_teaches_nothing(failure: Failure) -> None:
    world = Told()
    world.batch(BATCH, failure=failure, output_tokens=5)
    assert not (world.state.fits or world.state.rates)
    assert not world.state.drain().measured


def test_a_row_that_could_not_be_used_took_its_time_with_the_others() -> None:
    world = Told()
    world.sync()
    (task,) = world.ask(1, output_tokens=400)
    lease = world.grant((task,))
    result = TaskResult(lease, task, Failure.INPUT, batch=replace(BATCH, tasks=1), output_tokens=9)
    world.sync((result,))
    assert world.state.fits["k|A100-80"].seen == 1
    assert not world.state.lengths, "but it has no length"


def test_what_was_given_back_is_not_the_lease_s_to_tell_of() -> None:
    world = Told()
    world.sync()
    tasks = world.ask(2)
    lease = world.grant(tasks)
    world.sync((TaskResult(lease, tasks[0], Failure.TRANSIENT),))
    assert world.state.leases
    world.sync((TaskResult(lease, tasks[0], None, "out", batch=BATCH),))
    assert not world.state.fits


def test_a_late_or_repeated_result_teaches_nothing() -> None:
    world = Told()
    world.sync()
    (task,) = world.ask(1)
    lease = world.grant((task,))
    result = TaskResult(lease, task, None, "out", batch=replace(BATCH, tasks=1))
    world.sync((result,), worker="stranger")
    assert not world.state.fits
    world.apply(WorkerGone(0, WorkerId("w")))
    world.sync((result,))
    assert not world.state.fits
    lease = world.grant(world.ask(1))
    result = TaskResult(lease, TaskId("r2-0"), None, "out", batch=replace(BATCH, tasks=1))
    world.sync((result, result))
    world.sync((result,))
    assert world.state.fits["k|A100-80"].seen == 1


def test_what_began_from_a_checkpoint_says_nothing_of_the_whole_but_of_its_loading() -> None:
    world = Told()
    world.sync()
    (task,) = world.ask(1)
    lease = world.grant((task,))
    world.apply(TaskProgressed(0, WorkerId("w"), lease, task, 10, "tree"))
    world.apply(WorkerGone(0, WorkerId("w")))
    world.sync(worker="v")
    lease = world.grant((task,), worker="v")
    timing = replace(BATCH, tasks=1, load_s=30.0, load_bytes=16_000_000_000)
    world.sync((TaskResult(lease, task, None, "out", batch=timing),), worker="v")
    assert not world.state.fits
    assert sorted(world.state.rates) == ["load|A100-80", "load|A100-80|generate@1"]


def test_a_worker_that_tells_of_no_batch_is_one_lesson_a_lease() -> None:
    world = Told(demand=PLAIN)
    world.batch(None, seconds=3.0, count=4)
    assert world.state.fits["k|A100-80"].seen == 1
    assert exec_s(world, Amounts(work=1.0)) == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize(
    "bad",
    [
        {"exec_s": float("nan")},
        {"exec_s": float("inf")},
        {"exec_s": -1.0},
        {"prompt_tokens": -5},
        {"output_tokens": 10**400},
        {"joules": float("nan")},
    ],
)
def test_figures_that_no_machine_tells_teach_nothing(bad: dict[str, Any]) -> None:
    world = told(replace(BATCH, **bad))
    assert not (world.state.fits or world.state.rates or world.state.changes.measured)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0])
def test_nor_do_those_of_a_worker_that_tells_of_no_batch(seconds: float) -> None:
    world = Told(demand=PLAIN)
    world.batch(None, seconds=seconds)
    assert not world.state.fits


def test_no_time_at_all_teaches_nothing_of_times() -> None:
    assert not told(replace(BATCH, exec_s=0.0)).state.fits


def test_a_batch_without_any_known_amount_still_has_a_time() -> None:
    world = told(*[BatchTiming(1, exec_s=5.0)] * 5)
    assert exec_s(world, Amounts()) == pytest.approx(5.0, rel=0.1)


def test_work_counts_only_where_there_is_no_model() -> None:
    amounts = learning.amounts_of(MODEL, A100, replace(BATCH, work=9.0))
    assert amounts.work == 0.0
    assert learning.amounts_of(PLAIN, A100, replace(BATCH, work=9.0)).work == 9.0


def test_steps_are_those_of_the_longest_row_or_of_all_at_so_many_at_once() -> None:
    tight = replace(A100, memory_bytes=18_000_000_000)
    timing = BatchTiming(40, prompt_tokens=40_000, decode_steps=500, output_tokens=20_000)
    rows = estimate.concurrency(MODEL, tight, 1500)
    assert rows == 1
    assert learning.amounts_of(MODEL, tight, timing).decode_steps == 20_000
    assert learning.amounts_of(MODEL, A100, timing).decode_steps == 500


def test_what_other_kinds_took_corrects_the_prior_of_a_new_one() -> None:
    world = told(*[BatchTiming(1, exec_s=4.0, work=1.0)] * 10, demand=PLAIN)
    other = Device("T4")
    assert exec_s(world, Amounts(work=1.0), other) == pytest.approx(4.0, rel=0.3)
    alone = estimate.coefficients(world.state, "k", other, learning=False)
    assert float(alone.exec_s(Amounts(work=1.0))) == pytest.approx(0.03)
    assert estimate.prior(world.state, "k", other).sigma < alone.sigma


def test_what_an_operator_took_corrects_the_prior_of_its_next_key() -> None:
    world = told(*[BatchTiming(1, exec_s=4.0, work=1.0)] * 10, demand=PLAIN)
    world.state.demands["new"] = PLAIN
    known = estimate.coefficients(world.state, "new", A100)
    assert float(known.exec_s(Amounts(work=1.0))) == pytest.approx(4.0, rel=0.3)
    world.state.demands["other"] = Demand("render@1")
    other = estimate.coefficients(world.state, "other", A100)
    assert float(other.exec_s(Amounts(work=1.0))) == pytest.approx(0.03)


def test_loading_and_fetching_are_learnt_by_kind_operator_and_place() -> None:
    slow = replace(BATCH, load_s=52.0, load_bytes=1, fetch_s=20.0, fetch_bytes=1_000_000_000)
    world = Told()
    for _ in range(10):
        world.batch(slow)
    state = world.state
    prior = estimate.load_s(state, MODEL, A100, learning=False)
    assert prior == pytest.approx(5.0 + 8.0)
    assert estimate.load_s(state, MODEL, A100) == pytest.approx(52.0, rel=0.15)
    assert estimate.load_s(state, replace(MODEL, operator="other@1"), A100) > 2 * prior
    assert estimate.load_s(state, MODEL, Device("T4")) == estimate.load_s(
        state, MODEL, Device("T4"), learning=False
    )
    assert estimate.fetch_s(state, 10**9, A100) == pytest.approx(20.0, rel=0.35)
    assert estimate.fetch_s(state, 10**9, A100, "elsewhere") > 10.0
    assert estimate.fetch_s(state, 10**9, A100, learning=False) == 1.0
    assert estimate.fetch_s(state, 0, A100) == 0.0


def test_short_loads_and_small_fetches_say_nothing() -> None:
    world = told(replace(BATCH, load_s=0.0001, fetch_s=0.0001, fetch_bytes=10**9))
    world.batch(replace(BATCH, fetch_s=0.2, fetch_bytes=1000))
    assert all(name.startswith("pace") for name in world.state.rates)


def test_an_engine_without_weights_tells_nothing_of_those_with_them() -> None:
    world = told(*[BatchTiming(1, exec_s=1.0, work=1.0, load_s=0.3)] * 9, demand=PLAIN)
    assert estimate.load_s(world.state, PLAIN, A100) == pytest.approx(0.3, rel=0.3)
    assert estimate.load_s(world.state, PLAIN, Device("T4")) < 1.0
    assert estimate.load_s(world.state, MODEL, A100) == 13.0


def test_what_a_rate_was_long_ago_counts_little() -> None:
    slow = replace(BATCH, load_s=130.0)
    world = told(*[slow] * 100, *[replace(BATCH, load_s=13.0)] * 50)
    assert estimate.load_s(world.state, MODEL, A100) == pytest.approx(16.0, rel=0.15)


def test_the_nearest_of_what_is_known_counts_most() -> None:
    """Of an operator with a slow and a quick key, each goes by its own on a new machine."""
    world = told(*[BatchTiming(1, exec_s=1.0, work=1.0)] * 9, demand=PLAIN)
    other = Told(demand=PLAIN, key="slow")
    other.state.fits, other.state.rates = world.state.fits, world.state.rates
    for _ in range(9):
        other.batch(BatchTiming(1, exec_s=100.0, work=1.0))
    other.state.demands |= {"k": PLAIN, "new": PLAIN}
    t4 = Device("T4")
    quick, slow, new = (
        float(estimate.coefficients(other.state, key, t4).exec_s(Amounts(work=1.0)))
        for key in ("k", "slow", "new")
    )
    assert quick < 2.5 and slow > 40.0
    assert 2 * quick < new < slow / 2


OFFER = Offer("o", "p", (), 1.0, A100, startup_s=60.0, interruptions_per_hour=0.1)


def test_start_up_times_move_from_the_claim_to_what_is_seen() -> None:
    state = State()
    assert estimate.startup_s(state, OFFER) == 60.0
    learning.started(state, OFFER, 240.0)
    assert 60.0 < estimate.startup_s(state, OFFER) < 240.0
    for _ in range(20):
        learning.started(state, OFFER, 240.0)
    assert estimate.startup_s(state, OFFER) == pytest.approx(240.0, rel=0.1)
    assert estimate.startup_s(state, replace(OFFER, provider="q")) == 60.0


def test_interruptions_are_counted_in_machine_hours() -> None:
    state = State()

    def rate(provider: str = "") -> float:
        return estimate.interruptions_per_hour(state, "A100-80", 0.1, provider)

    assert rate() == 0.1
    learning.interrupted(state, OFFER, 1.0)
    assert rate() == pytest.approx((0.1 * 10 + 1) / 11)
    for _ in range(100):
        learning.interrupted(state, OFFER, 0.5)
        learning.released(state, OFFER, 1.5)
    assert rate("p") == pytest.approx(0.5, rel=0.1)
    for _ in range(300):
        learning.released(state, OFFER, 10.0)
    assert rate() < 0.02
    assert rate("q") == 0.1


def test_power_is_learnt_where_joules_are_told() -> None:
    world = told(BATCH)
    prior = estimate.coefficients(world.state, "k", A100)
    assert prior.watts == pytest.approx(60 + 0.7 * 340)
    for _ in range(3):
        world.batch(replace(BATCH, joules=500.0))
    known = estimate.coefficients(world.state, "k", A100)
    assert known.watts == pytest.approx(250.0)
    world.batch(replace(BATCH, joules=500.0, load_s=30.0))
    assert estimate.coefficients(world.state, "k", A100).watts == pytest.approx(250.0)
    assert estimate.joules(A100, known, 4.0, 10.0) == pytest.approx(1000.0 + 600.0)


def test_lengths_are_learnt_of_successes_that_had_a_limit() -> None:
    world = Told()
    for _ in range(10):
        world.batch(replace(BATCH, tasks=20), output_tokens=40, seconds=1.0)
    assert not world.state.lengths
    for _ in range(10):
        world.batch(replace(BATCH, tasks=20), output_tokens=40, seconds=1.0, **{"prefix": "p"})
    tasks = world.ask(20, output_tokens=400)
    lease = world.grant(tasks)
    world.sync(tuple(TaskResult(lease, one, None, "o", output_tokens=40) for one in tasks))
    assert world.state.lengths[lengths.key("k", 400)].seen == 20
    assert estimate.expected_output(world.state, "k", 400) == pytest.approx(80, rel=0.3)


def test_what_is_kept_is_bounded_and_the_least_recent_lesson_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning, "KEPT", 3)
    kept: dict[str, int] = {}
    for name in "abcabde":
        learning.keep(kept, name, 1)
    assert list(kept) == ["b", "d", "e"]


def test_a_replay_of_the_journal_learns_the_same_to_the_last_bit() -> None:
    world = told(BATCH, replace(BATCH, exec_s=9.0, load_s=3.0), replace(BATCH, joules=10.0))
    later = State()
    for record in world.journal:
        apply(later, record)
    assert encode_state(later) == encode_state(world.state)
    assert decode_state(encode_state(later), State) == later


def reading(tokens: int, estimated: int, **more: Any) -> Told:
    """Twenty batches of four rows that read so many prompt tokens each, of so many estimated."""
    timing = BatchTiming(4, exec_s=4 * tokens * 1e-3, prompt_tokens=4 * tokens)
    world = Told(**more)
    for _ in range(20):
        world.batch(timing, prompt_tokens=estimated)
    return world


@pytest.mark.parametrize("tokens", [50, 100, 150])
def test_prompts_that_are_longer_than_estimated_are_expected_so(tokens: int) -> None:
    world = reading(tokens, 100)
    known = estimate.coefficients(world.state, "k", A100)
    counted = estimate.counted(world.state, "k", A100)
    assert known.seconds[1] / counted.seconds[1] == pytest.approx(tokens / 100, rel=0.1)
    assert float(known.exec_s(Amounts(400))) == pytest.approx(4 * tokens * 1e-3, rel=0.1)
    assert known.seconds[2:] == counted.seconds[2:]
    (view,) = summary(world.state)
    assert view.tokens_ratio == pytest.approx(tokens / 100, rel=0.1)
    alone = estimate.coefficients(world.state, "k", A100, learning=False)
    assert alone == estimate.counted(world.state, "k", A100, learning=False)


def test_a_prefix_that_was_read_once_is_no_error_of_the_estimate() -> None:
    """Four rows of 100 tokens, of which 60 are the same: 220 are read."""
    shared = replace(MODEL, shares_prefixes=True)
    world = Told(demand=shared)
    timing = BatchTiming(4, exec_s=1.0, prompt_tokens=220)
    world.batch(timing, prompt_tokens=100, prefix="p", prefix_tokens=60)
    assert estimate.tokens_name("k") in world.state.rates
    assert estimate.tokens_ratio(world.state, "k") == 1.0


def test_what_tells_nothing_of_the_estimate_of_tokens_changes_nothing() -> None:
    for tasks, read, estimated in [(3, 400, 100), (4, 0, 100), (4, 400, 0)]:
        world = Told()
        timing = BatchTiming(tasks, exec_s=1.0, prompt_tokens=read)
        world.batch(timing, count=4, prompt_tokens=estimated)
        assert estimate.tokens_name("k") not in world.state.rates
    wild = Told()
    wild.batch(BatchTiming(1, exec_s=1.0, prompt_tokens=1 << 49), prompt_tokens=1)
    known, counted = (
        one(wild.state, "k", A100) for one in (estimate.coefficients, estimate.counted)
    )
    assert known.seconds[1] <= 10 * counted.seconds[1]


def test_the_summary_says_what_was_learnt() -> None:
    world = told(*[BATCH] * 3)
    (view,) = summary(world.state)
    assert (view.batch_key, view.operator, view.kind, view.seen) == (
        "k", "generate@1", "A100-80", 3,
    )  # fmt: skip
    assert set(view.seconds) == {"batch", "prompt token", "decode step", "output token"}
    assert view.rate_unit == "tokens" and view.rows_full == 256
    assert view.rate_full > 10 * view.rate_1 > 0
    plain = told(BatchTiming(1, exec_s=0.5, work=1.0), demand=PLAIN)
    (view,) = summary(plain.state)
    assert set(view.seconds) == {"batch", "unit of work"}
    assert view.rate_unit == "rows" and view.rate_1 == pytest.approx(2.0, rel=0.2)
