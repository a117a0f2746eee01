"""Moments of renting: what counts as news, when a machine is late, when its paid time ends."""

from flowmesh.core import estimate
from flowmesh.core.fleet import Instance
from flowmesh.core.state import State

#: A worker that is not heard of after so many start-up times will not be.
LATE = 4.0
LATE_LEAST_S = 120.0
#: Before the end of a billing period, time for a machine to be gone.
BILLING_MARGIN_S = 30.0


def news(state: State) -> tuple[int, ...]:
    """What differs whenever machines, offers or work do, in this order."""
    return (
        len(state.instances),
        len(state.workers),
        len(state.offers),
        len(state.idle),
        len(state.leases),
        state.next_lease,
        len(state.ready),
        len(state.tasks),
    )


def late_s(state: State, instance: Instance) -> float:
    """From its launch until a machine that is not heard of is given up."""
    return max(LATE_LEAST_S, LATE * estimate.startup_s(state, instance.offer))


def period_ends_ms(state: State, instance: Instance) -> int:
    """When the part of a billing period begins that a machine may be given back in."""
    billing_s = instance.offer.billing_s
    if ends_period(state, instance):
        return state.now_ms
    used_s = (state.now_ms - instance.launched_ms) / 1000 % billing_s
    return state.now_ms + int(1000 * (billing_s - BILLING_MARGIN_S - used_s)) + 1


def ends_period(state: State, instance: Instance) -> bool:
    """Whether what has been paid for is nearly used up, so that going on would cost anew."""
    billing_s = instance.offer.billing_s
    if billing_s <= 2 * BILLING_MARGIN_S:
        return True
    used_s = (state.now_ms - instance.launched_ms) / 1000 % billing_s
    return billing_s - used_s <= BILLING_MARGIN_S
