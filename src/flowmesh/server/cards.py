"""A card: all that is known of weights, gathered from lineage and from tables of their run."""

from collections.abc import Iterator
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, LimitExceeded, SpecError
from flowmesh.base.names import name_and_tag
from flowmesh.cards import Evaluation, ModelCard, ModelData, ModelParent
from flowmesh.server.driver import Driver
from flowmesh.server.lineage import Place, maker_of, node_of
from flowmesh.server.registry import Registry, kind_of
from flowmesh.spec.table import decode_rows
from flowmesh.stores.trees import read_manifest
from flowmesh.wire import ModelEntry, ModelKind

#: Parents of one card; a chain is cut where it is longer.
PARENTS_LIMIT = 100
#: Steps that are looked at for measurements.
STEPS_LIMIT = 500
#: A table of measurements is small; what is larger is not read for a card.
TABLE_LIMIT_BYTES = 8 << 20


def card_of(driver: Driver, tenant: str, what: str) -> ModelCard:
    """Raises what `Registry.weights` raises."""
    registry = Registry(driver, tenant)
    weights = registry.weights(what)
    card = ModelCard(
        what=what,
        kind=weights.kind,
        digest=weights.digest,
        size_bytes=weights.size_bytes,
        names=registry.names_of(weights.digest),
        source=weights.source,
        history=_history(registry, what),
    )
    if weights.place is not None:
        _tell_making(driver, tenant, card, weights.place)
    return card


def _history(registry: Registry, what: str) -> list[ModelEntry]:
    """Of the name that was asked about, with all of its tags."""
    return [] if ":" in what else registry.history(name_and_tag(what)[0])


def _tell_making(driver: Driver, tenant: str, card: ModelCard, place: Place) -> None:
    read = driver.database.read
    card.run, card.step, card.port = place.run, place.name, place.port
    ((card.op,),) = read("SELECT op FROM steps WHERE step = ?", (place.step,))
    if (node := node_of(driver, place)) is not None:
        card.params = node.params.model_dump(mode="json")
    card.parents = list(_parents(driver, tenant, place))
    card.data = [
        ModelData(used_as=port, source=source, digest=digest, rows=rows)
        for digest, port, source, rows in read(
            "SELECT digest, port, source, rows FROM uses WHERE step = ? AND kind = 'table'"
            " ORDER BY port",
            (place.step,),
        )
    ]
    card.training = _training(driver, place)
    card.evaluations = list(_evaluations(driver, place))


def _parents(driver: Driver, tenant: str, start: Place) -> Iterator[ModelParent]:
    """The trees that a step read, then those that these were made from: near ones first."""
    registry = Registry(driver, tenant)
    waiting, seen = [(start, 1)], set[str]()
    while waiting:
        place, level = waiting.pop(0)
        uses = driver.database.read(
            "SELECT digest, port, source FROM uses WHERE step = ? AND kind = 'tree' ORDER BY port",
            (place.step,),
        )
        for digest, port, source in uses:
            if digest in seen or len(seen) >= PARENTS_LIMIT:
                continue
            seen.add(digest)
            made = _made(driver, tenant, place, digest, source)
            yield ModelParent(
                level=level,
                used_as=port,
                kind=_kind(driver, digest),
                digest=digest,
                names=registry.names_of(digest),
                run=made.run if made else "",
                step=made.name if made else "",
            )
            if made is not None:
                waiting.append((made, level + 1))


def _made(driver: Driver, tenant: str, user: Place, digest: str, source: str) -> Place | None:
    """Where a tree that a step read was made; None if it came from outside."""
    root, _, name = source.partition(".")
    if root == "steps":
        step, _, port = name.rpartition(".")
        return Place(digest, f"{user.run}/{step}", port)
    return maker_of(driver, tenant, digest, before=user.run)


def _kind(driver: Driver, digest: str) -> ModelKind:
    """A tree that is lost by now, or was none, is taken for a model: most are."""
    try:
        return kind_of(read_manifest(driver.store, Digest.parse(digest)))
    except (BlobMissing, DigestMismatch, SpecError, LimitExceeded):
        return "model"


def _training(driver: Driver, place: Place) -> dict[str, Any]:
    """What the step that made the weights measured of itself."""
    made = dict(
        driver.database.read(
            "SELECT port, digest FROM artifacts WHERE step = ? AND kind = 'table'", (place.step,)
        )
    )
    summary = _rows(driver, made.get("summary", ""))
    told: dict[str, Any] = dict(summary[0]) if summary else {}
    losses = [row["loss"] for row in _rows(driver, made.get("metrics", "")) if _has_loss(row)]
    if losses and not any("loss" in name for name in told):
        told["last_loss"] = losses[-1]
    return told


def _has_loss(row: dict[str, Any]) -> bool:
    return isinstance(row.get("loss"), int | float)


def _evaluations(driver: Driver, place: Place) -> Iterator[Evaluation]:
    """What steps of the run measured with the weights.

    Followed are the tables that were made with them, up to the next step that makes weights:
    what comes after that says how good those are.
    """
    read = driver.database.read
    waiting, seen = [(place.name, place.port)], set[str]()
    while waiting and len(seen) < STEPS_LIMIT:
        name, port = waiting.pop(0)
        users = read(
            "SELECT DISTINCT u.step, s.name, s.op, s.position FROM uses u JOIN steps s USING (step)"
            " WHERE s.run = ? AND u.source = ? ORDER BY s.position",
            (place.run, f"steps.{name}.{port}"),
        )
        for step, user, op, _ in users:
            if user in seen:
                continue
            seen.add(user)
            made = read("SELECT port, kind, digest FROM artifacts WHERE step = ?", (step,))
            if any(kind == "tree" for _, kind, _ in made):
                continue
            for port_, kind, digest in made:
                if port_ == "summary" and kind == "table" and (rows := _rows(driver, digest)):
                    yield Evaluation(step=user, op=op, values=rows[0])
            waiting += [(user, port_) for port_, _, _ in made]


def _rows(driver: Driver, digest: str) -> list[dict[str, Any]]:
    """The rows of a table of measurements; none if it is gone, or too large to be one."""
    if not digest or Digest.parse(digest).size_bytes > TABLE_LIMIT_BYTES:
        return []
    try:
        return decode_rows(driver.store.read(Digest.parse(digest)))
    except (BlobMissing, DigestMismatch):
        return []
