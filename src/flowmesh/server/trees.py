"""Trees over HTTP: the manifest, and each file by its path.

Who may read a tree may read its files through it, and no other blob by its digest.
"""

import asyncio
from collections.abc import Iterator
from functools import lru_cache

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, NotFound
from flowmesh.server.auth import Tenant, TheDriver, WorkerName
from flowmesh.server.blobs import Size, check_hash, is_worker, sized
from flowmesh.server.driver import Driver
from flowmesh.stores.trees import Manifest, read_manifest

routes = APIRouter(prefix="/v1/trees", tags=["store"])


@lru_cache(16)
def _manifest(driver: Driver, digest: Digest) -> Manifest:
    """Kept, as a client asks for one file after the other of the same tree."""
    return read_manifest(driver.store, digest)


@routes.get("/{hex_hash}", response_class=StreamingResponse)
async def get_manifest(
    hex_hash: str, tenant: Tenant, driver: TheDriver, worker: WorkerName = "", size: Size = None
) -> StreamingResponse:
    """The manifest of a tree: canonical JSON with the path and digest of each file."""
    check_hash(hex_hash)

    def allowed() -> bool:
        access = driver.access
        return (
            is_worker(driver, worker)
            or access.may_read_tree(tenant, hex_hash)
            or access.may_read(tenant, hex_hash)
        )

    if not await asyncio.to_thread(allowed):
        raise BlobMissing(f"sha256:{hex_hash}", f"the store of tenant {tenant}")
    digest = await asyncio.to_thread(sized, driver, hex_hash, size)
    await asyncio.to_thread(_manifest, driver, digest)
    return await _streamed(driver, digest)


@routes.get("/{hex_hash}/{path:path}", response_class=StreamingResponse)
async def get_file(
    hex_hash: str,
    path: str,
    tenant: Tenant,
    driver: TheDriver,
    worker: WorkerName = "",
    size: Size = None,
) -> StreamingResponse:
    """A file of a tree, by its path in it; `size` is of the tree's digest, or looked up."""
    check_hash(hex_hash)

    def found() -> Digest:
        access = driver.access
        whole = is_worker(driver, worker) or access.may_read_tree(tenant, hex_hash)
        if not whole and not access.may_read(tenant, hex_hash):
            raise BlobMissing(f"sha256:{hex_hash}", f"the store of tenant {tenant}")
        tree = _manifest(driver, sized(driver, hex_hash, size))
        for file in tree.files:
            if file.path == path:
                if whole or access.may_read(tenant, file.digest.hash):
                    return file.digest
                raise BlobMissing(file.digest, f"the store of tenant {tenant}")
        raise NotFound(f"tree sha256:{hex_hash[:12]} holds no file {path[:200]!r}")

    return await _streamed(driver, await asyncio.to_thread(found))


async def _streamed(driver: Driver, digest: Digest) -> StreamingResponse:
    headers = {"content-length": str(digest.size_bytes)}
    chunks: Iterator[bytes] = await asyncio.to_thread(driver.store.stream, digest)
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)
