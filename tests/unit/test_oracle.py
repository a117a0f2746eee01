"""No schedule is cheaper than the oracle: of single batches, and of whole simulations."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.sim.clairvoyant import bound_of
from flowmesh.sim.cluster import simulate
from flowmesh.sim.devices import machine, model
from flowmesh.sim.engines import Engine, Rows, Truth
from flowmesh.sim.oracle import Offered, Work, bound, least, total
from flowmesh.sim.policies import names
from flowmesh.sim.profiles import EFFICIENCY
from flowmesh.sim.scenario import DeviceSpec, Scenario

SPEC = DeviceSpec(
    fixed_s=0.5, prompt_s=1e-4, step_s=0.02, output_s=1e-3, work_s=0.1, concurrency=16, busy_w=90
)
TRUTH = Truth(EFFICIENCY, {"T4": SPEC})
MODEL = model("llama-3.1-8b")
GENERATE = Engine("generate", "generate@1", MODEL, resident_bytes=MODEL.weights_bytes)
TRAIN = Engine("train", "train@1", MODEL, flops_per_parameter=6.0)
TOOL = Engine("tool", "tool@1")
KINDS = ("H100", "L4", "2xA100-80", "T4")


def drawn(seed: int, engine: Engine) -> Work:
    """Some rows, of which some begin alike."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 400))
    prefix = rng.integers(-1, 3, count)
    tokens = np.where(prefix >= 0, 50.0 * (1 + prefix), 0.0)
    prompt = tokens + np.ceil(rng.lognormal(5, rng.uniform(0, 1), count))
    output = np.ceil(rng.lognormal(4, rng.uniform(0, 1), count))
    if engine.kind != "generate":
        prefix, tokens, output = np.full(count, -1), np.zeros(count), np.zeros(count)
    work = rng.uniform(0.1, 5, count) if engine.kind == "tool" else 0.0
    limit = int(rng.choice([1, 8, 512]))
    return Work(engine, prompt, output, prefix, tokens, work, max_batch=limit)


