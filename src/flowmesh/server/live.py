"""Which blobs somebody still needs: the roots of garbage collection."""

import json
from collections.abc import Iterable, Iterator

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Result
from flowmesh.stores.sqlite import Database


def live_blobs(
    database: Database, packs: Iterable[str], checkpoints: Iterable[str]
) -> tuple[set[Digest], set[Digest]]:
    """Blobs that runs, cached results, progress and registered models name.

    `packs` and `checkpoints` (trees) are needed besides, see `Checkpoints.held`.

    The second set are those among them that are manifests of trees: collection follows them.
    """
    named = [*_named(database), *(("blob", pack) for pack in packs)]
    named += [("tree", tree) for tree in checkpoints]
    live = {Digest.parse(text) for _, text in named}
    return live, {Digest.parse(text) for kind, text in named if kind == "tree"}


def _named(database: Database) -> Iterator[tuple[str, str]]:
    """Kind and digest; blobs that are no artifact have the kind `blob`."""
    for table in ("artifacts", "uses"):
        yield from database.read(f"SELECT DISTINCT kind, digest FROM {table}")
    for (request,) in database.read("SELECT request FROM runs"):
        given = json.loads(request)
        for part in ("inputs", "models", "files"):
            yield from ((made["kind"], made["digest"]) for made in given[part].values())
    for blob, origins in database.read("SELECT items_blob, origins FROM steps"):
        for digest in (blob, *json.loads(origins).values()):
            if digest:
                yield "blob", digest
    for text, pack in database.read("SELECT result, pack FROM results"):
        result = Result.decode(text)
        yield "blob", pack
        yield from (("blob", digest) for digest in result.digests())
        yield from ((made.kind, made.digest) for made in result.outputs.values())
    yield from database.read("SELECT DISTINCT 'tree', digest FROM standing_tags")
    yield from database.read("SELECT 'tree', checkpoint FROM progress WHERE checkpoint != ''")
