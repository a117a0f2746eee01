"""Training operators as the control plane sees them: parameters, columns, outputs."""

from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.operators.train import PARAMS, SUMMARY, TRAINING, metrics_columns
from flowmesh.spec.operator import Operator, ParamError

BY_NAME = {one.name: one for one in TRAINING}
GOOD: dict[str, tuple[str, ...]] = {
    "sft": ("prompt", "completion"),
    "dpo": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "reward_model": ("prompt", "chosen", "rejected", "more"),
    "grpo": ("prompt", "answer"),
    "rloo": ("prompt",),
}


@pytest.fixture(params=TRAINING, ids=lambda op: op.name)
def op(request: pytest.FixtureRequest) -> Operator:
    operator = request.param
    assert isinstance(operator, Operator)
    return operator


def _refusal(op: str, **params: Any) -> str:
    with pytest.raises((ParamError, ValidationError)) as refused:
        PARAMS[op].model_validate(params)
    return str(refused.value)


def test_all_are_resumable_and_alone_in_their_batch(op: Operator) -> None:
    assert (op.grain, op.runtime, op.max_batch, op.resumable) == ("whole", "trl", 1, True)
    assert op.engine(op.params()) == "trl/float32"
    assert op.engine(op.params(dtype="bfloat16")) == "trl/bfloat16"  # type: ignore[call-arg]
    assert op.exact(op.params())
    assert not op.exact(op.params(dtype="bfloat16"))  # type: ignore[call-arg]


def test_outputs_follow_from_lora(op: Operator) -> None:
    tables = {"metrics": "table", "summary": "table", "loss_curve": "file"}
    assert op.outputs(op.params()) == {"adapter": "adapter", **tables}
    full = op.params(lora=None)  # type: ignore[call-arg]
    assert op.outputs(full) == {"model": "model", **tables}


def test_columns_are_known_before_anything_runs(op: Operator) -> None:
    found = op.columns(op.params(), {"data": GOOD[op.name]})
    assert found == {"metrics": metrics_columns(op.name), "summary": SUMMARY}
    assert op.columns(op.params(), {"data": None}) == found


def test_wrong_columns_are_refused_with_the_nearest(op: Operator) -> None:
    *others, last = GOOD[op.name][:2] if op.name != "reward_model" else ("chosen", "rejected")
    if op.name in ("grpo", "rloo"):
        others, last = [], "prompt"
    with pytest.raises(ParamError) as refused:
        op.columns(op.params(), {"data": (*others, f"{last}s")})
    assert refused.value.field == "data"
    assert f"there is no column '{last}'; did you mean '{last}s'?" in str(refused.value)
    assert f"{op.name} takes `" in str(refused.value)


def test_eval_data_is_checked_too(op: Operator) -> None:
    with pytest.raises(ParamError) as refused:
        op.columns(op.params(), {"data": GOOD[op.name], "eval_data": ("x",)})
    assert refused.value.field == "eval_data"


def test_every_format_of_sft() -> None:
    sft = BY_NAME["sft"]
    for columns in (("text",), ("messages",), ("prompt", "completion"), ("messages", "id")):
        sft.columns(sft.params(), {"data": columns})
    with pytest.raises(ParamError, match=r"sft takes `prompt` and `completion`, or `messages`"):
        sft.columns(sft.params(), {"data": ("question",)})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"early_stopping_patience": 2}, "needs `eval_data`, or an `eval_split` above 0"),
        ({"eval_split": 0.5}, "there is `eval_data` already"),
    ],
)
def test_what_depends_on_eval_data(params: dict[str, Any], message: str) -> None:
    sft = BY_NAME["sft"]
    tables: dict[str, Any] = {"data": ("text",)}
    if "eval_split" in params:
        tables["eval_data"] = ("text",)
    with pytest.raises(ParamError, match=message):
        sft.columns(sft.params(**params), tables)


