"""The driver's side of renting, on a real journal, with a provider that fails."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flowmesh.base.ids import InstanceId, RunId, StepId, TenantId, WorkerId
from flowmesh.core.events import Event, RunSubmitted, StepExpanded, TaskResult, Tick, WorkerSynced
from flowmesh.core.fleet import InstanceStatus, Offer
from flowmesh.core.plan import Utility
from flowmesh.core.records import Run, Step
from flowmesh.core.scale import FleetLimits
from flowmesh.core.state import Changes
from flowmesh.fleets.simulated import ProviderFaults, SimulatedProvider, Told
from flowmesh.server.fleet import AGAIN_S, Fleet
from flowmesh.server.ledger import Ledger
from flowmesh.server.project import RunRecord, pack
from flowmesh.server.schema import MIGRATIONS
from flowmesh.spec.action import Result
from flowmesh.stores.sqlite import Database
from support.core import spec
from support.renting import offer


class Place:
    """A server's ledger and fleet, a provider, and machines whose workers do what they are told.

    Time is `now_ms`; nothing waits for it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.now_ms = 1_000_000
        self.faults = ProviderFaults(noise=1.0)
        told = Told(self._starts, stopped=self._stopped)
        offers = [offer("small", startup_s=60.0, count=3)]
        self.provider = SimulatedProvider(
            "p", offers, lambda: self.now_ms, Random(3), self.faults, told
        )
        self.workers: dict[InstanceId, list[TaskResult]] = {}
        self.limits = FleetLimits(max_instances=2)

    def serve(self) -> None:
        """A new process takes up what the last one left."""
        self.database = Database(self.home / "flowmesh.db", synchronous="NORMAL")
        self.database.migrate(MIGRATIONS)
        self.ledger = Ledger(self.database, self._changed, Utility(fleet=self.limits))
        self.now_ms = max(self.now_ms, self.ledger.plane.state.now_ms)
        self.fleet = Fleet(
            [self.provider],
            step=self.ledger.step,
            durable=self.ledger.durable,
            state=lambda: self.ledger.plane.state,
            now_ms=lambda: self.now_ms,
        )

    def _changed(self, changes: Changes) -> None:
        self.fleet.changed(changes)

    def _starts(self, name: InstanceId, _: Offer) -> None:
        self.workers[name] = []

    def _stopped(self, name: InstanceId) -> None:
        self.workers.pop(name, None)

    async def pass_time(self, seconds: int, *, works: bool = True) -> None:
        """In steps of two seconds: the provider is tended, workers sync, tasks end at once."""
        for _ in range(seconds // 2):
            self.now_ms += 2_000
            await self.step(Tick(self.now_ms))
            await self.fleet.tend_once(self.provider)
            for name, done in tuple(self.workers.items() if works else ()):
                await self._sync(name, done)

    async def _sync(self, name: InstanceId, done: list[TaskResult]) -> None:
        worker = WorkerId(f"on-{name}")
        told = WorkerSynced(
            self.now_ms, worker, ("models",), 1, 0.0, results=tuple(done), instance=name
        )
        await self.step(told)
        done.clear()
        for lease, tasks in self.ledger.plane.desired(worker):
            done += [
                TaskResult(lease.id, task, output=Result(rows=[]).encode(), seconds=1.0)
                for task in tasks
            ]

    async def step(self, event: Event) -> None:
        await self.ledger.step(event)

    async def submit(self, tasks: int) -> None:
        run, step = RunId("r"), StepId("r/only")
        record = Run(run, TenantId("t"), 0, (step,), self.now_ms)
        opaque = pack(RunRecord("fleet", "{}", [("only", "transform@1")]))
        await self.step(RunSubmitted(self.now_ms, record, (Step(step, run, ()),), opaque))
        wanted = tuple(spec(f"x{number}") for number in range(tasks))
        await self.step(StepExpanded(self.now_ms, step, tasks, wanted=wanted))

    @property
    def instances(self) -> dict[InstanceId, InstanceStatus]:
        found = self.ledger.plane.state.instances
        return {name: one.status for name, one in found.items()}


Story = Callable[[Place], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], Place]:
    place = Place(tmp_path)

    async def played(story: Story) -> None:
        place.serve()
        await place.fleet.ask_for_offers(place.provider)
        await story(place)
        place.database.close()

    def run(story: Story) -> Place:
        asyncio.run(played(story))
        return place

    return run


