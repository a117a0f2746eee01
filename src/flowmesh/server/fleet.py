"""The driver's side of renting: asks providers, tells the core, does what it has decided.

Everything is level-triggered: what is to be launched and given back is read off the state, until
a provider's list shows that it was done. So it does not matter which call was lost, repeated
or cut off, or whether this is the process that decided.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from flowmesh.base.errors import LaunchRefused, ProviderError
from flowmesh.base.ids import InstanceId
from flowmesh.core import renting
from flowmesh.core.events import Event, InstancesListed, OffersListed
from flowmesh.core.fleet import MOST_USD_PER_HOUR, Instance
from flowmesh.core.state import Changes, State
from flowmesh.fleets.base import Provider

#: How often a provider is asked for its machines, and for its offers.
LIST_S = 10.0
OFFERS_S = 30.0
#: After something was launched or given back, or a machine was missing from a list.
SOON_S = 2.0
#: A launch that was answered well and is not listed yet is asked for again after so long.
AGAIN_S = 60.0
#: A call that takes longer has failed, as far as we know.
CALL_S = 60.0
#: Most launches at one provider under way at one time.
LAUNCHES_AT_ONCE = 8

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)


class Fleet:
    """Tends the machines of some providers.

    Args:
        step: gives the core an event; returns when it is durable.
        durable: returns when all that the core has decided so far is.
        state: the core's, to be read.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        step: Callable[[Event], Awaitable[None]],
        durable: Callable[[], Awaitable[None]],
        state: Callable[[], State],
        now_ms: Callable[[], int],
    ) -> None:
        names = [provider.name for provider in providers]
        assert len(dict.fromkeys(names)) == len(names), names
        self.providers = tuple(providers)
        self._step, self._durable = step, durable
        self._state, self._now_ms = state, now_ms
        self._news = {provider.name: asyncio.Event() for provider in providers}
        #: Launches that were refused, and why, until the core has heard of it.
        self._refused: dict[str, dict[InstanceId, str]] = {name: {} for name in names}
        #: When launches that are not listed yet were answered well.
        self._asked_ms: dict[InstanceId, int] = {}

    def changed(self, changes: Changes) -> None:
        """The core has changed something; called once that is durable."""
        for instance in changes.instances.values():
            news = self._news.get(instance.offer.provider)
            if news is not None:
                news.set()

    async def run(self) -> None:
        """Tend all providers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for provider in self.providers:
                group.create_task(self._tend(provider))

    async def _tend(self, provider: Provider) -> None:
        news, offers_ms = self._news[provider.name], 0
        while True:
            news.clear()
            try:
                if self._now_ms() >= offers_ms:
                    await self.ask_for_offers(provider)
                    offers_ms = self._now_ms() + int(1000 * OFFERS_S)
                busy = await self.tend_once(provider)
            except ProviderError as error:
                _log.warning("provider %s: %s", provider.name, error)
                busy = False
            try:
                # News that come while it acts are its own doing, mostly; they wait a little.
                await asyncio.sleep(SOON_S)
                if not busy:
                    async with asyncio.timeout(LIST_S - SOON_S):
                        await news.wait()
            except TimeoutError:
                pass

    async def ask_for_offers(self, provider: Provider) -> None:
        """Raises ProviderError."""
        told = map(renting.believable, await _within(provider.offers()))
        # An infinite figure cannot even be journaled.
        offers = tuple(one for one in told if one and one.usd_per_hour <= MOST_USD_PER_HOUR)
        await self._step(OffersListed(self._now_ms(), provider.name, offers))

    async def tend_once(self, provider: Provider) -> bool:
        """Tell the core what is there, then do what it wants; True if another look is due soon.

        Raises ProviderError if there is no list; then nothing is done either: a launch that
        is not in sight might be one too many.
        """
        refused = self._refused[provider.name]
        told = dict(refused)
        listed = tuple(await _within(provider.instances()))
        await self._step(
            InstancesListed(self._now_ms(), provider.name, listed, tuple(told.items()))
        )
        for name in told:
            refused.pop(name, None)
        # A decision is carried out only when a crash cannot undo it.
        await self._durable()
        launches, ends = renting.outstanding(self._state(), provider.name)
        for name in self._asked_ms.keys() - self._state().instances.keys():
            del self._asked_ms[name]
        room = asyncio.Semaphore(LAUNCHES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for instance in launches:
                group.create_task(self._launch(provider, instance, room))
            for instance in ends:
                group.create_task(self._terminate(provider, instance, room))
        ours = self._state().instances.values()
        missed = any(one.missed for one in ours if one.offer.provider == provider.name)
        return bool(launches or ends or missed)

    async def _launch(
        self, provider: Provider, instance: Instance, room: asyncio.Semaphore
    ) -> None:
        asked_ms = self._asked_ms.get(instance.id)
        if asked_ms is not None and self._now_ms() - asked_ms < 1000 * AGAIN_S:
            return
        async with room:
            try:
                await _within(provider.launch(instance.offer, as_id=instance.id))
                self._asked_ms[instance.id] = self._now_ms()
            except LaunchRefused as error:
                self._refused[provider.name][instance.id] = str(error)
            except ProviderError as error:
                _log.warning("launching %s at %s: %s", instance.id, provider.name, error)

    async def _terminate(
        self, provider: Provider, instance: Instance, room: asyncio.Semaphore
    ) -> None:
        async with room:
            try:
                await _within(provider.terminate(instance.id))
            except ProviderError as error:
                _log.warning("giving back %s at %s: %s", instance.id, provider.name, error)


async def _within(call: Awaitable[Answer]) -> Answer:
    try:
        async with asyncio.timeout(CALL_S):
            return await call
    except TimeoutError as error:
        raise ProviderError(f"it did not answer within {CALL_S:.0f} s") from error
    except (ProviderError, LaunchRefused):
        raise
    except Exception as error:
        # A mistake in a provider's code may not end the server.
        raise ProviderError(f"it failed: {type(error).__name__}: {error}") from error
