"""The machines of a simulation: started, leased, interrupted, given back."""

from dataclasses import replace
from typing import TYPE_CHECKING

from flowmesh.base.ids import InstanceId, LeaseId, OfferId, TaskId, WorkerId
from flowmesh.core.decisions import LaunchInstance
from flowmesh.core.events import (
    InstancesListed,
    OffersListed,
    TaskProgressed,
    WorkerGone,
)
from flowmesh.core.records import Lease, TaskSpec
from flowmesh.core.state import Changes
from flowmesh.sim import data, fitted
from flowmesh.sim.machines import CHECKPOINT_S, Box, Running
from flowmesh.sim.market import (
    PROVIDER,
    Market,
    Rented,
    described,
    machine_of,
    rate_per_hour,
)
from flowmesh.sim.scenario import Machines
from flowmesh.sim.tenants import stream
from flowmesh.sim.workflows import TRAINING_STEPS, Content

if TYPE_CHECKING:
    from flowmesh.sim.cluster import Cluster

#: A provider's list is read so long after something has changed in it.
LISTED_MS = 1_000
MARKET, SPOT = 3, 4


class Fleet:
    """All machines, past and present, and the market that they come from.

    Attributes:
        all: every machine that there was, in order of its coming.
        rented: those of the market that are there, or starting.
        sources: by kind of data, whether it is a trace's.
    """

    def __init__(self, world: "Cluster") -> None:
        self.world = world
        self.scenario = world.scenario
        self.market = Market(self.scenario)
        self.all: list[Box] = []
        self.rented: dict[InstanceId, Rented] = {}
        self.sources = {"prices": self.market.source}
        self.interruptions = self.launches = self.failed_launches = 0
        self._boxes: dict[WorkerId, Box] = {}
        self._on: dict[InstanceId, Box] = {}
        self._where: dict[LeaseId, Box] = {}
        self._saved: dict[TaskId, int] = {}
        self._failed: dict[InstanceId, str] = {}
        self._listing = False
        self._chance = stream(world.seed, MARKET)
        self._spot = stream(world.seed, SPOT)

    def start(self) -> None:
        """The fixed machines come, the market tells its offers, interruptions begin."""
        number = 0
        for part in self.scenario.fleet:
            for _ in range(part.count):
                self._fixed(part, number, 0)
                number += 1
        if self.scenario.market is not None:
            self.world.after(0, self._list)
        self._interruptions()

    def _fixed(self, part: Machines, number: int, generation: int) -> None:
        made = machine_of(self.scenario, part.kind, part.gpus)
        box = Box(
            worker=WorkerId(f"w{number}.{generation}" if generation else f"w{number}"),
            machine=made,
            device=described(self.scenario, made, part.place),
            place=part.place,
            usd_per_hour=self.market.fixed_usd_per_hour(part, made),
            born_ms=self.world.now_ms,
            slots=part.slots,
            part=number,
            interruptible=self.scenario.interruptions.source != "none",
        )
        box.interruptions_per_hour = rate_per_hour(self.scenario) if box.interruptible else 0.0
        self._comes(box)

    def _comes(self, box: Box) -> None:
        self.all.append(box)
        self._boxes[box.worker] = box
        if self.scenario.interruptions.source == "poisson" and box.interruptible:
            life = fitted.lifetimes_s(self._spot, 1, max(1e-9, box.interruptions_per_hour))
            self.world.after(1000 * float(life[0]), self._doomed, box)
        self.world.step(box.synced(self.world.now_ms))

    # Leases

    def begin(self, lease: Lease, rows: list[tuple[Content, int]]) -> None:
        """A lease was granted: what it takes is settled now."""
        box, world = self._boxes[lease.worker], self.world
        step = self._saved.get(lease.tasks[0], 0) if lease.checkpoints[0] else 0
        how = (world.truth, world.noise(lease.id), step)
        running = box.begin(world.now_ms, lease.id, lease.tasks, rows, how)
        self._where[lease.id] = box
        world.ledger.prefix_saved += (
            sum(int(one.prompt[row]) for one, row in rows) - running.timing.prompt_tokens
            if rows[0][0].prefixes
            else 0
        )
        if rows[0][0].step.kind == "train" and box.interruptions_per_hour:
            self._save_later(box, running)
        for upto in running.parts():
            world.after(running.at_ms(upto - 1) - world.now_ms, self._report, (box, running, upto))

    def _report(self, what: tuple[Box, Running, int]) -> None:
        box, running, upto = what
        if box.running.get(running.lease) is not running:
            return
        self._tell(box, running, upto)

    def _tell(self, box: Box, running: Running, upto: int, *, leaving: bool = False) -> None:
        results = box.report(running, upto)
        running.told_ms = self.world.now_ms
        if upto == len(running.order):
            box.stop(running, self.world.now_ms, wasted=running.failure is not None)
            self._where.pop(running.lease, None)
        self.world.step(box.synced(self.world.now_ms, results, leaving))

    def ended(self, lease: Lease, reason: str) -> None:
        """A lease is over for the plane; if its work is not, nobody wants it any more."""
        box = self._where.pop(lease.id, None)
        if box is not None and lease.id in box.running:
            box.stop(box.running[lease.id], self.world.now_ms, wasted=True)

    # Checkpoints

    def _save_later(self, box: Box, running: Running) -> None:
        """Checkpoints at Young's interval: each costs time too."""
        per_s = box.interruptions_per_hour / 3600
        interval_s = (2 * CHECKPOINT_S / per_s) ** 0.5
        count = int(running.timing.exec_s / interval_s)
        if not count:
            return
        running.interval_s = interval_s
        extra_s = count * CHECKPOINT_S
        running.ends_s = running.ends_s + extra_s
        running.timing = replace(running.timing, exec_s=running.timing.exec_s + extra_s)
        for number in range(1, count + 1):
            at_s = running.prepare_s + number * (interval_s + CHECKPOINT_S)
            self.world.after(1000 * at_s, self._checkpoint, (box, running))

    def _checkpoint(self, what: tuple[Box, Running]) -> None:
        box, running = what
        if box.running.get(running.lease) is not running:
            return
        done_s = (self.world.now_ms - running.start_ms) / 1000 - running.prepare_s
        share = min(0.999, max(0.0, done_s / running.timing.exec_s))
        step = running.step + int((TRAINING_STEPS - running.step) * share)
        task = running.tasks[0]
        if step <= self._saved.get(task, 0):
            return
        self._saved[task] = step
        running.told_ms = self.world.now_ms
        tree = f"{task}@{step}"
        self.world.step(
            TaskProgressed(self.world.now_ms, box.worker, running.lease, task, step, tree)
        )

    def with_checkpoints(
        self, wanted: tuple[TaskSpec, ...], content: Content
    ) -> tuple[TaskSpec, ...]:
        """Tasks with what earlier attempts have left."""
        if content.step.kind != "train":
            return wanted
        steps = [self._saved.get(spec.id, 0) for spec in wanted]
        return tuple(
            replace(spec, checkpoint=f"{spec.id}@{step}", step=step) if step else spec
            for spec, step in zip(wanted, steps, strict=True)
        )

    # The market

    def _list(self, _: object = None) -> None:
        """The provider's lists, as they are now."""
        self._listing = False
        now_ms = self.world.now_ms
        failed = tuple(self._failed.items())
        self._failed.clear()
        self.world.step(InstancesListed(now_ms, PROVIDER, tuple(self.rented), failed))
        self.world.step(OffersListed(now_ms, PROVIDER, self.market.listed()))

    def _list_soon(self) -> None:
        if not self._listing:
            self._listing = True
            self.world.after(LISTED_MS, self._list)

    def launch(self, choice: LaunchInstance) -> None:
        """The plane rents a machine; it starts, or does not."""
        assert self.scenario.market is not None
        offer_id, market = choice.offer.id, self.scenario.market
        self.launches += 1
        self._list_soon()
        if not self.market.take(offer_id):
            self._fails(choice.instance, "there is none left")
            return
        made = self.market.machines[OfferId(offer_id)]
        rented = Rented(choice.instance, choice.offer, made, self.world.now_ms)
        self.rented[choice.instance] = rented
        low, high = market.startup_s
        seconds = low + (high - low) * self._chance.random()
        fails = self._chance.random() < market.failures
        self.world.after(1000 * seconds, self._no_start if fails else self._ready, rented)

    def _fails(self, instance: InstanceId, why: str) -> None:
        self.failed_launches += 1
        self._failed[instance] = why
        self._list_soon()

    def _no_start(self, rented: Rented) -> None:
        if self.rented.pop(rented.instance, None) is None:
            return
        rented.failed = True
        rented.gone_ms = self.world.now_ms
        self.market.give_back(rented.offer.id)
        self._fails(rented.instance, "it did not start")

    def _ready(self, rented: Rented) -> None:
        if rented.gone_ms:
            return
        offer = rented.offer
        box = Box(
            worker=WorkerId(f"{rented.instance}.w"),
            machine=rented.machine,
            device=offer.device,
            place=offer.place,
            usd_per_hour=offer.usd_per_hour,
            born_ms=rented.launched_ms,
            rented=rented,
            interruptible=offer.spot,
            interruptions_per_hour=offer.interruptions_per_hour,
        )
        self._on[rented.instance] = box
        self._comes(box)

    def terminate(self, instance: InstanceId) -> None:
        """The plane gives a machine back; what it has begun there is lost."""
        rented = self.rented.pop(instance, None)
        if rented is None:
            return
        rented.gone_ms = self.world.now_ms
        self.market.give_back(rented.offer.id)
        self._list_soon()
        box = self._on.pop(instance, None)
        if box is not None:
            self.world.after(0, self._goes, box)
        else:
            self.all.append(_never_up(rented))

    def _goes(self, box: Box) -> None:
        """A machine is there no more; its worker says so, if it still can."""
        if box.gone_ms:
            return
        box.gone_ms = max(1, self.world.now_ms)
        del self._boxes[box.worker]
        for running in tuple(box.running.values()):
            box.stop(running, self.world.now_ms, wasted=True)
            self._where.pop(running.lease, None)
        self.world.step(WorkerGone(self.world.now_ms, box.worker))

    # Interruptions

    def _interruptions(self) -> None:
        told = self.scenario.interruptions
        self.sources["interruptions"] = "fitted" if told.source != "none" else "none"
        if told.source in ("none", "poisson"):
            return
        path = data.find(data.BAMBOO) if told.source == "bamboo" else data.given(told.source)
        if path is None:
            rate = fitted.BAMBOO_PER_MACHINE_HOUR
            self.world.after(0, self._next_burst, rate)
            return
        self.sources["interruptions"] = "traces"
        self.world.after(0, self._play, data.bamboo(path))

    def _next_burst(self, rate: float) -> None:
        """Without the trace: as many go, at as many times, as in the trace."""
        live = sum(box.interruptible and not box.gone_ms for box in self.all)
        bursts_per_s = max(1, live) * rate / 3600 / fitted.BAMBOO_TOGETHER
        delay_s = float(self._spot.exponential(1 / bursts_per_s))
        count = 1 + int(self._spot.poisson(fitted.BAMBOO_TOGETHER - 1)) if live else 0
        self.world.after(1000 * delay_s, self._burst, (count, rate))

    def _burst(self, what: tuple[int, float]) -> None:
        count, rate = what
        self._take_away(count)
        self._next_burst(rate)

    def _play(self, events: list[tuple[float, bool]]) -> None:
        """One round of a trace; scaled by how many machines there are beside its own."""
        live, most = 0, 1
        for at_s, away in events:
            live += -1 if away else 1
            most = max(most, live)
            if away:
                self.world.after(1000 * at_s, self._one_goes, live + 1)
        self.world.after(1000 * events[-1][0], self._play, events)

    def _one_goes(self, there: int) -> None:
        """A machine of the trace went, one of `there`: each of ours goes with that chance."""
        ours = sum(box.interruptible and not box.gone_ms for box in self.all)
        expected = ours / max(1, there)
        count = int(expected) + (self._spot.random() < expected - int(expected))
        self._take_away(count)

    def _take_away(self, count: int) -> None:
        live = [box for box in self.all if box.interruptible and not box.gone_ms]
        for _ in range(min(count, len(live))):
            self._doomed(live.pop(int(self._spot.integers(len(live)))))

    def _doomed(self, box: Box) -> None:
        """A machine will be taken away: at once, or after a notice."""
        if box.gone_ms or box.draining:
            return
        notice_s = self.scenario.interruptions.notice_s
        if not notice_s:
            self._taken(box)
            return
        box.draining = True
        self.world.after(1000 * notice_s, self._taken, box)
        self.world.step(box.synced(self.world.now_ms))

    def _taken(self, box: Box) -> None:
        if box.gone_ms:
            return
        self.interruptions += 1
        if box.draining:
            self._save_all(box)
        if box.rented is not None:
            self.rented.pop(box.rented.instance, None)
            self._on.pop(box.rented.instance, None)
            box.rented.gone_ms = self.world.now_ms
            self.market.give_back(box.rented.offer.id)
            self._list_soon()
        else:
            back_s = float(self._spot.exponential(self.scenario.interruptions.back_s))
            self.world.after(1000 * back_s, self._back, box)
        self._goes(box)

    def _save_all(self, box: Box) -> None:
        """With notice, rows that have ended are told, and training leaves a checkpoint."""
        now_ms = self.world.now_ms
        for running in tuple(box.running.values()):
            passed_s = (now_ms - running.start_ms) / 1000 - running.prepare_s
            upto = int((running.ends_s <= passed_s).sum())
            if running.told < upto < len(running.order):
                self._tell(box, running, upto)
            if running.interval_s:
                self._checkpoint((box, running))

    def _back(self, old: Box) -> None:
        """A fixed fleet has another machine in the place of the one that went."""
        name, _, generation = old.worker.partition(".")
        del name
        number = old.part
        parts = [part for part in self.scenario.fleet for _ in range(part.count)]
        self._fixed(parts[number], number, int(generation or 0) + 1)

    def take(self, changes: Changes) -> None:
        """Tasks that have ended leave their checkpoints behind."""
        for one in changes.accepted:
            self._saved.pop(one.result.task, None)


def _never_up(rented: Rented) -> Box:
    """For the bill: a machine that was given back before it had started."""
    box = Box(
        worker=WorkerId(f"{rented.instance}.w"),
        machine=rented.machine,
        device=rented.offer.device,
        place=rented.offer.place,
        usd_per_hour=rented.offer.usd_per_hour,
        born_ms=rented.launched_ms,
        rented=rented,
    )
    box.gone_ms = max(1, rented.gone_ms)
    return box
