"""The core and its journal, in step: an event is applied, journaled, and only then told.

One asyncio thread steps the core. If a record cannot be journaled, memory is ahead of the
disk: nothing may be told or done any more, and the process ends; a new one replays.
"""

import asyncio
import time
from collections.abc import Callable

from flowmesh.base.errors import StoreError
from flowmesh.core.decisions import DECISIONS, Decision
from flowmesh.core.events import EVENTS, Event
from flowmesh.core.machine import ControlPlane
from flowmesh.core.plan import Policy
from flowmesh.core.state import Changes, State
from flowmesh.server import reasons
from flowmesh.server.project import statements
from flowmesh.stores.codec import Codec, decode_state, encode_state
from flowmesh.stores.sqlite import Database, SqliteJournal

CHECKPOINT_RECORDS = 5_000


class Ledger:
    """Args: on_durable is told what each record changed, once it may be told and done.

    Attributes:
        plane: the core. Only `step` may change it.
        fatal: set with the reason when the process cannot go on.
    """

    def __init__(
        self,
        database: Database,
        on_durable: Callable[[Changes], None],
        policy: Policy | None = None,
    ) -> None:
        self.fatal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_durable = on_durable
        self._journal = SqliteJournal(database)
        self._codec: Codec[Event | Decision] = Codec([*EVENTS, *DECISIONS])
        self._since_checkpoint = 0
        self._policy = policy
        self._last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._last.set_result(0)
        self.plane = self._recovered()
        # Time never goes back, whatever becomes of the machine's clock.
        wall_ms = time.time_ns() // 1_000_000
        self._zero_ms = max(wall_ms, self.plane.state.now_ms) - time.monotonic_ns() // 1_000_000

    def _recovered(self) -> ControlPlane:
        last = self._journal.last_checkpoint()
        plane = ControlPlane(self._policy, decode_state(last.state, State) if last else None)
        for _, records in self._journal.replay(last.seq if last else 0):
            plane.replay(self._codec.decode_many(records))
            plane.state.drain()
            self._since_checkpoint += 1
        return plane

    def now_ms(self) -> int:
        """Milliseconds since the epoch; never less than before."""
        return self._zero_ms + time.monotonic_ns() // 1_000_000

    async def step(self, event: Event) -> None:
        """Step the core; return once the event and what it led to are durable.

        Raises StoreError if they cannot be made durable, or earlier ones could not.
        """
        if self.fatal.done():
            raise StoreError(f"this server has stopped: {self.fatal.result()}")
        try:
            decisions = self.plane.step(event)
            changes = self.plane.state.drain()
            records = self._codec.encode_many([event, *decisions])
            rows = statements(event, decisions, changes)
            rows += reasons.statements(self.plane, decisions)
            self._last = asyncio.wrap_future(self._journal.append(event.at_ms, records, rows))
        except Exception as error:
            self.stop(f"{type(error).__name__}: {error}")
            raise
        await self.durable()
        self._on_durable(changes)
        self._since_checkpoint += 1
        if self._since_checkpoint >= CHECKPOINT_RECORDS:
            await self.checkpoint()

    async def durable(self) -> None:
        """Wait until every record made so far is durable: only then may it be told or done."""
        try:
            await asyncio.shield(self._last)
        except StoreError as error:
            self.stop(str(error))
            raise

    async def checkpoint(self) -> None:
        """Keep the state, so that a restart need not replay what led to it."""
        self._since_checkpoint = 0
        state, at_ms = encode_state(self.plane.state), self.now_ms()
        # A record of its own, behind all that the state holds.
        seq = await asyncio.wrap_future(self._journal.append(at_ms, self._codec.encode_many([])))
        await asyncio.wrap_future(self._journal.checkpoint(seq, state, at_ms))

    def stop(self, reason: str) -> None:
        if not self.fatal.done():
            self.fatal.set_result(reason)
