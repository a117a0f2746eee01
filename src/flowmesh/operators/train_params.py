"""Parameters that all training operators share, by the names of transformers, TRL and PEFT."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from flowmesh.spec.operator import ParamError, Params

NumericFormat = Literal["float32", "bfloat16"]
_ModuleName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Batch = Annotated[int, Field(ge=1, le=4096)]
CheckpointSteps = Annotated[
    int | None,
    Field(
        ge=1,
        le=10**6,
        description=(
            "Steps between checkpoints; not given: what costs least, by what one takes and how"
            " often workers of this kind are interrupted."
        ),
    ),
]


class Lora(BaseModel):
    """The settings of a new adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: Annotated[int, Field(ge=1, le=1024, description="Rank of the update.")] = 8
    lora_alpha: Annotated[
        float, Field(gt=0, le=8192, description="The update is scaled by `lora_alpha` / `r`.")
    ] = 16
    lora_dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of an adapter's inputs that is dropped.")
    ] = 0.0
    target_modules: Annotated[
        str | list[_ModuleName],
        Field(
            description=(
                "Names of the modules to adapt, as `q_proj`, or `all-linear`: every linear layer"
                " but the output head. A single name is a regular expression, as PEFT has it."
            )
        ),
    ] = "all-linear"
    use_rslora: Annotated[bool, Field(description="Scale by `lora_alpha` / sqrt(`r`) instead.")] = (
        False
    )
    modules_to_save: Annotated[
        list[_ModuleName] | None,
        Field(max_length=64, description="Modules that are trained and kept whole."),
    ] = None


class TrainParams(Params):
    """What every training operator takes."""

    lora: Annotated[
        Lora | None,
        Field(
            description=(
                "Settings of the adapter that is trained; null trains all weights of the model."
                " With an `adapter` to go on with, that adapter's own settings hold."
            )
        ),
    ] = Lora()
    learning_rate: Annotated[
        float,
        Field(gt=0, le=10, description="The highest learning rate; for LoRA about 10 times more."),
    ] = 1e-5
    num_train_epochs: Annotated[
        float, Field(gt=0, le=1000, description="How often the data is gone through.")
    ] = 1.0
    max_steps: Annotated[
        int | None,
        Field(ge=1, le=10**7, description="Steps to train, in place of `num_train_epochs`."),
    ] = None
    per_device_train_batch_size: Annotated[
        _Batch, Field(description="Rows that are computed at once.")
    ] = 8
    gradient_accumulation_steps: Annotated[
        _Batch, Field(description="How many of these batches make one step.")
    ] = 1
    devices: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description=(
                "GPUs of one worker that train together, or processes where there is none; each"
                " computes its own batches, which one step takes together."
            ),
        ),
    ] = 1
    lr_scheduler_type: Annotated[
        Literal["linear", "cosine", "constant", "constant_with_warmup"],
        Field(description="How the learning rate changes over the steps."),
    ] = "linear"
    warmup_steps: Annotated[
        int, Field(ge=0, le=10**6, description="Steps over which the learning rate rises from 0.")
    ] = 0
    warmup_ratio: Annotated[
        float, Field(ge=0, lt=1, description="The same as a share of all steps.")
    ] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Of the optimizer.")] = 0.0
    max_grad_norm: Annotated[
        float, Field(gt=0, le=1000, description="Gradients are scaled down to this norm.")
    ] = 1.0
    optim: Annotated[
        Literal["adamw_torch", "adafactor", "sgd"], Field(description="The optimizer.")
    ] = "adamw_torch"
    gradient_checkpointing: Annotated[
        bool, Field(description="Compute activations twice in place of keeping them in memory.")
    ] = False
    seed: Annotated[
        int,
        Field(
            ge=0, le=2**32 - 1, description="Fixes the order of rows, new weights and every draw."
        ),
    ] = 0
    dtype: Annotated[
        NumericFormat,
        Field(
            description=(
                "Numeric format of the computation; weights are kept in float32. Results are the"
                " same on every worker with a CPU in float32 only."
            )
        ),
    ] = "float32"
    logging_steps: Annotated[
        int, Field(ge=1, le=10**6, description="Steps that a row of `metrics` is the mean of.")
    ] = 10
    eval_split: Annotated[
        float,
        Field(ge=0, lt=1, description="Share of the rows held out, if there is no `eval_data`."),
    ] = 0.0
    eval_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=10**6,
            description=(
                "Evaluate after so many steps; a tenth of all if not given, and after the last."
            ),
        ),
    ] = None
    per_device_eval_batch_size: Annotated[
        _Batch, Field(description="Rows that are evaluated at once.")
    ] = 8
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description=(
                "Stop after so many evaluations without a lower loss, and keep the weights of the"
                " best one, also if all steps are done. Not given: keep the last weights."
            ),
        ),
    ] = None
    checkpoint_steps: CheckpointSteps = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup_steps and self.warmup_ratio:
            raise ParamError("warmup_ratio", "give either `warmup_steps` or `warmup_ratio`")
        return self

    @property
    def effective_batch(self) -> int:
        """Rows, or completions, that one step is made of."""
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return rows * self.devices


class LengthParams(TrainParams):
    """Of the operators that read whole rows."""

    max_length: Annotated[
        int,
        Field(
            ge=2,
            le=2**20,
            description="Most tokens of a row; at most the model's context.",
        ),
    ] = 1024
