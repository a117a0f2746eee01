"""Policy optimisation: `advantages` judges roll-outs, `policy_update` learns from them.

With `generate` before them and a reward in between they are one round of RLHF, taken apart:
see docs/policy-optimisation.md. `runtimes/policy/` carries them out.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from flowmesh.base.nearest import nearest
from flowmesh.operators.amounts import TRAINING_FLOPS, rows_and_tokens, whole_tables
from flowmesh.operators.train_params import CheckpointSteps, Lora, NumericFormat
from flowmesh.spec.action import Bound
from flowmesh.spec.operator import Amounts, Columns, Operator, ParamError, Params, Port

_COLUMN = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
#: One row for each optimiser step.
METRICS_COLUMNS = (
    *("step", "loss", "policy_loss", "value_loss", "kl", "clip_fraction", "entropy"),
    *("grad_norm", "learning_rate", "tokens", "seconds", "joules"),
)
#: One row for the update.
SUMMARY_COLUMNS = (
    *("method", "steps", "rollouts", "prompt_tokens", "completion_tokens", "signal_mean"),
    *("loss", "policy_loss", "value_loss", "kl", "clip_fraction", "entropy"),
    *("old_logprobs", "effective_batch", "micro_batch", "resumed_from"),
    *("seconds", "joules", "notes"),
)
_GROUP_ONLY = ("loss_type", "beta", "max_completion_length", "use_bias_correction_kl")
_PPO_ONLY = (
    *("gamma", "lam", "kl_coef", "kl_estimator", "vf_coef", "cliprange_value"),
    *("whiten_advantages", "missing_eos_penalty", "value_learning_rate"),
)


class AdvantagesParams(Params):
    """Turn the rewards of roll-outs into advantages."""

    method: Annotated[
        Literal["group", "rloo", "whiten"],
        Field(
            description=(
                "`group` compares with the mean of the group (GRPO), `rloo` with the mean of its"
                " other rows, `whiten` with the mean of the table, in its standard deviations."
            )
        ),
    ] = "group"
    by: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=64,
            description="Columns whose equal values make a group: one prompt's samples.",
        ),
    ] = ["prompt_tokens"]  # noqa: RUF012 (pydantic copies it)
    scale: Annotated[
        Literal["group", "batch", "none"],
        Field(
            description=(
                "For `group`: divide by the standard deviation of the group or of the table's"
                " rewards, or not at all."
            )
        ),
    ] = "group"
    reward: Annotated[str, Field(pattern=_COLUMN, description="Column of the reward.")] = "reward"
    into: Annotated[str, Field(pattern=_COLUMN, description="Column of the advantage.")] = (
        "advantage"
    )

    @field_validator("by", mode="before")
    @classmethod
    def _one_column(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_the_method(self) -> Self:
        if self.method != "group" and self.scale != "group":
            raise ParamError("scale", f"`scale` is for `method: group`, not for {self.method!r}")
        return self


class PolicyUpdateParams(Params):
    """Improve a policy on given roll-outs by the clipped objective of PPO."""

    method: Annotated[
        Literal["group", "ppo"],
        Field(
            description=(
                "`group` takes the column `advantage` of each row (GRPO, RLOO); `ppo` takes"
                " `reward`, and learns a value model for generalised advantage estimation."
            )
        ),
    ] = "group"
    lora: Annotated[
        Lora | None,
        Field(
            description=(
                "Settings of a new adapter; null trains all weights of the model, and gives a"
                " model. With an `adapter` to go on with, that adapter's own settings hold."
            )
        ),
    ] = Lora()
    loss_type: Annotated[
        Literal["dapo", "grpo", "dr_grpo"],
        Field(
            description=(
                "How the losses of tokens are joined: `dapo` over all tokens of the step; `grpo`"
                " by sequences, then over them; `dr_grpo` by the constant"
                " `max_completion_length`. For `group`."
            )
        ),
    ] = "dapo"
    max_completion_length: Annotated[
        int, Field(ge=1, description="What `dr_grpo` divides by, in tokens. For `group`.")
    ] = 256
    epsilon: Annotated[
        float, Field(gt=0, lt=1, description="The probability ratio is clipped at 1 - epsilon...")
    ] = 0.2
    epsilon_high: Annotated[
        float | None, Field(gt=0, description="...and at 1 + this; `epsilon` if not given.")
    ] = None
    beta: Annotated[
        float, Field(ge=0, description="Weight of the KL divergence to the reference. For `group`.")
    ] = 0.0
    use_bias_correction_kl: Annotated[
        bool,
        Field(
            description=(
                "Multiply that divergence by the probability ratio, which makes its gradient that"
                " of the reverse KL divergence (DeepSeek-V3.2). For `group`."
            )
        ),
    ] = True
    reference: Annotated[
        Literal["base", "start"],
        Field(
            description=(
                "The policy that the KL divergence is taken to: the base model without adapter, or"
                " what the update starts from. A model at the port `reference_model` comes first."
            )
        ),
    ] = "base"
    temperature: Annotated[
        float, Field(gt=0, le=10, description="What the roll-outs were drawn at.")
    ] = 1.0
    gamma: Annotated[float, Field(gt=0, le=1, description="Discount of rewards. For `ppo`.")] = 1.0
    lam: Annotated[
        float, Field(ge=0, le=1, description="Lambda of advantage estimation. For `ppo`.")
    ] = 0.95
    kl_coef: Annotated[
        float,
        Field(ge=0, description="Weight of the KL penalty in each token's reward. For `ppo`."),
    ] = 0.05
    kl_estimator: Annotated[
        Literal["k1", "k3"], Field(description="Estimator of that penalty. For `ppo`.")
    ] = "k1"
    vf_coef: Annotated[float, Field(ge=0, description="Weight of the value loss. For `ppo`.")] = 0.1
    cliprange_value: Annotated[
        float, Field(gt=0, description="Values move by at most this from before. For `ppo`.")
    ] = 0.2
    whiten_advantages: Annotated[
        bool, Field(description="Give advantages mean 0 and variance 1. For `ppo`.")
    ] = True
    missing_eos_penalty: Annotated[
        float | None,
        Field(ge=0, description="Taken from the reward of a completion without end. For `ppo`."),
    ] = None
    num_iterations: Annotated[
        int, Field(ge=1, le=1000, description="How often the roll-outs are gone through.")
    ] = 1
    per_device_train_batch_size: Annotated[
        int, Field(ge=1, le=4096, description="Roll-outs that are computed at once.")
    ] = 8
    gradient_accumulation_steps: Annotated[
        int, Field(ge=1, le=4096, description="How many of these batches make one step.")
    ] = 1
    learning_rate: Annotated[
        float, Field(gt=0, description="Of AdamW; the same for all steps.")
    ] = 1e-6
    value_learning_rate: Annotated[
        float | None,
        Field(gt=0, description="Of the value model; `learning_rate` if not given. For `ppo`."),
    ] = None
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW.")] = 0.0
    max_grad_norm: Annotated[
        float | None, Field(gt=0, description="Longer gradients are cut to this; null for never.")
    ] = 1.0
    seed: Annotated[
        int, Field(ge=0, le=2**63 - 1, description="Fixes the order and a new adapter's start.")
    ] = 0
    dtype: Annotated[
        NumericFormat, Field(description="Numeric format of the passes; adapters are float32.")
    ] = "float32"
    checkpoint_steps: CheckpointSteps = None

    @model_validator(mode="after")
    def _fit_the_method(self) -> Self:
        foreign = _PPO_ONLY if self.method == "group" else _GROUP_ONLY
        for field in foreign:
            if getattr(self, field) != type(self).model_fields[field].default:
                other = "ppo" if self.method == "group" else "group"
                hint = "; it takes `kl_coef`" if field == "beta" else ""
                message = f"`{field}` is for `method: {other}`, not for {self.method!r}{hint}"
                raise ParamError(field, message)
        if self.lora is not None and self.lora.lora_dropout > 0:
            message = "an update compares probabilities before and after it: no `lora_dropout`"
            raise ParamError("lora", message)
        return self

    @property
    def batch_size(self) -> int:
        """Roll-outs of one optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def signal(self) -> str:
        """The column that says how good a roll-out was."""
        return "advantage" if self.method == "group" else "reward"


