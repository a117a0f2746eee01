"""Carries out `merge_adapter` and `export`: whole models, written for whoever reads them.

Weights are read in float32, whatever their files hold, changed there, and rounded once.
Tokenizer, chat template and generation config are carried over as files.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from flowmesh.operators.adapters import ExportParams, MergeAdapterParams
from flowmesh.runtimes.adapters import read_config
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.lora_trees import LANGUAGE_MODEL, SCORER, attach
from flowmesh.runtimes.training.refused import Refused
from flowmesh.runtimes.weights import (
    ModelRefused,
    check_complete,
    check_folder,
    memory_errors,
    refusing_model,
    set_up_torch,
)
from flowmesh.spec.action import Action, Artifact, Result

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: As they are called in the head of a safetensors file.
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_ONE_FILE = "1000GB"
#: Of a model's directory: what is written anew, or never carried over.
_LEFT_OUT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "README.md"),
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.py", "*.gguf"),
)


def open_merging(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "Merging":
    """An `OpenEngine`."""
    return Merging(blobs)


class Merging:
    """Runs tasks one by one; a model that was merged is nothing to keep warm."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                with memory_errors():
                    yield Done(work.task, self._result(work.action))
            except (ModelRefused, Refused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
            except MemoryError as error:
                yield Failed(work.task, FailureKind.MEMORY, str(error) or "out of memory")

    def _result(self, action: Action) -> Result:
        model, adapter = action.inputs["model"], action.inputs.get("adapter")
        assert isinstance(model, Artifact), model
        base = self._blobs.tree(model.address)
        if adapter is None:
            whole = load_whole(base)
        else:
            assert isinstance(adapter, Artifact), adapter
            whole = merged(base, self._blobs.tree(adapter.address), digest=model.digest)
        folder = self._blobs.scratch() / "model"
        dtype, shards = _wanted(action)
        wanted = stored_dtype(base) if dtype == "base" else _DTYPES[dtype]
        write_whole(whole.to(wanted), base, folder, max_shard_size=shards)
        tree = self._blobs.put_tree(folder)
        return Result(outputs={"model": Artifact("tree", str(tree))})


def _wanted(action: Action) -> tuple[str, str]:
    """Numeric format and size of shards."""
    if action.op == "merge_adapter":
        return MergeAdapterParams.model_validate(action.params).dtype, _ONE_FILE
    params = ExportParams.model_validate(action.params)
    return params.dtype, params.max_shard_size


def load_whole(folder: Path, *, scores: bool = False) -> Any:
    """The model of a directory in float32, of the kind that its config names.

    Args:
        scores: a model with a head of one number, whatever the config says.

    Raises ModelRefused, MemoryError.
    """
    set_up_torch()
    check_folder(folder)
    with refusing_model(), torch.random.fork_rng():
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        named = (config.architectures or [""])[0]
        auto, more = transformers.AutoModelForCausalLM, {}
        if scores or named.endswith("ForSequenceClassification"):
            auto = transformers.AutoModelForSequenceClassification
            more = {"num_labels": 1} if scores else {}
        model, found = auto.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **more,
        )
    # The adapter of a model that scores brings the layer that does.
    check_complete(model, found["missing_keys"], head="score" if scores else "")
    return model.eval()


def merged(base: Path, adapter: Path, *, digest: str) -> Any:
    """A model with an adapter's update in its weights; `digest` is the base's tree.

    Raises ModelRefused, Refused, MemoryError.
    """
    scores = read_config(adapter, digest).get("task_type") == SCORER
    task = SCORER if scores else LANGUAGE_MODEL
    whole = load_whole(base, scores=scores)
    adapted = attach(whole, adapter, base=digest, task=task, port="adapter")
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's word for weights that are not finite
        raise Refused(f"the adapter can not be merged: {error}") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The numeric format of most of the weights in a model's files; float32 for others."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with refusing_model(), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                numbers = int(torch.Size(part.get_shape()).numel())
                sizes[part.get_dtype()] = sizes.get(part.get_dtype(), 0) + numbers
    most = max(sizes, key=lambda kind: sizes[kind], default="F32")
    return _STORED.get(most, torch.float32)


def write_whole(model: Any, base: Path, folder: Path, *, max_shard_size: str) -> None:
    """Write a model's directory: its weights and config, and all else as the base has it."""
    folder.mkdir(parents=True)
    with memory_errors():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    config = json.loads((folder / "config.json").read_bytes())
    config.pop("_name_or_path", None)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(f"{text}\n")
    for path in sorted(base.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in _LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