def test_an_offer_of_an_absurd_price_is_none(play: Callable[[Story], Place]) -> None:
    async def story(place: Place) -> None:
        state = place.ledger.plane.state
        (offer,) = state.offers
        place.provider.price(offer, 10_001.0)
        await place.fleet.ask_for_offers(place.provider)
        assert not state.offers
        place.provider.price(offer, 10_000.0)
        await place.fleet.ask_for_offers(place.provider)
        assert list(state.offers) == [offer]

    play(story)


def test_work_is_done_on_a_rented_machine_which_is_given_back(
    play: Callable[[Story], Place],
) -> None:
    async def story(place: Place) -> None:
        await place.submit(6)
        await place.pass_time(80)
        assert place.provider.held == ("i1",)
        assert place.instances == {"i1": InstanceStatus.RUNNING}
        steps = place.ledger.plane.state.steps
        assert all(not step.pending for step in steps.values())
        await place.pass_time(160)
        assert place.instances == {}

    place = play(story)
    assert place.provider.held == ()
    assert place.provider.launches == 1


def test_a_decision_that_was_not_performed_is_performed_by_the_next_process(
    play: Callable[[Story], Place],
) -> None:
    async def story(place: Place) -> None:
        await place.submit(6)
        place.now_ms += 5_000
        await place.step(Tick(place.now_ms))
        assert place.instances == {"i1": InstanceStatus.LAUNCHING}
        assert place.provider.held == ()
        place.database.close()
        place.serve()
        assert place.instances == {"i1": InstanceStatus.LAUNCHING}
        await place.fleet.tend_once(place.provider)
        assert place.provider.held == ("i1",)

    play(story)


def test_a_launch_that_was_performed_is_not_performed_twice(
    play: Callable[[Story], Place],
) -> None:
    async def story(place: Place) -> None:
        place.faults.empty = 1.0  # its lists show nothing of it
        await place.submit(6)
        await place.pass_time(10)
        place.database.close()
        place.serve()
        await place.pass_time(int(2 * AGAIN_S))

    assert play(story).provider.launches == 1


def test_an_answer_that_was_an_error_is_no_launch_too_many(play: Callable[[Story], Place]) -> None:
    async def story(place: Place) -> None:
        place.faults.fail_after = 1.0
        await place.submit(6)
        await place.pass_time(80)
        assert place.instances == {"i1": InstanceStatus.RUNNING}

    assert play(story).provider.launches == 1


def test_a_refused_launch_is_told_to_the_core(play: Callable[[Story], Place]) -> None:
    async def story(place: Place) -> None:
        place.faults.vanish = 1.0
        await place.submit(6)
        await place.pass_time(10)
        assert place.provider.held == ()
        assert place.instances == {}
        place.faults.vanish = 0.0
        await place.pass_time(80)
        assert place.provider.held == ("i2",)

    play(story)


def test_what_was_lost_of_the_journal_is_given_back(play: Callable[[Story], Place]) -> None:
    async def story(place: Place) -> None:
        await place.provider.launch(offer("small"), as_id=InstanceId("i9"))
        await place.pass_time(10)
        assert place.provider.held == ()
        assert place.instances == {}

    play(story)


def test_it_tends_by_itself_and_is_woken_by_news(
    play: Callable[[Story], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmesh.server.fleet.SOON_S", 0.01)

    async def story(place: Place) -> None:
        tending = asyncio.create_task(place.fleet.run())
        await asyncio.sleep(0)
        await place.submit(6)
        for _ in range(500):
            place.now_ms += 1_000
            await place.step(Tick(place.now_ms))
            await asyncio.sleep(0.01)
            if place.provider.held:
                break
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        assert place.provider.held == ("i1",)

    play(story)


def test_trouble_with_a_provider_is_survived(play: Callable[[Story], Place]) -> None:
    async def story(place: Place) -> None:
        place.faults.down = 1.0
        tending = asyncio.create_task(place.fleet.run())
        await asyncio.sleep(0.05)
        assert not tending.done()
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        assert not place.ledger.fatal.done()

    play(story)
