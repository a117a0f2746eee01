"""What a tenant may read: what it put itself, and what its own runs made or used.

A tree's manifest names its files but proves nothing: anybody can write one that names the
blobs of others. So the files of a tree are read through it only where the tree itself can be
believed: a run of the tenant made it, or it was checked (`hidden_file`) before a run took it
or a name was given to it.
"""

import asyncio

from flowmesh.base.digest import Digest
from flowmesh.stores.base import BlobStore
from flowmesh.stores.sqlite import Database
from flowmesh.stores.trees import read_manifest


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