def _advantages_columns(
    params: AdvantagesParams, inputs: Mapping[str, Any]
) -> Mapping[str, Columns]:
    rows: Columns = inputs["rows"]
    if rows is None:
        return {"rows": None}
    if params.reward not in rows:
        message = f"no column {params.reward!r} in the roll-outs{nearest(params.reward, rows)}"
        raise ParamError("reward", message)
    for column in params.by if params.method != "whiten" else ():
        if column not in rows:
            hint = "; `generate` with `tokens: true` adds it" if column == "prompt_tokens" else ""
            raise ParamError("by", f"no column {column!r}{hint}{nearest(column, rows)}")
    if params.into in rows:
        message = f"the rows already have a column {params.into!r}; give another name with `into`"
        raise ParamError("into", message)
    return {"rows": (*rows, params.into)}


def _update_columns(params: PolicyUpdateParams, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    columns: Columns = inputs["rollouts"]
    for name, hint in needed_columns(params).items():
        if columns is not None and name not in columns:
            raise ParamError("rollouts", f"the roll-outs have no column {name!r}: {hint}")
    return {"metrics": METRICS_COLUMNS, "summary": SUMMARY_COLUMNS}


def needed_columns(params: PolicyUpdateParams) -> Mapping[str, str]:
    """The columns that roll-outs must have, with where they come from."""
    tokens = "`generate` with `tokens: true` adds it"
    signals = {
        "advantage": "the operator `advantages` adds it",
        "reward": "the operator `reward` or a function of yours adds it",
    }
    return {
        "prompt_tokens": tokens,
        "completion_tokens": tokens,
        params.signal: signals[params.signal],
    }


def _update_outputs(params: PolicyUpdateParams) -> Mapping[str, str]:
    weights = {"model": "model"} if params.lora is None else {"adapter": "adapter"}
    kind = "model" if params.lora is None else "adapter"
    value = {"value": kind} if params.method == "ppo" else {}
    tables = {"metrics": "table", "summary": "table", "loss_curve": "file"}
    return {**weights, **value, **tables}


def _update_engine(params: PolicyUpdateParams) -> str:
    return f"trl/{params.dtype}"


def _update_amounts(params: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    rows, tokens = rows_and_tokens(inputs.get("rollouts"))
    passed = rows * params["num_iterations"]
    return Amounts(work=passed, prompt_tokens=passed * tokens)


ADVANTAGES = Operator(
    name="advantages",
    version=1,
    summary="Turn the rewards of roll-outs into advantages, by groups or over all of them.",
    params=AdvantagesParams,
    inputs={"rows": Port("table", "roll-outs with a reward, several for each prompt")},
    grain="whole",
    runtime="tables",
    entry="flowmesh.runtimes.policy.advantages:open_advantages",
    columns=_advantages_columns,
    amounts=whole_tables,
)


def _check(params: PolicyUpdateParams, bound: Collection[str]) -> None:
    if params.method == "group":
        for port in ("value", "value_model"):
            if port in bound:
                message = f"`{port}` is for `method: ppo`; remove it, or change the method"
                raise ParamError(port, message)
    if params.lora is None:
        for port in ("adapter", "value"):
            if port in bound:
                message = f"`{port}` is an adapter, and `lora: null` trains all weights of a model"
                raise ParamError(port, f"{message}; merge it by `merge_adapter`, or remove one")


POLICY_UPDATE = Operator(
    name="policy_update",
    version=1,
    summary="Improve a policy on given roll-outs by clipped policy optimisation (GRPO, PPO).",
    params=PolicyUpdateParams,
    inputs={
        "rollouts": Port("table", "token ids of prompts and completions, with their signal"),
        "model": Port("model", "the language model that is the policy, or its base"),
        "adapter": Port("adapter", "a LoRA adapter to go on training", required=False),
        "value": Port(
            "adapter",
            "an adapter of a value or reward model to begin with, for `ppo`"
            " with LoRA: the `value` of the round before",
            required=False,
        ),
        "value_model": Port(
            "model",
            "a value or reward model to begin with, for `ppo` without"
            " LoRA: the `value` of the round before",
            required=False,
        ),
        "reference_model": Port(
            "model", "the policy that the KL divergence is taken to", required=False
        ),
    },
    check=_check,
    grain="whole",
    runtime="trl",
    entry="flowmesh.runtimes.policy.engine:open_policy_update",
    preload=(
        "torch",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "peft",
    ),
    outputs=_update_outputs,
    columns=_update_columns,
    engine=_update_engine,
    exact=lambda params: bool(params.dtype == "float32"),
    amounts=_update_amounts,
    flops_per_parameter=TRAINING_FLOPS,
    limits=("checkpoint_steps",),
    resumable=True,
)
