"""What the operators of policy optimisation refuse before anything runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.operators.catalog import catalog
from flowmesh.operators.policy import (
    ADVANTAGES,
    METRICS_COLUMNS,
    POLICY_UPDATE,
    SUMMARY_COLUMNS,
    AdvantagesParams,
    PolicyUpdateParams,
)
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import StepOutput
from flowmesh.spec.operator import ParamError
from flowmesh.spec.workflow import load

ROLLOUTS = ("prompt_tokens", "completion_tokens", "reward", "advantage")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"gamma": 0.9}, "`gamma` is for `method: ppo`, not for 'group'"),
        ({"missing_eos_penalty": 1.0}, "`missing_eos_penalty` is for `method: ppo`"),
        ({"method": "ppo", "beta": 0.1}, "it takes `kl_coef`"),
        ({"method": "ppo", "loss_type": "grpo"}, "`loss_type` is for `method: group`"),
        ({"lora": {"lora_dropout": 0.1}}, "no `lora_dropout`"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"epsilon": 1.5}, "less than 1"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PolicyUpdateParams.model_validate(params)


@pytest.mark.parametrize(
    ("params", "bound", "words"),
    [
        ({}, {"value"}, "is for `method: ppo`"),
        ({}, {"value_model"}, "is for `method: ppo`"),
        ({"lora": None}, {"adapter"}, "merge it by `merge_adapter`"),
        ({"method": "ppo", "lora": None}, {"value"}, "merge it by `merge_adapter`"),
    ],
)
def test_ports_that_do_not_fit_are_refused(
    params: dict[str, Any], bound: set[str], words: str
) -> None:
    with pytest.raises(ParamError, match=words):
        POLICY_UPDATE.check(PolicyUpdateParams.model_validate(params), bound)


def test_a_scale_is_for_groups() -> None:
    with pytest.raises(ValidationError, match="`scale` is for `method: group`"):
        AdvantagesParams.model_validate({"method": "rloo", "scale": "none"})


def test_what_is_written_out_in_full_is_taken_again() -> None:
    """An action's parameters hold every default, those of the other method too."""
    for method in ("group", "ppo"):
        params = PolicyUpdateParams(method=method)
        assert PolicyUpdateParams.model_validate(params.model_dump(mode="json")) == params


@pytest.mark.parametrize(
    ("params", "ports"),
    [
        ({}, {"adapter": "adapter"}),
        ({"lora": None}, {"model": "model"}),
        ({"method": "ppo"}, {"adapter": "adapter", "value": "adapter"}),
        ({"method": "ppo", "lora": None}, {"model": "model", "value": "model"}),
    ],
)
def test_outputs_follow_from_the_method(params: dict[str, Any], ports: dict[str, str]) -> None:
    found = POLICY_UPDATE.outputs(PolicyUpdateParams.model_validate(params))
    assert found == {**ports, "metrics": "table", "summary": "table", "loss_curve": "file"}


def test_how_often_it_saves_is_no_part_of_the_work() -> None:
    assert POLICY_UPDATE.limits == ("checkpoint_steps",)


def test_columns_are_checked_where_they_are_known() -> None:
    params = PolicyUpdateParams()
    found = POLICY_UPDATE.columns(params, {"rollouts": ROLLOUTS})
    assert found == {"metrics": METRICS_COLUMNS, "summary": SUMMARY_COLUMNS}
    assert POLICY_UPDATE.columns(params, {"rollouts": None}) == found
    with pytest.raises(ParamError, match="no column 'advantage': the operator `advantages`"):
        POLICY_UPDATE.columns(params, {"rollouts": ROLLOUTS[:3]})
    with pytest.raises(ParamError, match="no column 'prompt_tokens': `generate` with"):
        POLICY_UPDATE.columns(params, {"rollouts": ROLLOUTS[1:]})
    ppo = PolicyUpdateParams(method="ppo")
    with pytest.raises(ParamError, match="no column 'reward': the operator `reward`"):
        POLICY_UPDATE.columns(ppo, {"rollouts": ROLLOUTS[:2]})


def test_advantages_add_one_column() -> None:
    params = AdvantagesParams()
    found = ADVANTAGES.columns(params, {"rows": ROLLOUTS[:3]})
    assert found == {"rows": ROLLOUTS}
    assert ADVANTAGES.columns(params, {"rows": None}) == {"rows": None}
    for rows, field in ((ROLLOUTS, "into"), (("prompt_tokens",), "reward"), (("reward",), "by")):
        with pytest.raises(ParamError) as refused:
            ADVANTAGES.columns(params, {"rows": rows})
        assert refused.value.field == field


PAGE = Path(__file__).parent.parent.parent / "docs" / "policy-optimisation.md"
WORKFLOWS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", WORKFLOWS, ids=["groups", "values"])
def test_the_workflows_of_the_page_hold_together(text: str) -> None:
    """The policy is carried from round to round; the first round has none, and no other has."""
    workflow, positions = load(text)
    columns = {"preferences": ("prompt", "chosen", "rejected"), "questions": ("question",)}
    graph = build(workflow, positions, catalog(), {}, columns)
    nodes = graph.steps
    assert "adapter" not in nodes["improve[1].update"].inputs
    for name in ("rollouts", "update"):
        adapter = nodes[f"improve[2].{name}"].inputs["adapter"]
        assert isinstance(adapter, StepOutput)
        assert (adapter.step, adapter.port) == ("improve[1].update", "adapter")
