"""Decisions in words: what was chosen against what else there was."""

from dataclasses import replace
from typing import Any

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.cli import figures
from flowmesh.core.story import Alternative
from flowmesh.core.utility import Score
from flowmesh.planning import Interval
from flowmesh.sdk.explaining import explain_task
from flowmesh.server import wording

CHOSEN = Score(value=0.01, cost=0.002, load_s=0.0, exec_s=4.0)
KEY = "generate@1/transformers/float32/sha256:" + "a" * 64 + "/123"


def against(other: Score, **more: Any) -> str:
    plain = Alternative(KEY, "w2", "A100", 8, other)
    return wording.against(CHOSEN, 8, KEY, replace(plain, **more))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"cost": 0.004, "load_s": 5.0},
            "A100 w2 would have cost $0.002 more for loading",
        ),
        ({"cost": 0.004}, "A100 w2 would have cost $0.002 more by its price"),
        ({"egress": 0.5}, "A100 w2 would have cost $0.5 more for moving bytes"),
        ({"risk": 0.03}, "A100 w2 would have cost $0.03 more for the risk of an interruption"),
        ({"wait_s": 3.0}, "A100 w2 would have begun 3.0 s later"),
        ({"exec_s": 6.0}, "A100 w2 would have taken 2.0 s longer"),
        ({"value": 0.004}, "A100 w2 would have been worth $0.006 less for its tasks"),
        ({}, "A100 w2 would have been as good"),
    ],
)
def test_what_would_have_been_different(changes: dict[str, float], words: str) -> None:
    assert against(replace(CHOSEN, **changes)) == words


def test_another_size_is_held_against_as_many_tasks() -> None:
    half = Score(value=0.005, cost=0.0015, exec_s=3.0)
    assert against(half, size=4) == ("A100 w2, 4 at once would have cost $0.001 more for executing")


def test_other_work_is_compared_by_the_second() -> None:
    other = Score(value=0.001, exec_s=1.0)
    words = against(other, batch_key="embed@1/x")
    assert words == (
        "8 of embed@1/x on A100 w2 would have been worth $0.001 a second, less than $0.002 a second"
    )


@pytest.mark.parametrize(
    ("size", "left", "limit", "words"),
    [
        (32, 9, 32, "the most that its operator takes"),
        (7, 0, 32, "all that was ready"),
        (8, 100, 32, "though 100 more were ready: a larger batch pays less a second"),
    ],
)
def test_why_a_batch_was_so_large(size: int, left: int, limit: int, words: str) -> None:
    assert words in wording.why_size(size, left, limit)


@pytest.mark.parametrize("row", ["-1", "first", "0.-1", "1.5.2"])
def test_what_is_no_row_is_told_so_before_anybody_is_asked(row: str) -> None:
    nobody: Any = None
    with pytest.raises(SpecError, match=f"'{row}' is no row: rows and samples are counted from 0"):
        explain_task(nobody, f"r-0123456789ab:told:{row}")


def test_batch_keys_are_told_without_digests() -> None:
    assert [wording.usd(one) for one in (0.0, 0.0042, -0.5, -12.0)] == [
        "$0",
        "$0.0042",
        "-$0.5",
        "-$12.00",
    ]
    assert wording.short_key(KEY) == "generate@1/transformers/float32"
    told = wording.told(f"{KEY} waits 3.0 s for a warm A100", KEY)
    assert told == "generate@1/transformers/float32 waits 3.0 s for a warm A100"


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0.0, "$0"),
        (0.0042, "$0.0042"),
        (0.25, "$0.25"),
        (0.9999, "$1.00"),
        (12.344, "$12.34"),
        (0.0000018, "$0.0000018"),
        (-0.00019, "-$0.00019"),
        (1e-12, "$0"),
    ],
)
def test_money_has_two_digits_that_count(amount: float, words: str) -> None:
    assert figures.money(amount) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 s"), (0.0042, "0.0042 s"), (3.24, "3.2 s"), (0.9999, "1.0 s"), (130.4, "130 s"),
     (700, "12 min"), (36_000, "10.0 h")],
)  # fmt: skip
def test_seconds_have_a_unit_that_suits(amount: float, words: str) -> None:
    assert figures.seconds(amount) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 J"), (3.2, "3.2 J"), (320, "320 J"), (1234, "1.2 kJ"), (4.5e6, "4.5 MJ")],
)
def test_joules_have_a_unit_that_suits(amount: float, words: str) -> None:
    assert figures.joules(amount) == words


def test_an_interval_is_told_with_its_ends() -> None:
    assert figures.spread(Interval(low=1, mid=2, high=4), "seconds") == "2.0 s (1.0 s to 4.0 s)"
    assert figures.spread(Interval(low=2, mid=2, high=2), "usd") == "$2.00"
