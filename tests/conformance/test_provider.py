"""What every Provider promises (`fleets/base.py`), for each one there is.

A provider comes with a `Host`: how its machines get to where they are listed, or are gone.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from flowmesh.base.errors import LaunchRefused
from flowmesh.base.ids import InstanceId
from flowmesh.core.fleet import Offer
from flowmesh.fleets.base import Provider
from flowmesh.fleets.simulated import SimulatedProvider
from support.renting import offer


@dataclass
class Host:
    """A provider with nothing rented. `settle` waits until lists show what was done."""

    provider: Provider
    settle: Callable[[], None]


def simulated() -> Host:
    clock = [1_000]

    def settle() -> None:
        clock[0] += 600_000

    offers = [offer("small", count=3), offer("large", count=1)]
    return Host(SimulatedProvider("sim", offers, lambda: clock[0], Random(1)), settle)


@pytest.fixture(params=[simulated])
def host(request: pytest.FixtureRequest) -> Host:
    found: Host = request.param()
    return found


def instances(host: Host) -> list[InstanceId]:
    host.settle()
    return sorted(asyncio.run(_listed(host.provider)))


async def _listed(provider: Provider) -> list[InstanceId]:
    return list(await provider.instances())


def offers(host: Host) -> dict[str, Offer]:
    async def asked() -> dict[str, Offer]:
        return {one.id: one for one in await host.provider.offers()}

    return asyncio.run(asked())


def launch(host: Host, what: Offer, name: str) -> None:
    asyncio.run(_launch(host.provider, what, name))


async def _launch(provider: Provider, what: Offer, name: str) -> None:
    await provider.launch(what, as_id=InstanceId(name))


def terminate(host: Host, name: str) -> None:
    async def told() -> None:
        await host.provider.terminate(InstanceId(name))

    asyncio.run(told())


def an_offer(host: Host) -> Offer:
    return min(offers(host).values(), key=lambda one: one.usd_per_hour)


def test_offers_can_be_scored(host: Host) -> None:
    found = offers(host)
    assert found
    for name, one in found.items():
        assert one.id == name
        assert one.provider == host.provider.name
        assert one.usd_per_hour >= 0
        assert one.count > 0
        assert one.runtimes
        assert one.startup_s > 0
        assert one.device.kind


def test_nothing_is_rented_until_it_is_asked_for(host: Host) -> None:
    assert instances(host) == []


def test_what_was_launched_is_listed_by_its_name(host: Host) -> None:
    launch(host, an_offer(host), "i1")
    launch(host, an_offer(host), "i2")
    assert instances(host) == ["i1", "i2"]


def test_a_launch_that_is_repeated_is_one(host: Host) -> None:
    what = an_offer(host)
    for _ in range(3):
        launch(host, what, "i1")
    assert instances(host) == ["i1"]


def test_what_was_given_back_is_listed_no_more(host: Host) -> None:
    launch(host, an_offer(host), "i1")
    launch(host, an_offer(host), "i2")
    assert len(instances(host)) == 2
    terminate(host, "i1")
    assert instances(host) == ["i2"]


def test_what_is_not_there_may_be_given_back(host: Host) -> None:
    terminate(host, "i1")
    launch(host, an_offer(host), "i1")
    terminate(host, "i1")
    terminate(host, "i1")
    assert instances(host) == []


def test_what_has_only_just_been_launched_can_be_given_back(host: Host) -> None:
    launch(host, an_offer(host), "i1")
    terminate(host, "i1")
    assert instances(host) == []


def test_what_is_rented_is_offered_no_more(host: Host) -> None:
    scarce = min(offers(host).values(), key=lambda one: one.count)
    for number in range(scarce.count):
        launch(host, scarce, f"i{number}")
    host.settle()
    left = offers(host).get(scarce.id)
    assert left is None or left.count == 0


def test_an_offer_that_is_gone_is_refused_and_nothing_is_launched(host: Host) -> None:
    scarce = min(offers(host).values(), key=lambda one: one.count)
    for number in range(scarce.count):
        launch(host, scarce, f"i{number}")
    with pytest.raises(LaunchRefused):
        launch(host, scarce, "late")
    assert "late" not in instances(host)


def test_calls_may_overlap(host: Host) -> None:
    what = an_offer(host)

    async def twice() -> None:
        await asyncio.gather(*(_launch(host.provider, what, "i1") for _ in range(2)))

    asyncio.run(twice())
    assert instances(host) == ["i1"]
