"""Any history of offers, lists, workers and work keeps the limits, and its journal replays."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from flowmesh.base.ids import InstanceId, RunId, WorkerId
from flowmesh.core.decisions import Decision, LaunchInstance
from flowmesh.core.events import PlaneStarted, RunCancelled, WorkerGone
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Utility
from flowmesh.core.scale import Bounds, FleetLimits
from support.core import spec
from support.renting import RentingBench, offer

names = st.integers(0, 9).map(lambda number: f"i{number}")
prices = st.sampled_from([0.0, 0.5, 0.7, 3.0])


class AnyRenting(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limits = FleetLimits()
        self.bench = RentingBench()

    @initialize(least=st.integers(0, 2), most=st.integers(0, 5), usd=prices, own=st.integers(0, 3))
    def limit(self, least: int, most: int, usd: float, own: int) -> None:
        self.limits = FleetLimits(
            min_instances=least,
            max_instances=most,
            usd_per_hour=usd,
            providers={"p": Bounds(0, own)},
        )
        self.bench = RentingBench(policy=Utility(fleet=self.limits))

    @rule(provider=st.sampled_from("pq"), price=prices, count=st.integers(0, 4))
    def offers(self, provider: str, price: float, count: int) -> None:
        made = offer(f"small-{provider}", provider=provider, usd_per_hour=price, count=count)
        self.keep(self.bench.offers(made, provider=provider))

    @rule(
        provider=st.sampled_from("pq"),
        listed=st.sets(names, max_size=4),
        failed=st.sets(names, max_size=2),
    )
    def lists(self, provider: str, listed: set[str], failed: set[str]) -> None:
        wrong = tuple((name, "no") for name in sorted(failed))
        self.keep(self.bench.listed(*sorted(listed), failed=wrong, provider=provider))

    @rule()
    def lists_the_truth(self) -> None:
        for provider in "pq":
            ours = [
                name
                for name, one in self.bench.state.instances.items()
                if one.offer.provider == provider and one.takes_work
            ]
            self.keep(self.bench.listed(*ours, provider=provider))

    @rule(name=names, draining=st.booleans(), leaving=st.booleans(), ends=st.booleans())
    def sync(self, name: str, draining: bool, leaving: bool, ends: bool) -> None:
        held = [task for batch in self.bench.running(name) for task in batch] if ends else []
        before = len(self.bench.journal)
        self.bench.sync(
            name, done=held, instance=InstanceId(name), draining=draining, leaving=leaving
        )
        self.keep(self.bench.journal[before + 1 :])  # type: ignore[arg-type]

    @rule(name=names)
    def end(self, name: str) -> None:
        self.keep(self.bench.step(WorkerGone(self.bench.now_ms, WorkerId(name))))

    @rule(run=st.integers(0, 3), tasks=st.integers(1, 500), work=st.sampled_from([1.0, 1e5]))
    def submit(self, run: int, tasks: int, work: float) -> None:
        before = len(self.bench.journal)
        wanted = [spec(f"x{run}.{number}", work=work, max_batch=64) for number in range(tasks)]
        self.bench.submit(f"r{run}", wanted)
        made = self.bench.journal[before:]
        self.keep([one for one in made if isinstance(one, LaunchInstance)])

    @rule(run=st.integers(0, 3))
    def cancel(self, run: int) -> None:
        self.keep(self.bench.step(RunCancelled(self.bench.now_ms, RunId(f"r{run}"))))

    @rule(seconds=st.sampled_from([1, 5, 30, 200, 1000]))
    def wait(self, seconds: int) -> None:
        self.keep(self.bench.wait(seconds))

    @rule()
    def restart(self) -> None:
        """The process is replaced: the policy's index is gone, the state is not."""
        later = ControlPlane(Utility(fleet=self.limits))
        later.replay(self.bench.journal)
        later.state.drain()
        assert later.state == self.bench.state
        self.bench.plane = later
        self.keep(self.bench.step(PlaneStarted(self.bench.now_ms)))

    def keep(self, made: list[Decision]) -> None:
        """No launch takes the fleet beyond a limit. (What is listed but unknown has no offer.)"""
        launched = [one for one in made if isinstance(one, LaunchInstance)]
        if not launched:
            return
        held = [one.offer for one in self.bench.state.instances.values() if one.offer.id]
        assert len(held) <= self.limits.max_instances
        assert sum(one.provider == "p" for one in held) <= self.limits.providers["p"].max_instances
        if self.limits.usd_per_hour:
            assert sum(one.usd_per_hour for one in held) <= self.limits.usd_per_hour + 1e-9
        assert all(one.offer.count > 0 for one in launched)

    @invariant()
    def no_name_is_used_twice(self) -> None:
        made = [one.instance for one in self.bench.journal if isinstance(one, LaunchInstance)]
        assert len(dict.fromkeys(made)) == len(made)


TestAnyRenting = AnyRenting.TestCase
TestAnyRenting.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
