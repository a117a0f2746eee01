"""LoRA adapters read into PEFT, from any tree in its layout: ours, or one that a user brought.

A tree that names its base in `flowmesh.json` is held to it; one that does not must fit.
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file

from flowmesh.runtimes.adapters import TENSORS, AdapterRefused, read_config
from flowmesh.runtimes.training.models import StartAdapter, adapt
from flowmesh.runtimes.weights import refusing_model

LANGUAGE_MODEL, SCORER = "CAUSAL_LM", "SEQ_CLS"
_TASKS = {LANGUAGE_MODEL: "a language model", SCORER: "a reward or value model"}


def attach(model: torch.nn.Module, folder: Path, *, base: str, task: str, port: str) -> Any:
    """`model` with the adapter of a directory, ready to be trained. Else as `read_start`."""
    start = read_start(folder, base=base, task=task, port=port)
    with torch.random.fork_rng():
        return adapt(model, start)


def read_start(folder: Path, *, base: str, task: str, port: str) -> StartAdapter:
    """An adapter to go on with, once it is known to be one of this base for this task.

    Args:
        base: digest of the model's tree; an adapter that names another one is refused.
        task: what it must have been trained for.
        port: where it was given, for messages.

    Raises AdapterRefused, ModelRefused, MemoryError.
    """
    try:
        found = read_config(folder, base).get("task_type") or LANGUAGE_MODEL
    except AdapterRefused as refused:
        raise AdapterRefused(f"`{port}`: {refused}") from None
    if found != task:
        raise AdapterRefused(
            f"`{port}`: this adapter was trained for {found!r:.40}; expected is one of "
            f"{_TASKS[task]}, {task}. `reward_model` and the `value` of `policy_update` score, all "
            "others write"
        )
    with refusing_model():
        tensors = load_file(folder / TENSORS)
        config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    config.base_model_name_or_path = None  # PEFT would warn of a path that is another
    return StartAdapter(config, tensors)
