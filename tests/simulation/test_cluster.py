"""Whole simulated clusters: the same from the same seed, nothing lost, nothing twice."""

import pytest

from flowmesh.base.ids import LeaseId, WorkerId
from flowmesh.core import needs
from flowmesh.core.decisions import Decision, GrantLease, LaunchInstance, TerminateInstance
from flowmesh.core.records import Expected, TaskSpec, TaskStatus
from flowmesh.core.renting import next_id
from flowmesh.core.state import State
from flowmesh.sim.cluster import simulate
from flowmesh.sim.policies import Entry, Setting, names
from flowmesh.sim.report import Report
from flowmesh.sim.scenario import Interruptions, Market, Scenario, load_scenario
from support.hashing import told


def fits(state: State, worker_id: WorkerId, spec: TaskSpec) -> bool:
    worker = state.workers[worker_id]
    weights = state.demands[spec.batch_key].weights_bytes
    return needs.fits(worker, spec) and weights < 0.85 * worker.device.memory_bytes


class FirstFit:
    """The least that can be called a policy; `most` rents machines for whatever waits.

    Idle ones are given back at once.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most

    def decide(self, state: State) -> Decision | None:
        if state.ready:
            for worker_id in state.idle:
                if choice := self._grant(state, worker_id):
                    return choice
        return self._rent(state)

    def _grant(self, state: State, worker: WorkerId) -> GrantLease | None:
        """The oldest task that fits, with others of its key."""
        waiting = [
            task
            for task in state.tasks.values()
            if task.status is TaskStatus.READY and fits(state, worker, task.spec)
        ]
        if not waiting:
            return None
        key = waiting[0].spec.batch_key
        batch = [task for task in waiting if task.spec.batch_key == key]
        limit = min(64, *(task.batch_limit for task in batch[:64]))
        tasks = tuple(task.id for task in batch[:limit])
        lease = LeaseId(state.next_lease)
        return GrantLease(state.now_ms, lease, worker, key, tasks, expected=Expected(exec_s=1.0))

    def _rent(self, state: State) -> Decision | None:
        if state.ready and len(state.instances) < self.most and state.offers:
            offer = next(iter(state.offers.values()))
            return LaunchInstance(state.now_ms, next_id(state), offer)
        busy = {worker.instance for worker in state.workers.values() if worker.leases}
        for instance in state.instances.values() if not state.runs else ():
            if instance.id not in busy and instance.status != "terminating":
                return TerminateInstance(state.now_ms, instance.id)
        return None

    def wakes_ms(self, state: State) -> int | None:
        return None


def first_fit(most: int = 0, **world: bool) -> Entry:
    def make(setting: Setting) -> FirstFit:
        return FirstFit(most)

    return Entry("first-fit", make, **world)  # type: ignore[arg-type]


def small(**changes: object) -> Scenario:
    return load_scenario("small").model_copy(update={"check_every": 25, **changes})


def test_all_work_is_done_once_and_paid() -> None:
    report = simulate(small(), first_fit(), 1)
    assert report.unsettled == 0 and all(run.status == "succeeded" for run in report.runs)
    tasks = report.tasks
    assert tasks.executed == tasks.distinct and report.doubled == tasks.failed == 0
    assert tasks.asked == tasks.executed + tasks.reused + tasks.joined > tasks.distinct
    hours = report.makespan_s / 3600
    assert report.usd == pytest.approx(hours * (2 * 1.79 + 2 * 0.41 + 0.357), rel=1e-4)
    idle_j = report.makespan_s * (2 * 120 + 2 * 73 + 40)
    assert report.joules > idle_j
    assert 0 < report.busy_gpu_s < report.rented_gpu_s
    assert sum(run.usd for run in report.runs) < report.usd


def test_the_same_seed_gives_the_same_report_and_another_another() -> None:
    one, same, other = (simulate(small(), first_fit(), seed).digest() for seed in (3, 3, 4))
    assert one == same != other


def test_no_order_of_a_set_has_a_part_in_it() -> None:
    """Processes that hash strings unlike each other tell the same."""
    code = (
        "from flowmesh.sim.cluster import simulate; from flowmesh.sim.scenario import *;"
        "s = load_scenario('headline').model_copy(update={'runs': 4});"
        "print(simulate(s, 'flowmesh', 2).digest())"
    )
    one, other = told(code)
    assert one == other and len(one) == 65


def test_overlap_is_what_makes_tenants_share() -> None:
    def distinct(overlap: float) -> float:
        tasks = simulate(small(overlap=overlap), first_fit(), 1).tasks
        return tasks.distinct / tasks.asked

    none, half, most = distinct(0.0), distinct(0.5), distinct(0.9)
    assert none == 1.0 > half > most


def test_without_deduplication_everybody_works_for_himself() -> None:
    shared = simulate(small(), first_fit(), 1)
    own = simulate(small(), first_fit(dedup=False), 1)
    assert own.tasks.executed == own.tasks.asked == shared.tasks.asked
    assert own.tasks.reused == own.tasks.joined == 0


def test_isolated_runs_share_no_batch() -> None:
    shared = simulate(small(overlap=0.0), first_fit(), 1)
    alone = simulate(small(overlap=0.0), first_fit(isolated=True), 1)
    assert alone.batches > shared.batches
    assert alone.tasks.executed == shared.tasks.executed


@pytest.mark.parametrize("notice_s", [0.0, 60.0])
def test_interruptions_lose_nothing_and_double_nothing(notice_s: float) -> None:
    """As many as three machines a minute go, in the midst of whatever they do."""
    fleet = load_scenario("preemption-15").fleet
    rough = small(
        mix={"sft-8b": 1.0, "annotate-8b": 2.0},
        rows=0.005,
        check_every=100,
        fleet=fleet,
        interruptions=Interruptions(
            source="poisson", per_hour=160.0, notice_s=notice_s, back_s=60.0
        ),
    )
    report = simulate(rough, first_fit(), 5)
    assert report.interruptions > 20
    assert report.unsettled == report.doubled == 0
    assert {run.status for run in report.runs} == {"succeeded"}
    assert report.redone_gpu_s > 0 or notice_s
    assert report.redone_gpu_s < 0.4 * report.busy_gpu_s


def test_the_traces_interruptions_are_played_or_made_up() -> None:
    fleet = load_scenario("preemption-15").fleet
    told = Interruptions(source="bamboo")
    scenario = small(fleet=fleet, interruptions=told, duration_s=7200.0, mix={"extract-1b": 1.0})
    report = simulate(scenario, first_fit(), 1)
    assert 3 < report.interruptions < 200
    assert report.data["interruptions"] in ("traces", "fitted")


def market(**changes: object) -> Scenario:
    told = Market(kinds=("A100-80",), failures=0.3, billing_s=60.0).model_copy(update=changes)
    return small(fleet=(), market=told, mix={"annotate-8b": 1.0, "chat-8b": 3.0})


def test_rented_machines_start_late_fail_and_are_paid_until_given_back() -> None:
    report = simulate(market(), first_fit(most=2), 1)
    assert report.unsettled == 0
    assert report.failed_launches > 0 and report.launches > report.failed_launches
    assert min(run.latency_s for run in report.runs if run.latency_s > 1) > 1
    first = min(report.runs, key=lambda run: run.settled_ms)
    assert first.settled_ms - first.submitted_ms > 60_000  # nothing was there before
    started = report.launches - report.failed_launches
    assert started * 60 < report.usd / 1.79 * 3600 < 2 * report.makespan_s + started * 60
    assert report.usd_by_kind.keys() == {"A100-80"}


def test_spot_machines_go_and_others_come() -> None:
    spot = market(price=("spot",)).model_copy(
        update={"interruptions": Interruptions(source="poisson", per_hour=800.0)}
    )
    report = simulate(spot, first_fit(most=3), 1)
    assert report.interruptions > 0 and report.unsettled == report.doubled == 0


def test_bytes_between_places_take_time_and_money() -> None:
    from flowmesh.sim.scenario import Network, Place

    far = Network(
        store="here",
        places={
            "here": Place(gbit_per_s=10.0, egress_usd_per_gb=0.09),
            "there": Place(gbit_per_s=0.5),
        },
    )
    parts = tuple(
        part.model_copy(update={"place": "there"}) for part in load_scenario("small").fleet
    )
    near, away = simulate(small(), first_fit(), 1), None
    away = simulate(small(fleet=parts, network=far), first_fit(), 1)
    assert "egress" not in near.usd_by_kind
    assert away.usd_by_kind["egress"] > 16 * 0.09
    assert away.latency.p95 > near.latency.p95 + 60


def test_a_report_is_plain_data() -> None:
    report: Report = simulate(small(), first_fit(), 1)
    told = report.as_json()
    assert told["latency"]["runs"] == len(told["runs"]) == 30
    assert told["data"]["profiles"] in ("traces", "fitted")
    assert set(told["tenants"]) == {run["tenant"] for run in told["runs"]}


@pytest.mark.parametrize("policy", names())
def test_every_policy_that_is_known_gets_a_small_scenario_done(policy: str) -> None:
    report = simulate(market(failures=0.1, kinds=("A100-80", "cpu")), policy, 1)
    assert report.unsettled == 0 and report.doubled == 0
    assert report.decisions >= report.batches > 0
