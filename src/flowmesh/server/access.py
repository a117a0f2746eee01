"""What a tenant may read: what it put itself, and what its own runs made or used."""

import asyncio

from flowmesh.base.digest import Digest
from flowmesh.stores.sqlite import Database


class Access:
    """Args: guarded is false where nobody is kept apart: a server on loopback without a token."""

    def __init__(self, database: Database, *, guarded: bool) -> None:
        self._database = database
        self.guarded = guarded

    async def grant(self, tenant: str, hex_hash: str) -> None:
        """`tenant` has shown that it has the bytes."""
        row = ("INSERT OR IGNORE INTO uploads VALUES (?, ?)", (tenant, hex_hash))
        await asyncio.wrap_future(self._database.write([row]))

    def may_read(self, tenant: str, hex_hash: str) -> bool:
        span = (f"sha256:{hex_hash}/", f"sha256:{hex_hash}0")
        found = self._database.read(
            "SELECT 1 FROM uploads WHERE tenant = ? AND hash = ?"
            " UNION ALL SELECT 1 FROM artifacts a JOIN runs r USING (run)"
            " WHERE a.digest >= ? AND a.digest < ? AND r.tenant = ?"
            " UNION ALL SELECT 1 FROM uses u JOIN steps s USING (step) JOIN runs r USING (run)"
            " WHERE u.digest >= ? AND u.digest < ? AND r.tenant = ? LIMIT 1",
            (tenant, hex_hash, *span, tenant, *span, tenant),
        )
        return bool(found)

    def may_use(self, tenant: str, digest: Digest) -> bool:
        """Whether a run of `tenant` may name this blob: its own, or a model that has a name."""
        if not self.guarded or self.may_read(tenant, digest.hash):
            return True
        named = self._database.read(
            "SELECT 1 FROM models WHERE json_extract(artifact, '$.digest') = ?", (str(digest),)
        )
        return bool(named)
