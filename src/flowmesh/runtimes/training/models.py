"""The weights that are trained: loaded from a tree, adapted, and set apart from their base."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

from flowmesh.base.nearest import nearest
from flowmesh.operators.train_params import Lora
from flowmesh.runtimes.training.refused import Refused
from flowmesh.runtimes.weights import TEMPLATE_DAY, check_complete, check_folder, refusing_model

_NO_LIMIT = 2**31
#: PEFT's names of what a model does, by whether it scores.
_TASKS = {False: "CAUSAL_LM", True: "SEQ_CLS"}
_SCORING = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class StartAdapter:
    """An adapter to go on with: how it is built, and its weights."""

    config: LoraConfig
    weights: Mapping[str, torch.Tensor]


def load_tokenizer(folder: Path) -> Any:
    """Raises ModelRefused."""
    check_folder(folder)
    with refusing_model():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.apply_chat_template = partial(
        tokenizer.apply_chat_template, strftime_now=TEMPLATE_DAY.strftime
    )
    return tokenizer


def load_model(folder: Path, *, scores: bool, pad_token: int) -> Any:
    """A causal model, or one with a head of one number; new weights come from torch's seed.

    Raises ModelRefused, MemoryError.
    """
    check_folder(folder)
    auto, more = transformers.AutoModelForCausalLM, {}
    if scores:
        auto, more = transformers.AutoModelForSequenceClassification, {"num_labels": 1}
    with refusing_model():
        model, found = auto.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **more,
        )
    check_complete(model, found["missing_keys"], head="score" if scores else "")
    model.config.get_text_config().pad_token_id = pad_token
    return model


def check_scores(folder: Path, port: str, *, scores: bool) -> None:
    """Refuse a model whose head is for something else: a new one would be random."""
    check_folder(folder)
    made = json.loads((folder / "config.json").read_bytes()).get("architectures") or ["unknown"]
    if scores and not made[0].endswith(_SCORING):
        raise Refused(
            f"`{port}` is a {made[0]}, which does not score; give a model that `reward_model` made"
            " with `lora: null`, or the adapter that it made as `reward_adapter`"
        )
    if not scores and made[0].endswith(_SCORING):
        raise Refused(f"`{port}` is a {made[0]}, which scores and does not write")


def context_of(folder: Path) -> int:
    """Most tokens that a model of this directory reads. Raises ModelRefused."""
    check_folder(folder)
    with refusing_model():
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    text = config.get_text_config(decoder=True)
    return int(getattr(text, "max_position_embeddings", 0) or _NO_LIMIT)


def lora_config(lora: Lora, model: Any, *, scores: bool) -> LoraConfig:
    """PEFT's configuration of a new adapter. Raises Refused for modules that are not there."""
    _check_targets(lora, model)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        modules_to_save=lora.modules_to_save,
        task_type=_TASKS[scores],
    )


def _check_targets(lora: Lora, model: Any) -> None:
    names = [name for name, _ in model.named_modules() if name]
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    targets = lora.target_modules
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        raise Refused(
            "`lora.target_modules`: `lm_head` can not be adapted, as losses are computed from its"
            " own weights; leave it out"
        )
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, name) for name in names):
            raise Refused(
                f"`lora.target_modules`: {targets!r} matches no module of the model; as a list,"
                f" these can be named: {', '.join(sorted(linear))}"
            )
        targets = []
    for field, wanted in (("target_modules", targets), ("modules_to_save", lora.modules_to_save)):
        for target in wanted or ():
            if not any(name == target or name.endswith(f".{target}") for name in names):
                found = nearest(target, linear)
                raise Refused(f"`lora.{field}`: the model has no module {target!r}{found}")


def adapt(model: Any, start: StartAdapter) -> PeftModel:
    """The model with the adapter in it, as it is to go on. Raises Refused."""
    try:
        adapted = get_peft_model(model, start.config)
    except ValueError as error:
        raise Refused(f"the adapter does not fit the model: {error}") from error
    load_into(adapted, start)
    return adapted


def load_into(adapted: PeftModel, start: StartAdapter) -> None:
    """Put an adapter's weights into one that is built like it. Raises Refused."""
    try:
        told = set_peft_model_state_dict(adapted, dict(start.weights))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise Refused(f"the adapter does not fit the model: {reason}") from error
    missing = [key for key in told.missing_keys if "lora_" in key and ".ref." not in key]
    for key in (*told.unexpected_keys, *missing):
        raise Refused(f"the adapter does not fit the model: its weights and {key} do not agree")