def taken(work: Work, kind: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Seconds, joules and prefix tokens read when the rows run in batches that chance made."""
    made, order, at = machine(kind), rng.permutation(len(work)), 0
    seconds = joules = 0.0
    while at < len(work):
        rows = order[at : at + int(rng.integers(1, work.max_batch + 1))]
        at += len(rows)
        first = {int(work.prefix[row]): float(work.prefix_tokens[row]) for row in rows}
        first.pop(-1, None)
        saved = int(work.prefix_tokens[rows].sum() - sum(first.values()))
        units = float(work.work[rows].sum()) if isinstance(work.work, np.ndarray) else 0.0
        batch = Rows(work.prompt[rows].astype(int), work.output[rows].astype(int), units, saved)
        took = TRUTH.batch(work.engine, made, batch)
        seconds += took.exec_s
        joules += took.busy_j + made.idle_w * took.exec_s
    shared = dict(zip(work.prefix.tolist(), work.prefix_tokens.tolist(), strict=True))
    shared.pop(-1, None)
    return seconds, joules, sum(shared.values())


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.sampled_from([GENERATE, TRAIN, TOOL]))
def test_no_batches_take_less_than_their_rows(seed: int, kind: str, engine: Engine) -> None:
    """In seconds and in joules, however rows are put together, and in whatever order."""
    work = drawn(seed, engine)
    bounded = least(work, Offered(machine(kind), 1.0), TRUTH)
    seconds, joules, shared = taken(work, kind, np.random.default_rng(seed + 1))
    assert seconds >= total([bounded.seconds]) + shared * bounded.seconds.prefix - 1e-6
    assert joules >= total([bounded.joules]) + shared * bounded.joules.prefix - 1e-3


@given(st.integers(0, 10**6))
def test_no_split_over_two_machines_costs_less_than_the_bound(seed: int) -> None:
    """Some batches on one kind and some on another, at prices that are unlike by much."""
    rng = np.random.default_rng(seed)
    work = drawn(seed, GENERATE)
    offers = [Offered(machine("L4"), 0.4), Offered(machine("H100"), float(rng.lognormal(1, 1)))]
    took = [least(work, one, TRUTH) for one in offers]
    costs = [one.seconds.times(offer.usd_per_s) for one, offer in zip(took, offers, strict=True)]
    there = rng.random(len(work)) < rng.random()
    usd = 0.0
    for rows, offer in zip((there, ~there), offers, strict=True):
        if rows.any():
            some = replace(
                work,
                prompt=work.prompt[rows],
                output=work.output[rows],
                prefix=work.prefix[rows],
                prefix_tokens=work.prefix_tokens[rows],
            )
            usd += offer.usd_per_s * taken(some, offer.machine.kind, rng)[0]
    assert usd >= total(costs) * (1 - 1e-9)


def test_rows_of_unlike_lengths_have_a_bound_that_is_near() -> None:
    """Where one machine has little room for long rows and another much: still near the truth."""
    rng = np.random.default_rng(5)
    count = 2048
    prompt, output = rng.lognormal(6, 0.5, count).round(), rng.lognormal(8, 0.5, count).round()
    work = Work(GENERATE, prompt, output, np.full(count, -1), np.zeros(count), max_batch=4096)
    offers = [Offered(machine("A100-80"), 0.87), Offered(machine("RTX3090"), 0.2)]
    took = TRUTH.batch(GENERATE, offers[0].machine, Rows(prompt.astype(int), output.astype(int)))
    usd = took.exec_s * offers[0].usd_per_s
    assert 0.85 * usd <= bound([work], offers, TRUTH).exec_usd <= usd


def test_the_bound_is_near_for_batches_of_equal_rows() -> None:
    """A bound of 0 would hold too."""
    count = 512
    work = Work(
        GENERATE, np.full(count, 400.0), np.full(count, 150.0), np.full(count, -1), np.zeros(count)
    )
    made = machine("H100")
    took = TRUTH.batch(GENERATE, made, Rows(work.prompt.astype(int), work.output.astype(int)))
    bounded = least(work, Offered(made, 1.0), TRUTH)
    assert total([bounded.seconds]) == pytest.approx(took.exec_s, rel=0.02)
    assert total([bounded.joules]) == pytest.approx(
        took.busy_j + made.idle_w * took.exec_s, rel=0.1
    )


def test_each_row_is_done_where_it_is_cheapest() -> None:
    """Not on the kind that is cheapest an hour, and a load is paid once."""
    work = drawn(3, GENERATE)
    offers = [Offered(machine("H100"), 2.0), Offered(machine("L4"), 0.4)]
    both = bound([work], offers, TRUTH)
    each = [bound([work], [offer], TRUTH) for offer in offers]
    assert both.usd <= min(one.usd for one in each)
    assert both.exec_usd <= min(one.exec_usd for one in each)
    assert both.load_usd == min(one.load_usd for one in each)


def test_work_that_fits_nowhere_has_no_bound() -> None:
    large = model("llama-3.3-70b")
    engine = Engine("generate", "generate@1", large, resident_bytes=large.weights_bytes)
    with pytest.raises(ValueError, match="fits no machine"):
        bound([drawn(1, engine)], [Offered(machine("L4"), 0.4)], TRUTH)


def scenario(seed: int) -> Scenario:
    """A small one, unlike for each seed, without noise."""
    rng = np.random.default_rng(seed)
    mixes = ({"annotate-8b": 1, "extract-1b": 1}, {"rlaif-1.5b": 1}, {"chat-8b": 3, "sft-8b": 1})
    return Scenario.model_validate(
        {
            "name": f"random-{seed}",
            "duration_s": 600,
            "runs": 6,
            "tenants": 3,
            "mix": mixes[int(rng.integers(3))],
            "overlap": float(rng.random()),
            "rows": 0.003,
            "noise": 0,
            "market": {"price": ["on_demand", "spot"], "startup_s": [30, 90]},
        }
    )


@pytest.mark.parametrize("policy", names())
def test_no_policy_undercuts_the_oracle(policy: str) -> None:
    for seed in (1, 2):
        told = simulate(scenario(seed), policy, seed)
        bounded = bound_of(scenario(seed), seed)
        assert told.unsettled == 0
        assert told.usd >= bounded.usd > 0
        assert told.joules >= bounded.joules > 0
