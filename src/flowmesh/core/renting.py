"""The law of rented machines: offered, launched, heard of, drained, given back, gone.

| from        | to          | when                                                           |
| ----------- | ----------- | -------------------------------------------------------------- |
| (none)      | LAUNCHING   | the policy rents it                                            |
| LAUNCHING   | RUNNING     | its worker is heard of                                         |
| LAUNCHING   | DRAINING    | the policy wants no work on it                                 |
| RUNNING     | DRAINING    | the same                                                       |
| LAUNCHING   | TERMINATING | the policy gives it back                                       |
| RUNNING     | TERMINATING | the same                                                       |
| DRAINING    | TERMINATING | the same                                                       |
| (none)      | TERMINATING | it is listed as ours and not known: nobody may pay for that    |
| any         | (gone)      | it was listed and is no more, could not be launched, or was    |
|             |             | never listed for LAUNCH_GRACE_MS                               |
"""

from typing import assert_never

from flowmesh.base.ids import InstanceId, OfferId, WorkerId
from flowmesh.base.replacing import replace
from flowmesh.core import learning
from flowmesh.core.decisions import DrainInstance, LaunchInstance, TerminateInstance
from flowmesh.core.events import InstancesListed, OffersListed
from flowmesh.core.fleet import Device, Instance, InstanceStatus, Offer, Worker
from flowmesh.core.state import State

Record = OffersListed | InstancesListed | LaunchInstance | DrainInstance | TerminateInstance

#: A list may have been made before a launch took effect; after so long it should be in it.
LAUNCH_GRACE_MS = 300_000
#: Lists in a row that lack a machine before its workers are taken for lost: lists may be stale,
#: or empty by mistake.
MISSED = 2
#: Dollars, seconds, interruptions of an offer: figures beyond it are errors.
MOST = 1e9
#: A lower price is none.
LEAST_USD_PER_HOUR = 1e-9
#: Digits of an instance's number that are believed.
DIGITS = 12


def take(state: State, record: Record) -> tuple[WorkerId, ...]:
    """Change `state` by one record; returns workers whose machine is gone."""
    match record:
        case OffersListed():
            _offers_listed(state, record)
        case InstancesListed():
            return _instances_listed(state, record)
        case LaunchInstance():
            _launch(state, record)
        case DrainInstance() | TerminateInstance():
            _give_up(state, record)
        case _:
            assert_never(record)
    return ()


def _offers_listed(state: State, event: OffersListed) -> None:
    old = [offer.id for offer in state.offers.values() if offer.provider == event.provider]
    for offer_id in old:
        del state.offers[offer_id]
    for offer in event.offers:
        if (known := believable(offer)) is not None:
            state.offers[offer.id] = replace(known, provider=event.provider)


def believable(offer: Offer) -> Offer | None:
    """An offer without figures that cannot be meant; None if its price is none.

    Such figures come from a slip of a provider, and would be infinite further on.
    """
    usd_per_hour = offer.usd_per_hour
    if not 0 <= usd_per_hour <= MOST:
        return None
    return replace(
        offer,
        usd_per_hour=usd_per_hour if usd_per_hour >= LEAST_USD_PER_HOUR else 0.0,
        device=offer.device.believable(),
        startup_s=_between(offer.startup_s, MOST),
        billing_s=_between(offer.billing_s, MOST),
        interruptions_per_hour=_between(offer.interruptions_per_hour, MOST),
    )


def _between(value: float, most: float) -> float:
    """`value`, if it is from 0 to `most`; else the nearer of both, and 0 for what is no number."""
    return min(max(value, 0.0), most) if value == value else 0.0


def _launch(state: State, choice: LaunchInstance) -> None:
    assert choice.instance == next_id(state), choice
    state.next_instance += 1
    offer = state.offers.get(choice.offer.id)
    if offer is not None:
        state.offers[offer.id] = replace(offer, count=max(0, offer.count - 1))
    state.put_instance(Instance(choice.instance, choice.offer, state.now_ms))
    _take_draining(state, choice.instance)


def next_id(state: State) -> InstanceId:
    """What the next instance is called."""
    return InstanceId(f"i{state.next_instance}")


def outstanding(state: State, provider: str) -> tuple[list[Instance], list[Instance]]:
    """What is to be launched and what given back at a provider: a pure reading of the state.

    Until a list shows that it was done, it is to be done, perhaps again.
    """
    ours = [one for one in state.instances.values() if one.offer.provider == provider]
    launches = [one for one in ours if one.takes_work and not one.listed and not one.running_ms]
    return launches, [one for one in ours if one.status is InstanceStatus.TERMINATING]


