"""Records and states to bytes and back."""

import math
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmesh.base.digest import Digest
from flowmesh.base.errors import StoreError
from flowmesh.stores.codec import Codec, decode_state, encode_state

RunId = NewType("RunId", str)
LeaseId = NewType("LeaseId", int)


class Status(StrEnum):
    READY = "ready"
    DONE = "done"


class Level(IntEnum):
    LOW = 0
    HIGH = 1


@dataclass(frozen=True, slots=True)
class Score:
    value: float
    parts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    at_ms: int
    lease: LeaseId
    runs: tuple[RunId, ...]
    status: Status
    score: Score | None = None
    output: Digest | None = None
    level: Level = Level.LOW
    pair: tuple[int, str] = (0, "")
    counts: dict[LeaseId, Score] = field(default_factory=dict)
    running: frozenset[LeaseId] = frozenset()


@dataclass(frozen=True, slots=True)
class Tick:
    at_ms: int


@dataclass(frozen=True, slots=True)
class Run:
    id: RunId
    status: Status = Status.READY
    best: Score | None = None
    output: Digest | None = None


@dataclass(slots=True)
class State:
    now_ms: int = 0
    runs: dict[RunId, Run] = field(default_factory=dict)
    ready: dict[str, dict[RunId, None]] = field(default_factory=dict)
    leases: dict[LeaseId, list[Score]] = field(default_factory=dict)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
numbers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
scores = st.builds(Score, floats, st.lists(st.tuples(text, floats), max_size=2).map(tuple))
granted = st.builds(
    Granted,
    at_ms=numbers,
    lease=numbers.map(LeaseId),
    runs=st.lists(text.map(RunId), max_size=3).map(tuple),
    status=st.sampled_from(Status),
    score=st.none() | scores,
    output=st.none() | st.binary(max_size=3).map(Digest.of),
    level=st.sampled_from(Level),
    pair=st.tuples(numbers, text),
    counts=st.dictionaries(numbers.map(LeaseId), scores, max_size=2),
    running=st.frozensets(numbers.map(LeaseId), max_size=2),
)
runs = st.builds(
    Run,
    id=text.map(RunId),
    status=st.sampled_from(Status),
    best=st.none() | scores,
    output=st.none() | st.binary(max_size=3).map(Digest.of),
)
states = st.builds(
    State,
    now_ms=numbers,
    runs=st.dictionaries(text.map(RunId), runs, max_size=3),
    ready=st.dictionaries(text, st.dictionaries(text.map(RunId), st.none()), max_size=2),
    leases=st.dictionaries(numbers.map(LeaseId), st.lists(scores, max_size=2), max_size=2),
)
CODEC: Codec[object] = Codec([Granted, Tick])
PLAIN = Granted(1, LeaseId(2), (RunId("r"),), Status.READY)


@given(st.lists(granted | st.builds(Tick, numbers), max_size=3))
def test_records_come_back_equal_and_of_their_class(records: list[object]) -> None:
    for record in records:
        back = CODEC.decode(CODEC.encode(record))
        assert back == record
        assert type(back) is type(record)
    assert CODEC.decode_many(CODEC.encode_many(records)) == records


@given(states)
def test_a_state_comes_back_equal_and_in_order(state: State) -> None:
    data = encode_state(state)
    back = decode_state(data, State)
    assert back == state
    assert list(back.runs) == list(state.runs)
    assert [list(inner) for inner in back.ready.values()] == [
        list(inner) for inner in state.ready.values()
    ]
    assert encode_state(back) == data


def test_the_form_is_as_documented() -> None:
    assert CODEC.encode(Tick(5)) == b'["Tick",{"at_ms":5}]'
    assert CODEC.encode_many([Tick(5), Tick(6)]) == b'[["Tick",{"at_ms":5}],["Tick",{"at_ms":6}]]'


def test_a_field_that_is_newer_than_the_record_takes_its_default() -> None:
    old = b'["Granted",{"at_ms":1,"lease":2,"runs":["r"],"status":"ready"}]'
    assert CODEC.decode(old) == PLAIN


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks_are_refused_when_written(number: float) -> None:
    """Not years later, when the journal is read."""
    record = Granted(1, LeaseId(2), (), Status.DONE, score=Score(number))
    with pytest.raises(ValueError, match="NaN and infinity"):
        CODEC.encode(record)
    with pytest.raises(ValueError, match="NaN and infinity"):
        CODEC.encode_many([Tick(1), record])
    with pytest.raises(ValueError, match="NaN and infinity"):
        encode_state(State(runs={RunId("r"): Run(RunId("r"), best=Score(number))}))


def test_a_class_that_is_not_registered_is_refused_both_ways() -> None:
    with pytest.raises(TypeError, match="Score"):
        CODEC.encode(Score(1.0))
    with pytest.raises(StoreError, match="did you mean 'Tick'"):
        CODEC.decode(b'["Ticks",{"at_ms":5}]')


def test_two_classes_of_one_name_are_refused() -> None:
    classes: list[type] = [Tick, dataclass(type("Tick", (), {}))]
    with pytest.raises(ValueError, match="Tick"):
        Codec(classes)


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"{}", b'["Tick"]', b'["Tick",{}]', b'["Tick",{"at_ms":"x"}]', b'["\xff",1]'],
)
def test_bytes_that_are_no_record_are_a_store_error(data: bytes) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        CODEC.decode(data)
    with pytest.raises(StoreError, match="cannot be read"):
        CODEC.decode_many(b"[" + data + b"]" if data else data)
    with pytest.raises(StoreError, match="cannot be read"):
        decode_state(data, Tick)


def test_a_state_with_a_set_is_refused() -> None:
    @dataclass
    class Loose:
        inner: dict[str, Granted]

    with pytest.raises(TypeError, match="holds a set"):
        encode_state(Loose({}))
