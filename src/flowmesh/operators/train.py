"""Training operators: `sft`, `dpo`, `kto`, `reward_model`, `grpo`, `rloo`.

Each makes an adapter, or a model where `lora` is null, from a table and a model. TRL does
the training: `runtimes/training` carries them out.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flowmesh.operators.amounts import TRAINING_FLOPS, rows_and_tokens
from flowmesh.operators.train_data import check_columns
from flowmesh.operators.train_params import LengthParams, TrainParams
from flowmesh.spec.action import Bound
from flowmesh.spec.operator import Amounts, Columns, Operator, ParamError, Params, Port

_BETA = "How much moving away from the reference costs."
_REFERENCE = (
    "What the policy is compared with when it goes on from an `adapter`: `start`, the model with"
    " that adapter, or `base`, the model without any."
)
Reference = Literal["start", "base"]


class SftParams(LengthParams):
    """Train a model on texts, chats, or prompts with completions."""

    learning_rate: Annotated[
        float, Field(gt=0, le=10, description="The highest learning rate.")
    ] = 2e-4
    packing: Annotated[
        bool, Field(description="Put several short rows into one of `max_length` tokens.")
    ] = False
    completion_only_loss: Annotated[
        bool | None,
        Field(description="Learn completions only; if not given, wherever there are prompts."),
    ] = None
    assistant_only_loss: Annotated[
        bool, Field(description="Of chats, learn the assistant's turns only.")
    ] = False


class DpoParams(LengthParams):
    """Train a model to prefer chosen answers to rejected ones."""

    beta: Annotated[float, Field(ge=0, le=100, description=_BETA)] = 0.1
    loss_type: Annotated[
        Literal[
            "sigmoid", "hinge", "ipo", "robust", "bco_pair", "sppo_hard", "aot", "apo_zero",
            "apo_down", "sigmoid_norm",
        ],
        Field(description="The loss, as TRL names it."),
    ] = "sigmoid"  # fmt: skip
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5, description="Share of pairs that may be the wrong way round.")
    ] = 0.0
    reference: Annotated[Reference, Field(description=_REFERENCE)] = "start"


class KtoParams(LengthParams):
    """Train a model on answers that are labelled good or bad, without pairs."""

    per_device_train_batch_size: Annotated[
        int, Field(ge=2, le=4096, description="Rows that are computed at once; at least 2.")
    ] = 8
    beta: Annotated[float, Field(ge=0, le=100, description=_BETA)] = 0.1
    loss_type: Annotated[
        Literal["kto", "apo_zero_unpaired"], Field(description="The loss, as TRL names it.")
    ] = "kto"
    desirable_weight: Annotated[
        float, Field(ge=0, le=1000, description="Weight of rows with the label true.")
    ] = 1.0
    undesirable_weight: Annotated[
        float, Field(ge=0, le=1000, description="Weight of rows with the label false.")
    ] = 1.0
    reference: Annotated[Reference, Field(description=_REFERENCE)] = "start"


class RewardModelParams(LengthParams):
    """Train a model that scores answers, on chosen and rejected ones."""

    learning_rate: Annotated[
        float, Field(gt=0, le=10, description="The highest learning rate.")
    ] = 1e-4
    center_rewards_coefficient: Annotated[
        float | None, Field(gt=0, le=10, description="How much a mean score other than 0 costs.")
    ] = None


class _PolicyParams(TrainParams):
    """What `grpo` and `rloo` share."""

    num_generations: Annotated[
        int, Field(ge=2, le=256, description="Completions drawn for each prompt.")
    ] = 8
    max_completion_length: Annotated[
        int, Field(ge=1, le=2**20, description="Most tokens of a completion.")
    ] = 256
    temperature: Annotated[float, Field(gt=0, le=10, description="Of the draws.")] = 1.0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="Draw from the likeliest tokens of this total probability."),
    ] = 1.0
    num_iterations: Annotated[
        int, Field(ge=1, le=64, description="Steps that are made on the same completions.")
    ] = 1
    epsilon: Annotated[
        float, Field(gt=0, lt=1, description="How far a step may change a token's probability.")
    ] = 0.2
    reference: Annotated[Reference, Field(description=_REFERENCE)] = "start"
    function: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$",
            description=(
                "Name of a function in `file`: it gets `prompts`, `completions` and each other"
                " column as lists by keyword, and returns a list of rewards. Equal completions"
                " must get equal rewards."
            ),
        ),
    ] = None
    timeout_s: Annotated[
        float, Field(gt=0, le=86_400, description="Seconds after which a call of it is killed.")
    ] = 60.0
    memory_mb: Annotated[
        int,
        Field(
            ge=64,
            le=1_048_576,
            description="Most address space of its process, in units of 10^6 bytes.",
        ),
    ] = 2048
    reward_weights: Annotated[
        list[Annotated[float, Field(ge=-1000, le=1000)]] | None,
        Field(
            min_length=1,
            max_length=2,
            description="Weights of the rewards: of the function first, then of the reward model.",
        ),
    ] = None

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        drawn = self.effective_batch
        if drawn % self.num_generations:
            raise ParamError(
                "num_generations",
                f"`per_device_train_batch_size` x `gradient_accumulation_steps` x `devices` is"
                f" {drawn} completions a step, which {self.num_generations} do not divide; a step"
                " is made of whole groups",
            )
        return self


class GrpoParams(_PolicyParams):
    """Train a model by rewards of what it writes, each relative to its group's."""

    beta: Annotated[float, Field(ge=0, le=100, description=_BETA)] = 0.0
    loss_type: Annotated[
        Literal["dapo", "grpo", "dr_grpo", "bnpo"], Field(description="The loss, as TRL names it.")
    ] = "dapo"
    scale_rewards: Annotated[
        Literal["group", "batch", "none"],
        Field(description="Whose standard deviation advantages are divided by."),
    ] = "group"


