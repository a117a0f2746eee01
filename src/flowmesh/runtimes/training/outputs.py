"""The artifacts of a training: their bytes follow from the weights, never from worker or time."""

import json
import math
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from flowmesh.base.digest import canonical
from flowmesh.operators.train import SUMMARY, TRL_METRICS, metrics_columns
from flowmesh.runtimes.adapters import CONFIG, ORIGIN, TENSORS
from flowmesh.runtimes.rows import Row
from flowmesh.runtimes.training.watch import JOULES, SECONDS, TOKENS, evaluated, trained

#: Of a model's directory: what is written anew, and what is never carried over.
_OWN = ("*.safetensors", "*.safetensors.index.json", "config.json")
_LEFT_OUT = (*_OWN, "*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "*.gguf", "README.md")
#: TRL's name for the share of a step's groups in which all rewards are equal.
_ALL_EQUAL = "frac_reward_zero_std"
_VERSIONS = ("torch", "transformers", "trl", "peft")


def write_adapter(model: PeftModel, base: str, folder: Path) -> None:
    """PEFT's layout, and the digest of the base that it belongs to."""
    folder.mkdir()
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    _save_weights(weights, folder / TENSORS)
    config = model.peft_config["default"].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": ""}
    # PEFT holds names in sets, whose order varies from process to process. Of patterns the
    # first that fits a layer counts, so theirs is kept.
    plain = {key: _plain(config[key]) for key in sorted(config)}
    text = json.dumps(plain, indent=2)
    (folder / CONFIG).write_text(text + "\n")
    (folder / ORIGIN).write_bytes(canonical({"base": base}))


def write_model(model: Any, base: Path, folder: Path) -> None:
    """Hugging Face's layout: tokenizer, template and generation config as the base has them."""
    folder.mkdir()
    for path in sorted(base.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in _LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    config["architectures"] = [type(model).__name__]  # of the base, it may be another
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    weights = {name: one for name, one in model.state_dict().items() if name not in tied}
    _save_weights(weights, folder / "model.safetensors")


def _save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    plain = {name: one.detach().cpu().contiguous() for name, one in weights.items()}
    save_file(plain, path, metadata={"format": "pt"})


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    return str(getattr(value, "value", value))


def metrics_rows(op: str, log: list[dict[str, Any]], every: int) -> list[Row]:
    """One row for each `every` steps: means over them, and the last evaluation in them."""
    steps = trained(log)
    measured = {entry["step"]: entry["eval_loss"] for entry in evaluated(log)}
    rows = []
    for start in range(0, len(steps), every):
        window = steps[start : start + every]
        last = window[-1]
        inside = [measured[entry["step"]] for entry in window if entry["step"] in measured]
        row: Row = dict.fromkeys(metrics_columns(op))
        row |= {
            "step": last["step"],
            "epoch": last["epoch"],
            "loss": _mean(window, "loss"),
            "learning_rate": last["learning_rate"],
            "grad_norm": _mean(window, "grad_norm"),
            "eval_loss": inside[-1] if inside else None,
            "tokens": last[TOKENS],
            "seconds": round(last[SECONDS], 3),
            "joules": last.get(JOULES),
        }
        row |= {column: _mean(window, key) for key, column in TRL_METRICS[op].items()}
        rows.append(row)
    return rows


def _mean(entries: list[dict[str, Any]], key: str) -> float | None:
    values = _finite(entries, key)
    return fmean(values) if values else None


def _finite(entries: list[dict[str, Any]], key: str) -> list[float]:
    """TRL logs null or NaN for what a step had nothing of, as the reward where none was given."""
    values = [entry[key] for entry in entries if entry.get(key) is not None]
    return [value for value in values if math.isfinite(value)]


def lessons(log: list[dict[str, Any]], rows: Sequence[Row]) -> list[str]:
    """What to tell of a training whose rows or rewards had nothing to teach."""
    labels = {row["label"] for row in rows if "label" in row}
    if len(labels) == 1:
        only = "true" if labels.pop() else "false"
        return [f"every `label` is {only}: nothing in the rows tells good answers from bad ones"]
    same = [entry[_ALL_EQUAL] for entry in trained(log) if entry.get(_ALL_EQUAL) is not None]
    if same and min(same) == 1:
        return [
            "the rewards of a group never differed, so nothing was learnt from them: look at what"
            " the reward gives, or draw more or more varied completions (`num_generations`,"
            " `temperature`)"
        ]
    return []


def summary_row(log: list[dict[str, Any]], facts: Row) -> Row:
    """The row of `summary`: `facts`, and what follows from the log."""
    losses = [entry["loss"] for entry in trained(log)]
    tests = [entry["eval_loss"] for entry in evaluated(log)]
    rewards = _finite(trained(log), "reward")
    last = trained(log)[-1]
    row: Row = dict.fromkeys(SUMMARY)
    for name, values in (("train_loss", losses), ("eval_loss", tests)):
        if values:
            row |= {
                f"{name}_first": values[0],
                f"{name}_last": values[-1],
                f"{name}_best": min(values),
            }
    if rewards:
        row |= {"reward_first": rewards[0], "reward_last": rewards[-1]}
    row |= {
        "steps": last["step"],
        "epochs": last["epoch"],
        "tokens": last[TOKENS],
        "seconds": round(last[SECONDS], 3),
        "joules": last.get(JOULES),
        "versions": {name: version(name) for name in _VERSIONS},
    }
    row |= facts
    assert tuple(row) == SUMMARY, set(row) ^ set(SUMMARY)
    return row
