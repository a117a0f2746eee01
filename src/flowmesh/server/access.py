"""What a tenant may read: what it put itself, and what its own runs made or used.

A tree's manifest names its files but proves nothing: anybody can write one that names the
blobs of others. So the files of a tree are read through it only where the tree itself can be
believed: a run of the tenant made it, or it was checked (`hidden_file`) before a run took it
or a name was given to it.
"""

import asyncio
from collections.abc import Collection

from flowmesh.base.digest import Digest
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database
from flowmesh.stores.trees import read_manifest


class Access:
    """Args: guarded is false where nobody is kept apart: a server on loopback without a token."""

    def __init__(self, database: Database, *, guarded: bool) -> None:
        self._database = database
        self.guarded = guarded

    async def grant(self, tenant: str, digest: Digest) -> None:
        """`tenant` has shown that it has the bytes."""
        row = (tenant, digest.hash, digest.size_bytes)
        statement = "INSERT OR IGNORE INTO uploads (tenant, hash, size_bytes) VALUES (?, ?, ?)"
        await asyncio.wrap_future(self._database.write([(statement, row)]))

    def has_put(self, tenant: str, hex_hash: str) -> bool:
        """Whether `tenant` has put this blob itself."""
        one = "SELECT 1 FROM uploads WHERE tenant = ? AND hash = ?"
        return bool(self._database.read(one, (tenant, hex_hash)))

    def stored_bytes(self, tenant: str) -> int:
        """Bytes of all blobs that `tenant` has put itself, each counted once."""
        total = "SELECT coalesce(sum(size_bytes), 0) FROM uploads WHERE tenant = ?"
        ((size_bytes,),) = self._database.read(total, (tenant,))
        return int(size_bytes)

    def stored_by_tenant(self) -> dict[str, int]:
        """The same of every tenant that has put something."""
        total = "SELECT tenant, coalesce(sum(size_bytes), 0) FROM uploads GROUP BY tenant"
        return {str(tenant): int(size_bytes) for tenant, size_bytes in self._database.read(total)}

    async def collected(self, removed: Collection[Digest]) -> None:
        """These blobs are gone from the store: nobody has put them any more."""
        gone = [("DELETE FROM uploads WHERE hash = ?", (digest.hash,)) for digest in removed]
        await asyncio.wrap_future(self._database.write(gone))

    async def learn_sizes(self, store: BlobStore) -> None:
        """Fill in the sizes that earlier versions have not kept."""
        if not self._database.read("SELECT 1 FROM uploads WHERE size_bytes IS NULL LIMIT 1"):
            return
        update = "UPDATE uploads SET size_bytes = ? WHERE hash = ? AND size_bytes IS NULL"
        known = [(update, (one.digest.size_bytes, one.digest.hash)) for one in store.list()]
        rest = ("UPDATE uploads SET size_bytes = 0 WHERE size_bytes IS NULL", ())
        await asyncio.wrap_future(self._database.write([*known, rest]))

    def may_read(self, tenant: str, hex_hash: str) -> bool:
        """Whether the bytes of this blob may be told: of a tree, those of its manifest."""
        span = _span(hex_hash)
        found = self._database.read(
            "SELECT 1 FROM uploads WHERE tenant = ? AND hash = ?"
            " UNION ALL SELECT 1 FROM artifacts a JOIN runs r USING (run)"
            " WHERE a.digest >= ? AND a.digest < ? AND r.tenant = ?"
            " UNION ALL SELECT 1 FROM uses u JOIN steps s USING (step) JOIN runs r USING (run)"
            " WHERE u.digest >= ? AND u.digest < ? AND r.tenant = ? LIMIT 1",
            (tenant, hex_hash, *span, tenant, *span, tenant),
        )
        return bool(found)

    def may_read_tree(self, tenant: str, hex_hash: str) -> bool:
        """Whether all files of this tree may be told, because the tree can be believed."""
        span = _span(hex_hash)
        found = self._database.read(
            "SELECT 1 FROM artifacts a JOIN runs r USING (run)"
            " WHERE a.digest >= ? AND a.digest < ? AND a.kind = 'tree' AND r.tenant = ?"
            " UNION ALL SELECT 1 FROM uses u JOIN steps s USING (step) JOIN runs r USING (run)"
            " WHERE u.digest >= ? AND u.digest < ? AND u.kind = 'tree' AND r.tenant = ?"
            " UNION ALL SELECT 1 FROM standing_tags"
            " WHERE digest >= ? AND digest < ? AND owner IN (?, '') LIMIT 1",
            (*span, tenant, *span, tenant, *span, tenant),
        )
        return bool(found)

    def may_use(self, tenant: str, digest: Digest) -> bool:
        """Whether a run of `tenant` may name this blob: its own, or a model that has a name."""
        if not self.guarded or self.may_read(tenant, digest.hash):
            return True
        return self.may_read_tree(tenant, digest.hash)

    def hidden_file(self, tenant: str, tree: Digest, store: BlobStore) -> Digest | None:
        """A file that a tree names and `tenant` may not use; None if it may use the whole tree.

        Raises StoreError, and SpecError if this is no tree.
        """
        if not self.guarded or self.may_read_tree(tenant, tree.hash):
            return None
        files = [file.digest for file in read_manifest(store, tree).files]
        return next((one for one in files if not self.may_read(tenant, one.hash)), None)


def _span(hex_hash: str) -> tuple[str, str]:
    """Bounds of the digests with this hash, whatever their length."""
    return f"sha256:{hex_hash}/", f"sha256:{hex_hash}0"