class RlooParams(_PolicyParams):
    """Train a model by rewards of what it writes, each against the mean of the others."""

    beta: Annotated[float, Field(ge=0, le=100, description=_BETA)] = 0.05
    normalize_advantages: Annotated[
        bool, Field(description="Scale advantages to mean 0 and deviation 1 in the batch.")
    ] = False


#: Columns of `metrics` that all operators have; null where a row has no such value.
_METRICS = (
    "step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "tokens", "seconds",
    "joules",
)  # fmt: skip
#: TRL's own metrics by operator, and the columns of `metrics` that hold them.
TRL_METRICS: Mapping[str, Mapping[str, str]] = {
    "sft": {"mean_token_accuracy": "token_accuracy", "entropy": "entropy"},
    "dpo": {
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
    },
    "kto": {
        "kl": "kl",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
    },
    "reward_model": {"accuracy": "accuracy", "margin": "margin", "mean_reward": "mean_reward"},
    "grpo": {
        "reward": "reward",
        "reward_std": "reward_std",
        "kl": "kl",
        "entropy": "entropy",
        "completions/mean_length": "completion_tokens",
    },
}
TRL_METRICS = {**TRL_METRICS, "rloo": TRL_METRICS["grpo"]}
#: Columns of `summary`, in its one row.
SUMMARY = (
    "operator", "steps", "planned_steps", "epochs", "train_loss_first", "train_loss_last",
    "train_loss_best", "eval_loss_first", "eval_loss_last", "eval_loss_best", "reward_first",
    "reward_last", "kept_step", "tokens", "seconds", "joules", "trainable_parameters",
    "total_parameters", "rows", "eval_rows", "truncated_rows", "dropped_rows",
    "max_length", "effective_batch", "micro_batch", "devices", "resumed_from",
    "stopped_early", "notes", "versions",
)  # fmt: skip


def metrics_columns(op: str) -> tuple[str, ...]:
    return (*_METRICS, *TRL_METRICS[op].values())


def _outputs(params: TrainParams) -> Mapping[str, str]:
    weights = "model" if params.lora is None else "adapter"
    return {weights: weights, "metrics": "table", "summary": "table", "loss_curve": "file"}


def _columns(params: TrainParams, tables: Mapping[str, Any], *, op: str) -> Mapping[str, Columns]:
    check_columns(op, tables)
    if params.early_stopping_patience and not params.eval_split and "eval_data" not in tables:
        raise ParamError("early_stopping_patience", "needs `eval_data`, or an `eval_split` above 0")
    if params.eval_split and "eval_data" in tables:
        raise ParamError("eval_split", "there is `eval_data` already; remove one of them")
    return {"metrics": metrics_columns(op), "summary": SUMMARY}


def _check(params: TrainParams, bound: Collection[str]) -> None:
    if "adapter" in bound and params.lora is None:
        message = "`lora: null` trains the whole model, so no `adapter` can go on with it"
        raise ParamError("adapter", f"{message}; remove one of them")


