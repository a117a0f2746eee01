"""The tail of messages about names: the nearest right one, or those that are known."""

import pytest

from flowmesh.base.nearest import nearest


def test_a_near_name_is_suggested() -> None:
    assert nearest("los", ["loss", "step"]) == "; did you mean 'loss'?"


def test_without_a_near_name_all_are_told() -> None:
    assert nearest("xyz", ["loss", "epoch"]) == "; known: epoch, loss"
    assert nearest("xyz", []) == ""


@pytest.mark.parametrize(("names", "tail"), [(40, "n139"), (41, "n139 and 1 more")])
def test_a_cut_list_tells_how_many_are_left_out(names: int, tail: str) -> None:
    told = nearest("xyz", [f"n{100 + number}" for number in range(names)])
    assert told.startswith("; known: n100, n101, ") and told.endswith(f", {tail}")
