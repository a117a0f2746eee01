"""Records and the core's state as JSON bytes, and back.

A record is a frozen dataclass, written `["ClassName",{field: value, ...}]`. A field that
is missing on reading takes its default, so old journals stay readable when new fields have
one; classes and fields are never renamed. The state keeps the order of its dictionaries,
since the core's choices follow it: equal bytes mean equal state, order included.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import msgspec.inspect as types

from flowmesh.base.errors import StoreError
from flowmesh.base.nearest import nearest

Record = TypeVar("Record")
State = TypeVar("State")

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)


class Codec(Generic[Record]):
    """Encodes records of the dataclasses it was made with, and of no others.

    Raises TypeError when made, for a class that JSON cannot hold (say, a union of two
    dataclasses), and ValueError for two classes of one name.
    """

    def __init__(self, classes: Iterable[type[Record]]) -> None:
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}
        #: Each class, and whether JSON may lose a value of it (infinity becomes null).
        self._lossy: dict[type, bool] = {}
        for cls in classes:
            if cls.__name__ in self._decoders:
                raise ValueError(f"two classes of records are called {cls.__name__}")
            self._decoders[cls.__name__] = msgspec.json.Decoder(cls)
            self._lossy[cls] = _holds(cls, types.FloatType, types.AnyType)
        self._one = msgspec.json.Decoder(tuple[str, msgspec.Raw])
        self._many = msgspec.json.Decoder(list[tuple[str, msgspec.Raw]])

    def encode(self, record: Record) -> bytes:
        """Raises TypeError for another class, ValueError for values that JSON cannot hold."""
        lossy = self._lossy.get(type(record))
        if lossy is None:
            raise TypeError(f"{type(record).__name__} is not a class of this journal's records")
        name = type(record).__name__
        data = msgspec.json.encode((name, record))
        if lossy and b"null" in data:
            _, body = self._one.decode(data)
            _check_same(record, body, self._decoders[name])
        return data

    def decode(self, data: bytes) -> Record:
        """Raises StoreError for bytes that are no record of a known class."""
        try:
            return self._record(*self._one.decode(data))
        except _UNREADABLE as error:
            raise StoreError(f"a stored record cannot be read: {error}") from error

    def encode_many(self, records: Sequence[Record]) -> bytes:
        """Encode a journal row: an event and the decisions it led to."""
        return b"[" + b",".join(map(self.encode, records)) + b"]"

    def decode_many(self, data: bytes) -> list[Record]:
        """Raises StoreError as `decode` does."""
        try:
            return [self._record(name, body) for name, body in self._many.decode(data)]
        except _UNREADABLE as error:
            raise StoreError(f"stored records cannot be read: {error}") from error

    def _record(self, name: str, body: msgspec.Raw) -> Record:
        decoder = self._decoders.get(name)
        if decoder is None:
            raise StoreError(
                f"a record of class {name!r} is stored, which this version of FlowMesh does "
                f"not know{nearest(name, self._decoders)}; use the version that wrote it"
            )
        record: Record = decoder.decode(body)
        return record


def encode_state(state: object) -> bytes:
    """Encode the core's state: a (mutable) dataclass of dictionaries, keyed by str or int.

    Raises:
        TypeError: its class holds a set, whose order would differ from process to process.
        ValueError: it holds a value that JSON cannot hold.
    """
    cls = type(state)
    if _holds(cls, types.SetType, types.FrozenSetType):
        raise TypeError(f"{cls.__name__} holds a set; use a dictionary, which has an order")
    data = msgspec.json.encode(state)
    if b"null" in data and _holds(cls, types.FloatType, types.AnyType):
        _check_same(state, data, msgspec.json.Decoder(cls))
    return data


def decode_state(data: bytes, cls: type[State]) -> State:
    """Read what `encode_state` wrote. Raises StoreError for bytes that are no such state."""
    try:
        return msgspec.json.decode(data, type=cls)
    except _UNREADABLE as error:
        raise StoreError(f"a stored state cannot be read: {error}") from error


def _check_same(
    value: object, data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[Any]
) -> None:
    try:
        same = decoder.decode(data) == value
    except msgspec.DecodeError:
        same = False
    if not same:
        raise ValueError(f"NaN and infinity cannot be stored: {value!r:.300}")


def _holds(cls: type, *kinds: type[types.Type]) -> bool:
    """Whether a type of one of these kinds is somewhere inside a class."""
    return any(isinstance(inner, kinds) for inner in _inside(types.type_info(cls), []))


def _inside(kind: types.Type, seen: list[type]) -> Iterator[types.Type]:
    yield kind
    if isinstance(kind, types.DataclassType):
        if kind.cls in seen:
            return
        seen.append(kind.cls)
        parts = [field.type for field in kind.fields]
    elif isinstance(kind, types.DictType):
        parts = [kind.key_type, kind.value_type]
    elif isinstance(kind, types.UnionType):
        parts = list(kind.types)
    elif isinstance(kind, types.TupleType):
        parts = list(kind.item_types)
    elif isinstance(kind, types.CollectionType):
        parts = [kind.item_type]
    elif isinstance(kind, types.NamedTupleType | types.TypedDictType):
        parts = [field.type for field in kind.fields]
    else:
        parts = []
    for part in parts:
        yield from _inside(part, seen)