def _check_rewards(params: _PolicyParams, bound: Collection[str]) -> None:
    """A training by rewards has some, and no half of one."""
    _check(params, bound)
    both = "a reward function takes both: the port `file` and the parameter `function`"
    if params.function is None and "file" in bound:
        raise ParamError("file", f"{both}; name a `function` of the file")
    if params.function is not None and "file" not in bound:
        raise ParamError("function", f"{both}; give the `file` that it is in")
    scored = "reward_model" in bound or "reward_adapter" in bound
    count = (params.function is not None) + scored
    if count == 0:
        message = "there is nothing to be rewarded by: give `file` and `function`, a"
        raise ParamError("function", f"{message} `reward_model`, or a `reward_adapter`")
    weights = params.reward_weights
    if weights is not None and len(weights) != count:
        message = f"has {len(weights)} weights for {count} rewards: one for `function`, and one"
        raise ParamError("reward_weights", f"{message} for a `reward_model` or `reward_adapter`")


def _amounts(params: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
    """Rows that are gone through, and their tokens: of a training by rewards, of completions."""
    rows, tokens = rows_and_tokens(inputs.get("data"))
    drawn = params.get("num_generations", 1)
    batch = params["per_device_train_batch_size"] * params["gradient_accumulation_steps"]
    if params["max_steps"]:
        passed = float(params["max_steps"] * batch * params["devices"])
    else:
        passed = rows * drawn * params["num_train_epochs"]
    passed *= params.get("num_iterations", 1)
    tokens += params.get("max_completion_length", 0)
    tokens = min(tokens, params.get("max_length") or tokens)
    return Amounts(work=passed, prompt_tokens=round(passed * tokens))


_DATA = Port("table", "the rows to learn from")
_PORTS = {
    "data": _DATA,
    "eval_data": Port("table", "rows to measure the loss on", required=False),
    "model": Port("model", "a causal language model: a directory with safetensors weights"),
    "adapter": Port("adapter", "an adapter of the model, to go on training", required=False),
}
_REWARDS = {
    "file": Port("file", "a Python file with the reward function", required=False),
    "reward_model": Port("model", "a model that scores answers", required=False),
    "reward_adapter": Port(
        "adapter",
        "an adapter that `reward_model` made, of the port `reward_model` or else of `model`",
        required=False,
    ),
}
_PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "matplotlib.backends.backend_agg",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.kto_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.rloo_trainer",
)


_LIMITS = ("checkpoint_steps", "timeout_s", "memory_mb")


def _training(name: str, summary: str, params: type[Params], more: Mapping[str, Port]) -> Operator:
    columns: Callable[[Any, Mapping[str, Any]], Mapping[str, Columns]] = partial(_columns, op=name)
    return Operator(
        name=name,
        version=1,
        summary=summary,
        params=params,
        inputs={**_PORTS, **more},
        grain="whole",
        runtime="trl",
        entry="flowmesh.runtimes.training.engine:open_trainer",
        preload=_PRELOAD,
        outputs=_outputs,
        task=lambda params, rendered, sample: params.model_dump(mode="json"),
        columns=columns,
        check=_check_rewards if issubclass(params, _PolicyParams) else _check,
        engine=lambda params: f"trl/{params.dtype}",
        exact=lambda params: params.dtype == "float32",
        amounts=_amounts,
        flops_per_parameter=TRAINING_FLOPS,
        max_batch=1,
        limits=tuple(name for name in _LIMITS if name in params.model_fields),
        resumable=True,
        devices=lambda params: int(params.devices),
    )


SFT = _training("sft", "Train a model on texts, chats, or completions.", SftParams, {})
DPO = _training("dpo", "Train a model to prefer chosen to rejected answers.", DpoParams, {})
KTO = _training("kto", "Train a model on answers labelled good or bad.", KtoParams, {})
REWARD_MODEL = _training(
    "reward_model", "Train a model that scores answers.", RewardModelParams, {}
)
GRPO = _training("grpo", "Train a model by rewards, relative to a group's.", GrpoParams, _REWARDS)
RLOO = _training(
    "rloo", "Train a model by rewards, against the others' mean.", RlooParams, _REWARDS
)

#: All of them.
TRAINING = (SFT, DPO, KTO, REWARD_MODEL, GRPO, RLOO)
PARAMS: Mapping[str, type[Params]] = {one.name: one.params for one in TRAINING}
