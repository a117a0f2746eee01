"""LoRA adapters for tests, made by PEFT: random in both matrices, so that they change much."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from flowmesh.base.digest import canonical


def make_adapter(
    base: Path,
    path: Path,
    *,
    seed: int = 0,
    size: float = 0.3,
    origin: str | None = None,
    **config: Any,
) -> Path:
    """Write an adapter of the model in `base` into the folder `path`.

    Args:
        size: standard deviation of both matrices.
        origin: digest of the base's tree, to be named in `flowmesh.json`.
        config: of `LoraConfig`; rank 4 in all linear layers unless it says otherwise.
    """
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | config
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", **settings),
    )
    rng = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = size * torch.randn(value.shape, generator=rng)
    model.save_pretrained(path, save_embedding_layers=False)
    (path / "README.md").unlink()
    written = path / "adapter_config.json"
    plain = json.loads(written.read_text()) | {"base_model_name_or_path": ""}
    written.write_bytes(canonical(plain))
    if origin is not None:
        (path / "flowmesh.json").write_bytes(canonical({"base": origin}))
    return path
