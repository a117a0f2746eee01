"""Names for models and adapters, with tags and a history that is only ever added to.

A name is a tenant's own, or shared by all. To look one up is to look among the tenant's own
names first, then among the shared ones, tag by tag.
"""

import asyncio
from dataclasses import dataclass

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, NotFound, Problem, SpecError
from flowmesh.base.names import LATEST, name_and_tag, named
from flowmesh.base.nearest import nearest
from flowmesh.server.driver import Driver
from flowmesh.server.lineage import Place, find_output, maker_of
from flowmesh.stores.base import Statement
from flowmesh.stores.trees import Manifest, read_manifest
from flowmesh.wire import ArtifactView, ModelEntry, ModelKind, ModelView, NameModel

#: The owner of names that all tenants share.
SHARED = ""
_VIEW = "name, tag, kind, digest, size_bytes, source, run, owner, tenant, at_ms"
_ENTRY = "tag, digest, kind, size_bytes, source, run, owner, tenant, at_ms"


@dataclass(frozen=True, slots=True)
class Weights:
    """A tree that a reference leads to.

    `source`: how people wrote it; `place`: where the tenant's newest run made it, if one did.
    """

    digest: str
    kind: ModelKind
    size_bytes: int
    source: str
    place: Place | None


class Registry:
    """What one tenant sees of the names, and changes."""

    def __init__(self, driver: Driver, tenant: str) -> None:
        self._driver = driver
        self._read = driver.database.read
        self._tenant = tenant

    def all(self) -> list[ModelView]:
        """Every tag that the tenant can use, its own before those that they hide."""
        rows = self._read(
            f"SELECT {_VIEW} FROM standing_tags WHERE owner IN (?, ?)"
            " ORDER BY name, tag, owner = ?",
            (self._tenant, SHARED, SHARED),
        )
        return [_view(row) for row in rows]

    def find(self, name: str, tag: str) -> ModelView:
        """Own names before shared ones. Raises NotFound, with the nearest name or the tags."""
        rows = self._read(
            f"SELECT {_VIEW} FROM standing_tags WHERE name = ? AND tag = ? AND owner IN (?, ?)"
            " ORDER BY owner = ? LIMIT 1",
            (name, tag, self._tenant, SHARED, SHARED),
        )
        if not rows:
            raise self._unknown(name, tag)
        return _view(rows[0])

    def _unknown(self, name: str, tag: str) -> NotFound:
        known = self.all()
        tags = list(dict.fromkeys(one.tag for one in known if one.name == name))
        if tags:
            return NotFound(f"model {name!r} has no tag {tag!r}; it has: {', '.join(tags)}")
        guess = nearest(name, [one.name for one in known])
        return NotFound(f"no model is called {name!r}{guess}")

    def history(self, name: str) -> list[ModelEntry]:
        """Every entry of a name that was ever made, the newest first."""
        rows = self._read(
            f"SELECT {_ENTRY} FROM model_tags WHERE name = ? AND owner IN (?, ?) ORDER BY seq DESC",
            (name, self._tenant, SHARED),
        )
        return [_entry(row) for row in rows]

    def names_of(self, digest: str) -> list[str]:
        """The tags that stand for a tree, as people write them."""
        return [
            named(name, tag)
            for name, tag in self._read(
                "SELECT DISTINCT name, tag FROM standing_tags WHERE digest = ?"
                " AND owner IN (?, ?) ORDER BY name, tag",
                (digest, self._tenant, SHARED),
            )
        ]

    def weights(self, what: str) -> Weights:
        """What a reference leads to: `RUN:OUTPUT`, `NAME[@TAG]` or a tree's digest.

        Raises:
            NotFound: there is no such run, output or name.
            BlobMissing: the tree or a file of it is not in the store, or not the tenant's.
            SpecError: it is no reference, or leads to something that is no tree.
        """
        if what.startswith("sha256:"):
            return self._by_digest(_digest(what), what)
        run, colon, output = what.partition(":")
        if colon:
            place = find_output(self._driver, self._tenant, run, output)
            ((kind,),) = self._read(
                "SELECT kind FROM artifacts WHERE step = ? AND port = ?", (place.step, place.port)
            )
            if kind != "tree":
                raise SpecError(Problem(f"{what}: expected a model or an adapter, found a {kind}"))
            return self._described(Digest.parse(place.digest), what, place)
        found = self.find(*split(what))
        made = maker_of(self._driver, self._tenant, found.artifact.digest)
        return Weights(found.artifact.digest, found.kind, found.size_bytes, found.source, made)

    def _by_digest(self, digest: Digest, what: str) -> Weights:
        access, store = self._driver.access, self._driver.store
        where = f"the store of tenant {self._tenant}"
        # In this order: whether others have something is not to be learnt here.
        if not access.may_use(self._tenant, digest) or digest not in store.has([digest]):
            raise BlobMissing(digest, where)
        if (hidden := access.hidden_file(self._tenant, digest, store)) is not None:
            raise BlobMissing(hidden, where)
        return self._described(digest, what, maker_of(self._driver, self._tenant, str(digest)))

    def _described(self, digest: Digest, what: str, place: Place | None) -> Weights:
        """A tree of which every file is there."""
        manifest = read_manifest(self._driver.store, digest)
        files = {file.digest for file in manifest.files}
        if lacking := files - self._driver.store.has(files):
            raise BlobMissing(min(lacking), "the store")
        return Weights(str(digest), kind_of(manifest), manifest.size_bytes, what, place)

    async def put(self, name: str, body: NameModel) -> ModelView:
        """Let a tag stand for something from now on. Raises what `weights` raises."""
        found = await asyncio.to_thread(self.weights, body.what)
        owner = self._owner(body.shared)
        for standing in self._standing(owner, name, body.tag):
            if standing.artifact.digest == found.digest:
                return standing  # nothing moves: a request that was sent twice is one entry
        view = ModelView(
            name=name,
            tag=body.tag,
            kind=found.kind,
            artifact=ArtifactView(kind="tree", digest=found.digest),
            size_bytes=found.size_bytes,
            source=body.source or body.what,
            run=found.place.run if found.place else "",
            shared=body.shared,
            by=self._tenant,
            added_ms=self._driver.now_ms(),
        )
        row = _entry_row(owner, view)
        await asyncio.wrap_future(self._driver.database.write([row]))
        return view

    async def remove(self, name: str, tag: str | None, *, shared: bool) -> list[ModelView]:
        """Forget a tag, or all of a name; the history stays. Raises NotFound."""
        owner = self._owner(shared)
        views = self._standing(owner, name, tag)
        if not views:
            self._refuse_removal(name, tag, shared)
        now = {"by": self._tenant, "added_ms": self._driver.now_ms(), "source": "", "run": ""}
        gone = [_entry_row(owner, one.model_copy(update=now), removed=True) for one in views]
        await asyncio.wrap_future(self._driver.database.write(gone))
        return views

    def _standing(self, owner: str, name: str, tag: str | None) -> list[ModelView]:
        """The tags of a name of one owner, or the one that is asked for."""
        rows = self._read(
            f"SELECT {_VIEW} FROM standing_tags"
            " WHERE owner = ? AND name = ? AND (? IS NULL OR tag = ?) ORDER BY tag",
            (owner, name, tag, tag),
        )
        return [_view(row) for row in rows]

    def _refuse_removal(self, name: str, tag: str | None, shared: bool) -> None:
        """Raises NotFound, which says where the name is if it is not where it was looked for."""
        seen = [one for one in self.all() if one.name == name and tag in (None, one.tag)]
        if not seen:
            raise self._unknown(name, tag or LATEST)
        if shared:
            raise NotFound(f"{name!r} is a name of tenant {self._tenant}, not a shared one")
        raise NotFound(f"{name!r} is shared by all tenants; to remove it for all, say --shared")

    def _owner(self, shared: bool) -> str:
        return SHARED if shared else self._tenant