@pytest.mark.parametrize(
    ("op", "params", "message"),
    [
        ("sft", {"learning_rate": 0}, "greater than 0"),
        ("sft", {"learnig_rate": 1e-4}, "learnig_rate"),
        ("sft", {"lora": {"rank": 8}}, "rank"),
        ("sft", {"lora": {"r": 0}}, "greater than or equal to 1"),
        ("sft", {"beta": 0.1}, "beta"),
        ("sft", {"warmup_steps": 5, "warmup_ratio": 0.1}, "either `warmup_steps`"),
        ("dpo", {"loss_type": "sigmoidal"}, "sigmoid"),
        ("kto", {"per_device_train_batch_size": 1}, "greater than or equal to 2"),
        ("grpo", {"num_generations": 3}, "is 8 completions a step, which 3 do not divide"),
        ("rloo", {"scale_rewards": "group"}, "scale_rewards"),
        ("grpo", {"function": "rewards.py:brief"}, "pattern"),
    ],
)
def test_refused_parameters(op: str, params: dict[str, Any], message: str) -> None:
    assert message in _refusal(op, **params)


@pytest.mark.parametrize(
    ("op", "params", "bound", "field", "message"),
    [
        ("sft", {"lora": None}, {"adapter"}, "adapter", "so no `adapter` can go on with it"),
        ("grpo", {"lora": None, "function": "f"}, {"adapter", "file"}, "adapter", "no `adapter`"),
        ("grpo", {}, {"file"}, "file", "name a `function` of the file"),
        ("rloo", {"function": "f"}, {"reward_model"}, "function", "give the `file`"),
        ("grpo", {}, set(), "function", "there is nothing to be rewarded by"),
        ("grpo", {"function": "f", "reward_weights": [1, 2]}, {"file"}, "reward_weights",
         "has 2 weights for 1 rewards"),
        ("rloo", {"function": "f", "reward_weights": [1]}, {"file", "reward_adapter"},
         "reward_weights", "has 1 weights for 2 rewards"),
    ],
)  # fmt: skip
def test_ports_that_do_not_fit_the_parameters(
    op: str, params: dict[str, Any], bound: set[str], field: str, message: str
) -> None:
    operator = BY_NAME[op]
    with pytest.raises(ParamError, match=message) as refused:
        operator.check(operator.params(**params), {"data", "model", *bound})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("params", "bound"),
    [
        ({"function": "f"}, {"file", "adapter"}),
        ({"lora": None}, {"reward_model"}),
        ({"reward_weights": [1, 2], "function": "f"}, {"file", "reward_model", "reward_adapter"}),
    ],
)
def test_ports_that_fit(params: dict[str, Any], bound: set[str]) -> None:
    grpo = BY_NAME["grpo"]
    grpo.check(grpo.params(**params), {"data", "model", *bound})


def test_devices_are_asked_for_and_counted(op: Operator) -> None:
    assert op.devices(op.params()) == 1
    several = op.params(devices=4)  # type: ignore[call-arg]
    assert op.devices(several) == 4
    steps = {"max_steps": 3}
    one = op.amounts_of({**op.params().model_dump(), **steps}, {})
    assert op.amounts_of({**several.model_dump(), **steps}, {}).work == 4 * one.work


def test_groups_are_whole_over_all_devices() -> None:
    PARAMS["grpo"].model_validate(
        {"num_generations": 6, "per_device_train_batch_size": 3, "devices": 2}
    )
    assert "`devices` is 8 completions" in _refusal(
        "grpo", num_generations=3, per_device_train_batch_size=4, devices=2
    )


def test_work_grows_with_steps_and_batch() -> None:
    sft = BY_NAME["sft"]
    plain = sft.params(max_steps=10).model_dump()  # type: ignore[call-arg]
    assert sft.amounts_of(plain, {}).work == 80
    assert sft.amounts_of({**plain, "gradient_accumulation_steps": 2}, {}).work == 160
