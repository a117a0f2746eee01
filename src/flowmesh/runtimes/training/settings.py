"""TRL's configuration, from an operator's parameters."""

import math
from pathlib import Path
from typing import Any

import torch

from flowmesh.operators.train_params import TrainParams

#: Seconds that processes wait for each other: as long as a slow reward takes. One that has died is
#: seen at once, by other means.
_PATIENCE_S = 2 * 86_400


def common(params: TrainParams, folder: Path, *, micro_batch: int) -> dict[str, Any]:
    """Arguments that all configurations of TRL take.

    Logs come at every step: `metrics` takes means of them, so that a window which was cut by
    an interruption gives the same row. When to evaluate and to save, `watch` decides.

    Args:
        micro_batch: rows that are computed at once; it divides those that are asked for.
    """
    cuda = torch.cuda.is_available()
    parts = params.per_device_train_batch_size // micro_batch
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": params.gradient_accumulation_steps * parts,
        "per_device_eval_batch_size": params.per_device_eval_batch_size,
        "num_train_epochs": params.num_train_epochs,
        "max_steps": params.max_steps or -1,
        "learning_rate": params.learning_rate,
        "lr_scheduler_type": params.lr_scheduler_type,
        "warmup_steps": params.warmup_ratio or params.warmup_steps,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
        "optim": params.optim,
        "gradient_checkpointing": params.gradient_checkpointing,
        "seed": params.seed,
        "data_seed": params.seed,
        "bf16": params.dtype == "bfloat16",
        "use_cpu": not cuda,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        # Otherwise gradients are laid out anew after the first step, also after the first of a
        # resume, and three processes add them up in another order.
        "ddp_find_unused_parameters": True,
        "ddp_timeout": _PATIENCE_S,
    }


def sft(params: Any, max_length: int) -> dict[str, Any]:
    return {
        "max_length": max_length,
        "packing": params.packing,
        "completion_only_loss": params.completion_only_loss,
        "assistant_only_loss": params.assistant_only_loss,
    }


def dpo(params: Any, max_length: int) -> dict[str, Any]:
    return {
        "max_length": max_length,
        "beta": params.beta,
        "loss_type": [params.loss_type],
        "label_smoothing": params.label_smoothing,
    }


def kto(params: Any, max_length: int) -> dict[str, Any]:
    return {
        "max_length": max_length,
        "beta": params.beta,
        "loss_type": params.loss_type,
        "desirable_weight": params.desirable_weight,
        "undesirable_weight": params.undesirable_weight,
    }


def reward_model(params: Any, max_length: int) -> dict[str, Any]:
    return {
        "max_length": max_length,
        "center_rewards_coefficient": params.center_rewards_coefficient,
    }


def _policy(params: Any) -> dict[str, Any]:
    groups = math.ceil(params.per_device_eval_batch_size / params.num_generations)
    return {
        "num_generations": params.num_generations,
        "max_completion_length": params.max_completion_length,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "num_iterations": params.num_iterations,
        "epsilon": params.epsilon,
        "beta": params.beta,
        "reward_weights": params.reward_weights,
        "per_device_eval_batch_size": groups * params.num_generations,
    }


def grpo(params: Any, max_length: int) -> dict[str, Any]:
    more = {"loss_type": params.loss_type, "scale_rewards": params.scale_rewards}
    return {**_policy(params), **more}


def rloo(params: Any, max_length: int) -> dict[str, Any]:
    return {**_policy(params), "normalize_advantages": params.normalize_advantages}
