"""Adapters from the store: LoRA directories as PEFT writes them, read without PEFT.

An adapter is data from a tenant, so nothing in it is believed: what is not understood is
refused, what does not fit the base is refused, and every message says what is wrong.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from flowmesh.runtimes.base import Blobs
from flowmesh.runtimes.low_rank import Adapter, Update
from flowmesh.runtimes.weights import ModelRefused, Weights, memory_errors
from flowmesh.spec.action import Artifact

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
#: Names the base in the trees that we make.
ORIGIN = "flowmesh.json"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

_NAME = re.compile(r"[A-Za-z0-9_.]+")

#: Settings that are read here, and those that say how it was trained and change no output.
_SILENT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "bias", "target_modules", "exclude_modules", "lora_dropout"),
    *("fan_in_fan_out", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "runtime_config", "eva_config", "qalora_group_size"),
    *("ensure_weight_tying", "velora_config"),
}
#: Ways to begin that leave the base as it is; others store the difference to a changed base.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


class AdapterRefused(ModelRefused):
    """The directory holds no adapter that fits this model; the message says what is wrong."""


def load_adapter(weights: Weights, blobs: Blobs, adapter: Artifact, model: Artifact) -> Adapter:
    """The adapter of a tree, in the numeric format and on the device of its base.

    Args:
        model: the tree that `weights` were loaded from: an adapter may name its base.

    Raises AdapterRefused, BlobMissing, MemoryError.
    """
    found = weights.adapter_cache.get(adapter.digest, model.digest)
    if found is None:
        try:
            found = read_adapter(weights, blobs.tree(adapter.address), adapter.digest, model.digest)
        except AdapterRefused as refused:
            found = str(refused)
        weights.adapter_cache.put(adapter.digest, model.digest, found)
    if isinstance(found, str):
        raise AdapterRefused(found)
    return found


def read_adapter(weights: Weights, folder: Path, name: str, model: str = "") -> Adapter:
    """Read the adapter in a directory. `model`: digest of the base's tree, if it has one.

    Raises AdapterRefused, MemoryError.
    """
    config = read_config(folder, model)
    _check_settings(config)
    pairs = _pairs(folder)
    layers = dict(weights.model.named_modules())
    updates = {}
    for layer, (down, up) in sorted(pairs.items()):
        _check_shapes(layer, down, up, layers)
        updates[layer] = _update(layer, down, up, config, weights)
    return Adapter(name, updates)


def read_config(folder: Path, model: str = "") -> dict[str, Any]:
    """The settings of a LoRA on a plain base: of `model`, if both name one.

    Raises AdapterRefused.
    """
    if not (folder / CONFIG).is_file() or not (folder / TENSORS).is_file():
        raise AdapterRefused(
            f"this is not an adapter: a LoRA directory as PEFT writes it has {CONFIG} and "
            f"{TENSORS}; give a whole model to the port `model`"
        )
    config = _object(folder / CONFIG)
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterRefused(f"this adapter is of the type {kind!r:.40}; only LORA is supported")
    if (start := config.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        raise AdapterRefused(
            f"this adapter began from {start!r:.40} and fits a changed base only; save it with "
            "`path_initial_model_for_weight_conversion`, which makes a plain LoRA of it"
        )
    _check_base(folder, model)
    return config


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise AdapterRefused(f"the adapter's {path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise AdapterRefused(f"the adapter's {path.name} is no JSON object")
    return found


def _check_settings(config: Mapping[str, Any]) -> None:
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise AdapterRefused(
            f"this adapter was trained for {task!r:.40}; one that writes text is of CAUSAL_LM"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRefused("this adapter changes biases; train it with bias='none'")
    for setting, value in config.items():
        if setting not in _SILENT and value:
            raise AdapterRefused(
                f"this adapter uses `{setting:.60}`, which is not supported here; train a plain "
                "LoRA, or merge it into its base and use the merged model"
            )


def _check_base(folder: Path, model: str) -> None:
    if not model or not (folder / ORIGIN).is_file():
        return
    base = _object(folder / ORIGIN).get("base")
    if base != model:
        raise AdapterRefused(
            f"this adapter was trained for another base model (tree {_short(base)}) than the one "
            f"at the port `model` (tree {_short(model)}); give both as they belong together"
        )


def _short(digest: object) -> str:
    return str(digest).removeprefix("sha256:")[:12]


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by the name of their layer, as they lie in the file."""
    try:
        with memory_errors():
            tensors = load_file(folder / TENSORS)
    except SafetensorError as error:
        raise AdapterRefused(f"the adapter's {TENSORS} is damaged: {error}") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise AdapterRefused(
                f"the adapter holds the tensor `{key:.120}`, which is no LoRA matrix of a linear "
                "layer; whole layers, embeddings and biases can not be adapted here"
            )
        halves.setdefault(found[1], {})[found[2]] = tensor
    if not halves:
        raise AdapterRefused("the adapter holds no LoRA matrices")
    for layer, half in halves.items():
        if len(half) != 2:
            raise AdapterRefused(f"the adapter holds lora_{min(half)} of `{layer}` alone")
    return {layer: (half["A"], half["B"]) for layer, half in halves.items()}


