"""A table without rows: its columns are in the action, as its content does not tell them."""

import pytest

from flowmesh.base.digest import Digest
from flowmesh.spec.action import Action, Artifact, Bound

EMPTY = Artifact("table", str(Digest.of(b"")), 0, ("x", "y"))
FULL = Artifact("table", str(Digest.of(b"{}\n")), 1, ("x", "y"))


@pytest.mark.parametrize("bound", [EMPTY, [EMPTY], {"name": EMPTY}])
def test_columns_of_an_empty_table_travel(bound: Bound) -> None:
    action = Action("op", 1, {}, {"rows": bound})
    assert list(Action.of(action.document()).artifacts()) == [EMPTY]


def test_of_other_tables_only_the_content_counts() -> None:
    plain = Action("op", 1, {}, {"rows": FULL}).document()["inputs"]
    assert plain == {"rows": {"kind": "table", "digest": FULL.digest}}
