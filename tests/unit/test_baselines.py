"""Baselines do what they stand for, and nothing worse."""

from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmesh.base.errors import SpecError
from flowmesh.base.ids import OfferId, RunId
from flowmesh.core.decisions import GrantLease, LaunchInstance
from flowmesh.core.fleet import Device, Offer
from flowmesh.core.state import State
from flowmesh.sim import policies
from flowmesh.sim.baselines import catalog
from flowmesh.sim.baselines.isolated import provision
from flowmesh.sim.baselines.known import Stage
from flowmesh.sim.baselines.simplex import maximise
from flowmesh.sim.cluster import Cluster, simulate
from flowmesh.sim.policies import Entry, Setting, find, names, register
from flowmesh.sim.scenario import Scenario

BASELINES = [name for name in names() if name != "flowmesh"]
ALONE = ("isolated", "isolated-dedup")
FLEET = [{"kind": "A100-80", "count": 2}, {"kind": "L4", "count": 2}, {"kind": "cpu"}]
MARKET = {"price": ["on_demand"], "startup_s": [30, 60]}


def scenario(**changes: object) -> Scenario:
    """A few runs of two kinds, with work in common."""
    told: dict[str, object] = {
        "name": "few",
        "duration_s": 300,
        "runs": 8,
        "tenants": 3,
        "mix": {"annotate-8b": 2, "extract-1b": 1, "chat-8b": 1},
        "overlap": 0.6,
        "rows": 0.004,
    }
    return Scenario.model_validate({**told, **changes})


@dataclass
class Watched:
    """A policy that is looked at: all that it decides."""

    inner: policies.Policy
    state: State | None = None
    made: tuple[object, ...] = ()

    def decide(self, state: State) -> object:
        choice = self.inner.decide(state)
        if choice is not None:
            self.made += ((choice, self._steps(state, choice)),)
        return choice

    def _steps(self, state: State, choice: object) -> list[str]:
        """Owners of the tasks of a lease."""
        if not isinstance(choice, GrantLease):
            return []
        return sorted(dict.fromkeys(str(state.tasks[task].owner) for task in choice.tasks))

    def wakes_ms(self, state: State) -> int | None:
        return self.inner.wakes_ms(state)


def watched(name: str, told: Scenario, seed: int = 1) -> tuple[Watched, Cluster]:
    found: list[Watched] = []
    entry = find(name)

    def make(setting: Setting) -> policies.Policy:
        found.append(Watched(entry.make(setting)))
        return found[0]  # type: ignore[return-value]

    cluster = Cluster(told, Entry(name, make, "", entry.dedup, entry.isolated, entry.scope), seed)
    cluster.run()
    return found[0], cluster


@pytest.mark.parametrize(
    "name", [name for name in BASELINES if name not in (*ALONE, "isolated-tenant")]
)
def test_all_is_done_on_a_fixed_fleet_and_the_same_each_time(name: str) -> None:
    one, two = (simulate(scenario(fleet=FLEET), name, 1) for _ in range(2))
    assert one.unsettled == 0
    assert one.tasks.executed >= one.tasks.distinct
    assert one.doubled == 0
    assert one.digest() == two.digest()


@pytest.mark.parametrize("name", BASELINES)
def test_all_is_done_on_rented_machines_and_all_are_given_back(name: str) -> None:
    told = simulate(scenario(market=MARKET), name, 2)
    assert told.unsettled == 0
    assert told.launches > 0
    assert told.usd > 0


def test_who_runs_alone_shares_nothing() -> None:
    told = simulate(scenario(market=MARKET), "isolated", 1)
    shared = simulate(scenario(market=MARKET), "isolated-dedup", 1)
    assert told.tasks.reused == told.tasks.joined == 0
    assert told.tasks.executed == told.tasks.asked > shared.tasks.executed
    assert shared.tasks.executed == shared.tasks.distinct


def test_every_machine_of_isolated_works_for_one_run() -> None:
    policy, _ = watched("isolated", scenario(market=MARKET))
    for_run: dict[str, str] = {}
    for choice, steps in policy.made:
        if isinstance(choice, LaunchInstance):
            for_run[choice.instance] = choice.reason.removeprefix("for ")
        if isinstance(choice, GrantLease):
            runs = {step.partition("/")[0] for step in steps}
            assert runs == {for_run[choice.worker.removesuffix(".w")]}


def test_tenants_share_with_themselves_only() -> None:
    policy, cluster = watched("isolated-tenant", scenario(market=MARKET, runs=16))
    tenant_of = {str(one.run): one.tenant for one in cluster.plan.submissions}
    for choice, steps in policy.made:
        if isinstance(choice, GrantLease):
            assert len({tenant_of[step.partition("/")[0]] for step in steps}) == 1
    assert cluster.ledger.reused + cluster.ledger.joined > 0


def test_isolated_needs_a_market() -> None:
    with pytest.raises(SpecError, match="market"):
        simulate(scenario(fleet=FLEET), "isolated", 1)


def test_a_queue_does_not_look_into_its_steps() -> None:
    """Batches of `fifo` are of one step; others join steps where they can."""
    policy, _ = watched("fifo", scenario(fleet=FLEET[:1], arrivals={"source": "at-once"}))
    assert all(len(steps) <= 1 for _, steps in policy.made)
    other, _ = watched("locality", scenario(fleet=FLEET[:1], arrivals={"source": "at-once"}))
    assert any(len(steps) > 1 for _, steps in other.made)


