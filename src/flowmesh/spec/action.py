"""The two documents that meet in a task: the action that is asked for, and its result.

An action document is canonical JSON and its hash is the task's id, so it holds
whatever may change the result and nothing else. A result is what the action
cache keeps and what steps are assembled from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from flowmesh.base.digest import Digest, fingerprint

ArtifactKind = Literal["table", "file", "tree"]

#: Results up to this size travel and are kept inline; larger ones become blobs.
INLINE_LIMIT_BYTES = 4096
_LIMITS = "limits"


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something in the store: a table (JSON lines), a file, or a tree (a model's directory).

    `digest` is `str(Digest)`; of a tree, the digest of its manifest. `rows` and `columns`
    are known of tables only; -1 and () otherwise. They follow from the content and are
    therefore no part of an action document, but for the columns of a table without rows.
    """

    kind: ArtifactKind
    digest: str
    rows: int = -1
    columns: tuple[str, ...] = ()

    @property
    def address(self) -> Digest:
        return Digest.parse(self.digest)


#: What one port is bound to: one artifact, a list of them, or named ones.
Bound = Artifact | list[Artifact] | dict[str, Artifact]


def artifacts_of(bound: Bound) -> Iterator[Artifact]:
    """The artifacts behind a port, in order."""
    if isinstance(bound, Artifact):
        yield bound
    else:
        yield from bound.values() if isinstance(bound, dict) else bound


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work, in full: its document is what is hashed, stored and executed.

    Attributes:
        params: after defaults, templates and normalisation; plain JSON.
        inputs: port name to what it is bound to.
        engine: `family/numeric format` where these change results, else empty.
        salt: keeps apart what may not be shared; see `spec/expand.py`.
        limits: names of those `params` that bound the work and change no result: they are
            in the document, for the worker, and not in its task's id.
    """

    op: str
    version: int
    params: Mapping[str, Any]
    inputs: Mapping[str, Bound]
    engine: str = ""
    salt: str = ""
    limits: frozenset[str] = frozenset()

    def document(self) -> dict[str, Any]:
        held = {name: value for name, value in self.params.items() if name in self.limits}
        document = {
            "op": self.op,
            "version": self.version,
            "params": {name: value for name, value in self.params.items() if name not in held},
            "inputs": {port: _plain(bound) for port, bound in self.inputs.items()},
            "engine": self.engine,
            "salt": self.salt,
        }
        return document | ({_LIMITS: held} if held else {})

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Action":
        """Read what `document` wrote."""
        inputs = {port: _bound(plain) for port, plain in document["inputs"].items()}
        held = document.get(_LIMITS, {})
        return cls(
            document["op"],
            document["version"],
            {**document["params"], **held},
            inputs,
            document["engine"],
            document["salt"],
            frozenset(held),
        )

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact that must be on the worker before this can run."""
        for bound in self.inputs.values():
            yield from artifacts_of(bound)


def task_of(document: Mapping[str, Any]) -> str:
    """The id of the task that an action document stands for."""
    return fingerprint({key: value for key, value in document.items() if key != _LIMITS})


@dataclass(frozen=True, slots=True)
class Usage:
    """What one task took. Seconds are the task's share of its batch; tokens are counted.

    `cached_tokens` of the prompt's were not read for it: they were remembered from another row.
    """

    seconds: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    joules: float | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What a task produced.

    Of a row operator: `rows`, the columns to add to the input row: one dict for each
    output row (none drops the row), or `rows_blob`, the digest of the same as a JSON
    array where it exceeds `INLINE_LIMIT_BYTES`.
    Of a whole-table operator: `outputs`, and `origins`: for each output port a file
    artifact that holds one `[input port, input row]` pair (JSON lines) a row, if known.
    `numerics` is `exact` where the same bytes come out alone or in any batch, else `near`.
    """

    rows: list[dict[str, Any]] | None = None
    rows_blob: str = ""
    outputs: dict[str, Artifact] = field(default_factory=dict)
    origins: dict[str, Artifact] = field(default_factory=dict)
    numerics: Literal["exact", "near"] = "exact"
    usage: Usage = Usage()

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> "Result":
        return msgspec.json.decode(text, type=cls)

    def digests(self) -> Iterator[str]:
        """Every blob that this result needs in order to be readable."""
        if self.rows_blob:
            yield self.rows_blob
        for artifact in (*self.outputs.values(), *self.origins.values()):
            yield artifact.digest


def _plain(bound: Bound) -> Any:
    match bound:
        case Artifact(rows=0):
            return {"kind": bound.kind, "digest": bound.digest, "columns": list(bound.columns)}
        case Artifact():
            return {"kind": bound.kind, "digest": bound.digest}
        case list():
            return [_plain(one) for one in bound]
        case dict():
            return {"named": {name: _plain(one) for name, one in bound.items()}}


def _bound(plain: Any) -> Bound:
    if isinstance(plain, list):
        return [_artifact(one) for one in plain]
    if "named" in plain:
        return {name: _artifact(one) for name, one in plain["named"].items()}
    return _artifact(plain)


def _artifact(plain: Any) -> Artifact:
    if "columns" in plain:
        return Artifact(plain["kind"], plain["digest"], 0, tuple(plain["columns"]))
    return Artifact(plain["kind"], plain["digest"])
