"""Limits travel with the action and are no part of what names its task."""

import json

from flowmesh.operators.catalog import catalog
from flowmesh.spec.action import Action, task_of
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.workflow import load

DOCUMENT = """
flowmesh: 1
inputs:
  t: {{type: table}}
steps:
  count:
    op: transform
    tables: {{t: "${{inputs.t}}"}}
    sql: {sql}
    timeout_s: {timeout_s}
"""


def actions(timeout_s: int, sql: str = "SELECT count(*) AS n FROM t") -> dict[str, Action]:
    workflow, positions = load(DOCUMENT.format(timeout_s=timeout_s, sql=sql))
    node = build(workflow, positions, catalog(), {}, {"t": ("a",)}).steps["count"]
    made = expand(node, {"tables": {}}, None, Scope("r", "alice", "default"))
    return {task: Action.of(document) for task, document in made.actions.items()}


def test_a_longer_time_is_the_same_work() -> None:
    (short,), (long,) = actions(5), actions(500)
    assert short == long
    (other,) = actions(5, "SELECT 1 AS n FROM t")
    assert other != short


def test_the_worker_is_told_the_limits() -> None:
    ((task, action),) = actions(7).items()
    assert action.params["timeout_s"] == 7
    again = json.loads(json.dumps(action.document()))
    assert task_of(again) == task
    assert Action.of(again) == action


def test_the_names_of_limits_are_parameters() -> None:
    for operator in catalog().values():
        assert set(operator.limits) <= set(operator.params.model_fields), operator.name