def _give_up(state: State, choice: DrainInstance | TerminateInstance) -> None:
    instance = state.instances.get(choice.instance)
    drains = isinstance(choice, DrainInstance)
    if instance is None or instance.status is InstanceStatus.TERMINATING:
        return
    status = InstanceStatus.DRAINING if drains else InstanceStatus.TERMINATING
    state.put_instance(replace(instance, status=status, message=choice.reason))
    _take_draining(state, instance.id)


def _take_draining(state: State, instance_id: InstanceId) -> None:
    """What holds for a machine holds for the workers that are on it already."""
    for worker_id in tuple(state.hosted.get(instance_id, ())):
        heard(state, state.workers[worker_id])


def _instances_listed(state: State, event: InstancesListed) -> tuple[WorkerId, ...]:
    listed, failed = dict.fromkeys(event.instances), dict(event.failed)
    lost: dict[WorkerId, None] = {}
    ours = [one for one in state.instances.values() if one.offer.provider == event.provider]
    for instance in ours:
        if instance.id in listed:
            if not instance.listed or instance.missed:
                state.put_instance(replace(instance, listed=True, missed=0))
            continue
        why = _why_gone(state, instance, failed)
        if why:
            lost |= state.hosted.get(instance.id, {})
            _gone(state, instance, why)
        elif instance.listed:
            state.put_instance(replace(instance, missed=instance.missed + 1))
    for instance_id in listed:
        if instance_id not in state.instances:
            _stray(state, event.provider, instance_id)
    return tuple(lost)


def _why_gone(state: State, instance: Instance, failed: dict[InstanceId, str]) -> str:
    """Why a machine that is not in its provider's list does not exist; empty if it may."""
    # A worker that was heard of is proof that the launch has worked after all.
    if instance.id in failed and not instance.running_ms:
        return failed[instance.id] or "it could not be launched"
    if not instance.listed:
        late = state.now_ms - instance.launched_ms >= LAUNCH_GRACE_MS
        return "its provider never listed it" if late else ""
    if instance.status is InstanceStatus.TERMINATING:
        return instance.message or "given back"
    silent = instance.running_ms and instance.id not in state.hosted
    if silent or instance.missed + 1 >= MISSED:
        return "its provider lists it no more"
    return ""


def _gone(state: State, instance: Instance, why: str) -> None:
    """A machine is no more; what it has shown of interruptions is learnt."""
    del state.instances[instance.id]
    state.changes.instances.pop(instance.id, None)
    state.changes.gone.append(replace(instance, message=why))
    if not instance.listed or not instance.running_ms:
        return
    hours = (state.now_ms - instance.running_ms) / 3_600_000
    if instance.status is InstanceStatus.RUNNING:
        learning.interrupted(state, instance.offer, hours)
    else:
        learning.released(state, instance.offer, hours)


def _stray(state: State, provider: str, instance_id: InstanceId) -> None:
    """A machine with our tag that the state does not know: it is given back.

    Its number is never used again: two machines of one name could not be told apart.
    """
    digits = instance_id[1:]
    if instance_id[:1] == "i" and digits.isascii() and digits.isdecimal() and len(digits) <= DIGITS:
        state.next_instance = max(state.next_instance, int(digits) + 1)
    offer = Offer(OfferId(""), provider, (), 0.0, Device())
    message = "it is listed as ours, and not known"
    status = InstanceStatus.TERMINATING
    state.put_instance(Instance(instance_id, offer, state.now_ms, status, True, message=message))
    _take_draining(state, instance_id)


def heard(state: State, worker: Worker) -> None:
    """A worker that may be on a rented machine was heard of, and is in the state.

    What it does not know of its machine is put in: that it goes soon, its price, its risk.
    """
    instance = state.instances.get(worker.instance)
    if instance is None:
        return
    if not instance.running_ms:
        launching = instance.status is InstanceStatus.LAUNCHING
        if launching:
            seconds = (state.now_ms - instance.launched_ms) / 1000
            learning.started(state, instance.offer, seconds)
        status = InstanceStatus.RUNNING if launching else instance.status
        running_ms = max(1, state.now_ms)
        state.put_instance(replace(instance, status=status, running_ms=running_ms))
        state.note_quiet(instance.id)
    offer = instance.offer
    known = replace(
        worker,
        draining=worker.draining or not instance.takes_work,
        usd_per_hour=worker.usd_per_hour or offer.usd_per_hour,
        interruptions_per_hour=worker.interruptions_per_hour or offer.interruptions_per_hour,
    )
    if known != worker:
        state.put_worker(known)