def _entry_row(owner: str, view: ModelView, *, removed: bool = False) -> Statement:
    return (
        "INSERT INTO model_tags"
        " (owner, name, tag, digest, kind, size_bytes, source, run, tenant, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            owner,
            view.name,
            view.tag,
            "" if removed else view.artifact.digest,
            view.kind,
            view.size_bytes,
            view.source,
            view.run,
            view.by,
            view.added_ms,
        ),
    )


def kind_of(manifest: Manifest) -> ModelKind:
    """An adapter is known by its configuration, as PEFT names it."""
    paths = {file.path for file in manifest.files}
    return "adapter" if "adapter_config.json" in paths else "model"


def split(text: str) -> tuple[str, str]:
    """A name and its tag. Raises SpecError."""
    try:
        return name_and_tag(text)
    except ValueError as error:
        raise SpecError(Problem(str(error))) from None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise SpecError(Problem(str(error))) from None


def _view(row: tuple[str, str, ModelKind, str, int, str, str, str, str, int]) -> ModelView:
    name, tag, kind, digest, size_bytes, source, run, owner, by, at_ms = row
    return ModelView(
        name=name,
        tag=tag,
        kind=kind,
        artifact=ArtifactView(kind="tree", digest=digest),
        size_bytes=size_bytes,
        source=source,
        run=run,
        shared=owner == SHARED,
        by=by,
        added_ms=at_ms,
    )


def _entry(row: tuple[str, str, ModelKind, int, str, str, str, str, int]) -> ModelEntry:
    tag, digest, kind, size_bytes, source, run, owner, by, at_ms = row
    return ModelEntry(
        tag=tag,
        digest=digest,
        kind=kind,
        size_bytes=size_bytes,
        source=source,
        run=run,
        shared=owner == SHARED,
        by=by,
        at_ms=at_ms,
    )
