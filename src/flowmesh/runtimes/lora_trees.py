"""LoRA adapters read into PEFT, from any tree in its layout: ours, or one that a user brought.

A tree that names its base in `flowmesh.json` is held to it; one that does not must fit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file

from flowmesh.runtimes.training.models import ORIGIN_FILE, StartAdapter, adapt
from flowmesh.runtimes.weights import ModelRefused, refusing_model

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LANGUAGE_MODEL, SCORER = "CAUSAL_LM", "SEQ_CLS"
_TASKS = {LANGUAGE_MODEL: "a language model", SCORER: "a reward or value model"}


class AdapterUnfit(ModelRefused):
    """An adapter can not be used with this model; the message says why and what to do."""


def attach(model: torch.nn.Module, folder: Path, *, base: str, task: str = "") -> Any:
    """`model` with the adapter of a directory, ready to be trained.

    Args:
        base: digest of the model's tree; an adapter that names another one is refused.
        task: what it must have been trained for, if it matters.

    Raises AdapterUnfit, ModelRefused, Refused, MemoryError.
    """
    found = read_settings(folder, base=base).get("task_type")
    if task and found != task:
        raise AdapterUnfit(
            f"this adapter was trained for {found!r:.40}; expected is one of {_TASKS[task]}, {task}"
        )
    with refusing_model():
        tensors = load_file(folder / TENSORS)
        config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT would warn of a path that is another
    with torch.random.fork_rng():
        return adapt(model, StartAdapter(config, tensors))


def read_settings(folder: Path, *, base: str) -> Mapping[str, Any]:
    """The adapter's configuration, once it is known to be a LoRA of this base.

    Raises AdapterUnfit.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise AdapterUnfit(
                f"this is not an adapter: it has no {name}; PEFT writes it with safe serialization"
            )
    settings = _object(folder / CONFIG)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise AdapterUnfit(f"the adapter is of the type {kind!r:.40}; only LORA is supported")
    if (folder / ORIGIN_FILE).is_file():
        origin = _object(folder / ORIGIN_FILE).get("base")
        if origin != base:
            raise AdapterUnfit(
                f"this adapter was trained for another base model (tree {_short(origin)}) than the "
                f"one given (tree {_short(base)}); give both as they belong together"
            )
    return settings


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise AdapterUnfit(f"the adapter's {path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterUnfit(f"the adapter's {path.name} is no JSON object")
    return found


def _short(digest: object) -> str:
    return str(digest).removeprefix("sha256:")[:12]
