"""`compare`: pairs by value, tells differences, refuses what it can not pair."""

from typing import Any

import pytest

from flowmesh.operators.compare import COMPARE, CompareParams
from flowmesh.runtimes.base import Done, Work
from flowmesh.runtimes.comparing import open_compare
from flowmesh.spec.action import Action, Artifact
from flowmesh.spec.operator import ParamError
from support.blobs import DirBlobs
from support.scoring import refusal


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirBlobs:
    return DirBlobs(tmp_path_factory.mktemp("store"))


def compare(
    store: DirBlobs, first: list[dict[str, Any]], second: list[dict[str, Any]], **given: Any
) -> Any:
    params = CompareParams.model_validate({"by": ["id"]} | given).model_dump(mode="json")
    empty = Artifact("table", str(store.put(b"")), 0, ("id", "score"))
    ports = {
        port: store.put_table(rows) if rows else empty
        for port, rows in (("first", first), ("second", second))
    }
    (outcome,) = open_compare(store, ports, "").run(
        [Work("t", Action("compare", 1, params, ports))]
    )
    return outcome


def scored(scores: dict[Any, Any]) -> list[dict[str, Any]]:
    return [{"id": key, "score": score} for key, score in scores.items()]


def test_compare_pairs_by_value_and_not_by_place(store: DirBlobs) -> None:
    first = scored({"a": 1.0, "b": 0.5, "c": 0.25})
    outcome = compare(store, first, scored({"c": 0.5, "a": 0.5, "b": 0.5}))
    assert isinstance(outcome, Done), outcome
    rows = store.rows(outcome.result.outputs["rows"])
    assert rows[0] == {"id": "a", "first": 1.0, "second": 0.5, "difference": 0.5}
    assert [one["difference"] for one in rows] == [0.5, 0.0, -0.25]
    (told,) = store.rows(outcome.result.outputs["summary"])
    assert (told["n"], told["wins"], told["losses"], told["ties"]) == (3, 1, 1, 1)
    assert told["difference"] == pytest.approx(0.25 / 3, abs=1e-6)
    assert told["p_value"] == 1.0 and told["unmatched"] == 0
    assert outcome.result.outputs["summary"].columns == tuple(told)


def test_compare_tells_a_clear_difference(store: DirBlobs) -> None:
    better, worse = ({n: 0.5 + gap + 0.01 * (n % 7) for n in range(40)} for gap in (0.1, 0.0))
    outcome = compare(store, scored(better), scored(worse))
    (told,) = store.rows(outcome.result.outputs["summary"])
    assert told["difference"] == pytest.approx(0.1)
    assert 0 < told["ci_low"] <= told["difference"] <= told["ci_high"]
    assert told["p_value"] < 1e-9


def test_compare_refuses_what_it_can_not_pair(store: DirBlobs) -> None:
    one, two = scored({"a": 1.0, "b": 2.0}), scored({"a": 1.0, "c": None})
    assert "no partner" in refusal(compare(store, one, two))
    assert 'id = "b"' in refusal(compare(store, one, two))
    assert "two rows with id" in refusal(compare(store, [*one, *one], two))
    assert "no column 'scor'" in refusal(compare(store, one, two, score="scor"))
    assert "not a number" in refusal(compare(store, scored({"a": "high"}), two))
    dropped = compare(store, one, two, unmatched="drop")
    (told,) = store.rows(dropped.result.outputs["summary"])
    assert (told["n"], told["unmatched"]) == (1, 1)


def test_compare_of_nothing(store: DirBlobs) -> None:
    outcome = compare(store, [], [])
    (told,) = store.rows(outcome.result.outputs["summary"])
    assert told["n"] == 0 and told["difference"] is None and told["p_value"] is None
    assert outcome.result.outputs["rows"].columns == ("id", "first", "second", "difference")


def test_compare_checks_columns_before_the_run() -> None:
    def checked(first: tuple[str, ...] | None, **given: Any) -> Any:
        params = CompareParams.model_validate({"by": "id"} | given)
        return COMPARE.columns(params, {"first": first, "second": ("id", "score")})

    assert checked(("id", "score"))["rows"] == ("id", "first", "second", "difference")
    assert checked(None)["summary"][0] == "n"
    for given, field in (
        ({"score": "points"}, "score"),
        ({"second_score": "points"}, "second_score"),
        ({"by": ["id", "topic"]}, "by"),
    ):
        with pytest.raises(ParamError) as caught:
            checked(("id", "score"), **given)
        assert caught.value.field == field
    with pytest.raises(ParamError, match="rename"):
        COMPARE.columns(CompareParams(by=["first"]), {"first": None, "second": None})


def test_scores_may_be_two_columns_of_one_table(store: DirBlobs) -> None:
    table = [{"id": 1, "a": 2.0, "b": 1.0}, {"id": 2, "a": 2.0, "b": 1.5}]
    outcome = compare(store, table, table, score="a", second_score="b")
    (told,) = store.rows(outcome.result.outputs["summary"])
    assert (told["first"], told["second"], told["wins"]) == (2.0, 1.25, 2)
