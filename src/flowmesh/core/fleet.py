"""Where work can run: devices, workers, and machines that are or could be rented."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf

from flowmesh.base.ids import InstanceId, LeaseId, OfferId, WorkerId
from flowmesh.base.replacing import replace

#: What a worker or an offer may cost. The largest machines of clouds cost some hundred dollars;
#: of a price that is far beyond it, sums of what is held would not be exact any more.
MOST_USD_PER_HOUR = 10_000.0


@dataclass(frozen=True, slots=True)
class Device:
    """What a kind of machine can do, by its data sheet or by its own measurement; 0: not known.

    Attributes:
        kind: what estimates are kept by: machines of one kind take equal times.
        flops_per_s: dense, of all its GPUs (or processors) that a batch may use.
        bandwidth_bytes_per_s: of their memory, likewise.
        memory_bytes: for weights and caches.
        load_bytes_per_s: from its disk into that memory.
        fetch_bytes_per_s: from the store to its disk.
        idle_w, busy_w: electric power, of the whole machine.
    """

    kind: str = ""
    flops_per_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    memory_bytes: int = 0
    load_bytes_per_s: float = 0.0
    fetch_bytes_per_s: float = 0.0
    idle_w: float = 0.0
    busy_w: float = 0.0

    def believable(self) -> "Device":
        """The same without rates that no machine has: beside real ones they overflow.

        What is not finite, or less than 1 a second, is not known.
        """
        names = ("flops_per_s", "bandwidth_bytes_per_s", "load_bytes_per_s", "fetch_bytes_per_s")
        wrong = {name: 0.0 for name in names if not 1 <= getattr(self, name) < inf}
        return replace(self, **wrong) if wrong else self


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it last described itself.

    Attributes:
        usd_per_hour: price of the whole worker, busy or not.
        warm: batch keys whose engine is loaded.
        devices: GPUs that a batch may use.
        memory_bytes: limit of its children's memory; 0 is no limit.
        draining: it gets no new work, as it goes soon.
        place: region or site; what moves between places may cost.
        holds: digests of the trees in its cache.
        instance: the rented machine that it runs on, if it is one of ours.
    """

    id: WorkerId
    runtimes: tuple[str, ...]
    slots: int
    usd_per_hour: float
    warm: tuple[str, ...]
    heard_ms: int
    leases: tuple[LeaseId, ...] = ()
    devices: int = 1
    memory_bytes: int = 0
    draining: bool = False
    device: Device = Device()
    place: str = ""
    holds: tuple[str, ...] = ()
    instance: InstanceId = InstanceId("")
    interruptions_per_hour: float = 0.0

    @property
    def takes_work(self) -> bool:
        return len(self.leases) < self.slots and not self.draining


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine that a provider would rent out now.

    Attributes:
        runtimes, slots, devices, memory_bytes, device, place: of the worker it would become.
        startup_s: from launch until that worker takes work, as the provider claims.
        billing_s: what is begun of such a span is paid for in full.
        count: how many there are.
        spot: it may be taken away.
    """

    id: OfferId
    provider: str
    runtimes: tuple[str, ...]
    usd_per_hour: float
    device: Device
    slots: int = 1
    devices: int = 1
    memory_bytes: int = 0
    place: str = ""
    startup_s: float = 60.0
    billing_s: float = 1.0
    interruptions_per_hour: float = 0.0
    count: int = 1
    spot: bool = False


class InstanceStatus(StrEnum):
    """Of a rented machine; `docs/lifecycle.md` draws who may move it."""

    LAUNCHING = "launching"  #: asked for; its worker has not been heard of
    RUNNING = "running"  #: its worker was heard of
    DRAINING = "draining"  #: its worker gets no new work
    TERMINATING = "terminating"  #: to be given back; the provider still lists it


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine that is rented, from the decision to launch it until the provider lists it no more.

    Attributes:
        listed: the provider has confirmed it.
        running_ms: when its worker was first heard of; 0 if it was not.
        quiet_ms: since when its worker has had nothing to do; 0 while it has.
        missed: lists in a row that lacked it after it was listed.
        message: why it is drained or given back, or why there is none.
    """

    id: InstanceId
    offer: Offer
    launched_ms: int
    status: InstanceStatus = InstanceStatus.LAUNCHING
    listed: bool = False
    running_ms: int = 0
    quiet_ms: int = 0
    message: str = ""
    missed: int = 0

    @property
    def takes_work(self) -> bool:
        return self.status in (InstanceStatus.LAUNCHING, InstanceStatus.RUNNING)
