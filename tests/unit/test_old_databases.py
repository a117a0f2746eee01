"""A server takes up what the last version left, when that one was stopped as it should be."""

import asyncio
import gzip
from pathlib import Path

from flowmesh.core.check import check
from flowmesh.core.records import TaskStatus
from flowmesh.core.state import Changes, State
from flowmesh.server.ledger import Ledger
from flowmesh.server.schema import MIGRATIONS
from flowmesh.stores.sqlite import Database

#: Of a server of issue 3 that was stopped with one of two runs still to be done; it has written
#: its state, in the shape of its own version, behind the journal.
LAST = Path(__file__).parent / "databases" / "2026-11-issue-3.db.gz"


def test_a_state_of_the_last_version_is_made_anew_from_the_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(gzip.decompress(LAST.read_bytes()))

    async def opened() -> State:
        database = Database(tmp_path / "journal.db")
        database.migrate(MIGRATIONS)
        state = Ledger(database, _ignore).plane.state
        database.close()
        return state

    state = asyncio.run(opened())
    check(state)
    assert [task.status for task in state.tasks.values()].count(TaskStatus.READY) == 2
    assert len(state.runs) == 2


def _ignore(_: Changes) -> None:
    """Nothing is to be performed."""