def test_the_prototype_has_batches_of_four() -> None:
    policy, _ = watched("best-fit", scenario(fleet=FLEET))
    leases = [choice for choice, _ in policy.made if isinstance(choice, GrantLease)]
    assert max(len(lease.tasks) for lease in leases) == 4


def test_workers_take_turns() -> None:
    fleet = [{"kind": "A100-80", "count": 3}]
    policy, _ = watched("round-robin", scenario(fleet=fleet, mix={"chat-8b": 1}, runs=6))
    order = [choice.worker for choice, _ in policy.made if isinstance(choice, GrantLease)]
    assert order == sorted(order[:3]) * 2


def test_a_pool_serves_its_own_model_only() -> None:
    register(Entry("pools", partial(catalog.strong, own_pools=True)))
    policy, _ = watched("pools", scenario(market=MARKET))
    keys: dict[str, set[str]] = {}
    for choice, _ in policy.made:
        if isinstance(choice, GrantLease):
            keys.setdefault(choice.worker, set()).add(choice.batch_key)
    assert keys
    assert all(len(served) == 1 for served in keys.values())


# Provisioning of isolated runs


class Table:
    """Known times: seconds a row and of a load, by kind of device."""

    def __init__(self, row_s: dict[str, float], load_s: float, fits: dict[str, str]) -> None:
        self._row_s, self._load_s, self._fits = row_s, load_s, fits

    def fits(self, batch_key: str, device: Device) -> bool:
        return device.kind in self._fits.get(batch_key, device.kind)

    def rows(self, batch_key: str, device: Device) -> int:
        return 1

    def row_s(self, batch_key: str, device: Device) -> float:
        return self._row_s[device.kind]

    def batch_s(self, batch_key: str, device: Device, rows: int) -> float:
        return self._row_s[device.kind] * rows

    def load_s(self, batch_key: str, device: Device) -> float:
        return self._load_s

    def reference_usd(self, batch_key: str) -> float:
        return 1.0

    def stages(self, run: RunId) -> tuple[Stage, ...]:
        return ()


def offer(kind: str, usd: float, startup_s: float = 100.0) -> Offer:
    return Offer(OfferId(kind), "p", ("models",), usd, Device(kind), startup_s=startup_s)


def test_a_run_gets_the_cheapest_machines_for_all_of_it() -> None:
    """Ten times as fast at five times the price is cheaper, but not for a single row."""
    known = Table({"fast": 1.0, "slow": 10.0}, 0.0, {})
    offers = [offer("fast", 5.0), offer("slow", 1.0)]
    long = provision(known, (Stage("k", 1000),), offers)
    short = provision(known, (Stage("k", 1),), offers)
    assert long is not None and short is not None
    assert [one.id for one in long.offers] == ["fast"]
    assert [one.id for one in short.offers] == ["slow"]
    assert long.usd == pytest.approx(5 * sum(long.counts) * long.seconds / 3600)


def test_of_equal_cost_the_quicker_one_is_taken() -> None:
    """Without start and load, two machines cost as much as one for half the time."""
    known = Table({"a": 1.0}, 0.0, {})
    found = provision(known, (Stage("k", 4800),), [offer("a", 1.0, startup_s=0.0)])
    assert found is not None
    assert found.counts == (8,)
    dear = provision(known, (Stage("k", 100),), [offer("a", 1.0, startup_s=1000.0)])
    assert dear is not None
    assert dear.counts == (1,)


def test_a_model_that_fits_on_one_kind_only_brings_that_kind() -> None:
    known = Table({"big": 1.0, "small": 1.0}, 10.0, {"large": "big"})
    offers = [offer("big", 9.0), offer("small", 1.0)]
    found = provision(known, (Stage("large", 10), Stage("k", 10)), offers)
    assert found is not None
    assert "big" in [one.id for one in found.offers]
    assert provision(known, (Stage("large", 1),), offers[1:]) is None


# The linear program


def by_vertices(gain: np.ndarray, rows: np.ndarray, limits: np.ndarray) -> float:
    """The best vertex, found by trying all of them."""
    count, width = rows.shape
    full, bounds = np.vstack([rows, -np.eye(width)]), np.concatenate([limits, np.zeros(width)])
    best = 0.0
    for chosen in combinations(range(count + width), width):
        part = full[list(chosen)]
        if abs(np.linalg.det(part)) < 1e-9:
            continue
        x = np.linalg.solve(part, bounds[list(chosen)])
        if (full @ x <= bounds + 1e-7).all():
            best = max(best, float(gain @ x))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_no_vertex_is_better_than_what_the_simplex_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, count = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    gain = rng.uniform(-1, 1, width)
    rows = np.vstack([rng.uniform(0, 1, (count, width)), np.eye(width)])
    limits = np.concatenate([rng.uniform(0, 2, count), np.full(width, 3.0)])
    x = maximise(gain, rows, limits)
    assert (x >= -1e-9).all()
    assert (rows @ x <= limits + 1e-7).all()
    assert gain @ x == pytest.approx(by_vertices(gain, rows, limits), abs=1e-6)


def test_a_gain_without_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="no bound"):
        maximise(np.array([1.0]), np.array([[-1.0]]), np.array([1.0]))
    with pytest.raises(ValueError, match="negative"):
        maximise(np.array([1.0]), np.array([[1.0]]), np.array([-1.0]))