def _check_shapes(
    name: str, down: torch.Tensor, up: torch.Tensor, layers: Mapping[str, torch.nn.Module]
) -> None:
    if "experts" in name.split("."):
        raise AdapterRefused(
            f"the adapter changes `{name}`, one of several experts that rows are sent to in parts; "
            "that is not supported here: merge it into its base and use the merged model"
        )
    layer = layers.get(name)
    if not isinstance(layer, torch.nn.Linear | Conv1D):
        found = "has no such layer" if layer is None else f"has a {type(layer).__name__} there"
        raise AdapterRefused(
            f"the adapter changes the linear layer `{name}`, but the base {found}; it was trained "
            "for a model of another kind"
        )
    shape = tuple(layer.weight.shape)
    wide, narrow = shape if isinstance(layer, torch.nn.Linear) else shape[::-1]
    rank = down.shape[0] if down.ndim == 2 else 0
    if not rank or tuple(down.shape) != (rank, narrow) or tuple(up.shape) != (wide, rank):
        raise AdapterRefused(
            f"the adapter's matrices for `{name}` are {list(down.shape)} and {list(up.shape)}; "
            f"this base takes [rank, {narrow}] and [{wide}, rank]: it was trained for a model of "
            "another size"
        )


def _update(
    name: str,
    down: torch.Tensor,
    up: torch.Tensor,
    config: Mapping[str, Any],
    weights: Weights,
) -> Update:
    rank = _setting(config, "rank_pattern", "r", name)
    if rank != down.shape[0]:
        raise AdapterRefused(
            f"the adapter's matrices for `{name}` have rank {down.shape[0]}, but {CONFIG} says "
            f"{rank:g}"
        )
    alpha = _setting(config, "alpha_pattern", "lora_alpha", name)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    with memory_errors():
        # Memory of their own, as alignment may change the last digits of a sum.
        place = {"dtype": weights.model.dtype, "device": weights.device}
        lower = down.to(**place).clone(memory_format=torch.contiguous_format)
        upper = (up.float() * scale).t().to(**place).clone(memory_format=torch.contiguous_format)
        if not bool(torch.isfinite(lower).all() and torch.isfinite(upper).all()):
            raise AdapterRefused(
                f"the adapter's matrices for `{name}` hold values that are no numbers (NaN or "
                "infinite): its training has diverged"
            )
    return Update(lower, upper)


def _setting(config: Mapping[str, Any], pattern: str, plain: str, name: str) -> float:
    """A number of the configuration: of the first pattern that fits the layer, or the plain one.

    PEFT takes any regular expression; here a pattern is the end of a layer's name, as one
    from a stranger could keep an engine busy for years.
    """
    found = config.get(plain)
    for part, value in reversed(_object_in(config, pattern).items()):
        if not _NAME.fullmatch(part):
            raise AdapterRefused(
                f"the adapter's `{pattern}` has {part!r:.60}; only ends of layer names are "
                "supported here, as `self_attn.q_proj`"
            )
        if name == part or name.endswith(f".{part}"):
            found = value
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise AdapterRefused(f"the adapter's `{plain}` is {found!r:.40}, not a number above 0")
    return float(found)


def _object_in(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise AdapterRefused(f"the adapter's `{key}` is {found!r:.40}, not an object")
    return found
