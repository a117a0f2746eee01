"""`merge_adapter` and `export`: whole models, as other programs read them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowmesh.operators.adapters import ExportParams, MergeAdapterParams
from flowmesh.runtimes.base import Done, Failed, Outcome, Work
from flowmesh.runtimes.merging import open_merging
from flowmesh.spec.action import Action, Artifact
from support import plain_text
from support.blobs import DirBlobs
from support.rollouts import make_rollouts, updated
from support.tiny_model import make_tiny

CARRIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> DirBlobs:
    return DirBlobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def model(blobs: DirBlobs, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "model")
    return Artifact("tree", str(blobs.put_tree(folder)))


@pytest.fixture(scope="module")
def trained(blobs: DirBlobs, model: Artifact) -> Mapping[str, Artifact]:
    """An adapter that changes what the model says, and one of a value model."""
    ports = {"rollouts": blobs.put_table(make_rollouts()), "model": model}
    return updated(blobs, ports, method="ppo", num_iterations=4)


def run(blobs: DirBlobs, op: str, ports: dict[str, Artifact], **params: Any) -> Outcome:
    kind = MergeAdapterParams if op == "merge_adapter" else ExportParams
    document = kind.model_validate(params).model_dump(mode="json")
    action = Action(op, 1, document, dict(ports))
    [outcome] = open_merging(blobs, action.inputs, "").run([Work("t", action)])
    return outcome


def made(blobs: DirBlobs, op: str, ports: dict[str, Artifact], **params: Any) -> Artifact:
    outcome = run(blobs, op, ports, **params)
    assert isinstance(outcome, Done), outcome
    return outcome.result.outputs["model"]


def refusal(blobs: DirBlobs, ports: dict[str, Artifact]) -> str:
    outcome = run(blobs, "merge_adapter", ports)
    assert isinstance(outcome, Failed) and outcome.kind == "input", outcome
    return outcome.message


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def test_the_merged_model_says_what_base_and_adapter_say(
    blobs: DirBlobs, model: Artifact, trained: Mapping[str, Artifact], tmp_path: Path
) -> None:
    """To plain transformers and peft; `export` gives the same."""
    ports = {"model": model, "adapter": trained["adapter"]}
    places = [made(blobs, op, ports) for op in ("merge_adapter", "export")]
    base, adapter, *merges = (
        str(blobs.tree(one.address)) for one in (model, trained["adapter"], *places)
    )
    plain_text.tell(tmp_path, base, adapter, merges)
    adapted, *merged = json.loads((tmp_path / "texts.json").read_text())
    assert merged == [adapted, adapted]
    wanted, *found = (np.load(tmp_path / f"logits_{number}.npy") for number in range(3))
    for logits in found:
        assert np.abs(logits - wanted).max() < 1e-4


def test_equal_merges_are_equal_to_the_byte(
    blobs: DirBlobs, model: Artifact, trained: Mapping[str, Artifact]
) -> None:
    ports = {"model": model, "adapter": trained["adapter"]}
    found = made(blobs, "merge_adapter", ports)
    assert found == made(blobs, "merge_adapter", ports)
    before, after = blobs.tree(model.address), blobs.tree(found.address)
    assert all((after / name).read_bytes() == (before / name).read_bytes() for name in CARRIED)
    generation = "generation_config.json"
    assert (after / generation).read_bytes() == (before / generation).read_bytes()
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved and all(".self_attn." in name or ".mlp." in name for name in moved)


def test_an_adapter_of_a_value_model_gives_a_value_model(
    blobs: DirBlobs, model: Artifact, trained: Mapping[str, Artifact]
) -> None:
    found = made(blobs, "merge_adapter", {"model": model, "adapter": trained["value"]})
    folder = blobs.tree(found.address)
    assert "score.weight" in tensors(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    again = made(blobs, "export", {"model": found})
    assert tensors(blobs.tree(again.address)).keys() == tensors(folder).keys()


def test_an_export_can_be_cut_into_files(blobs: DirBlobs, model: Artifact) -> None:
    found = made(blobs, "export", {"model": model}, max_shard_size="200KB")
    folder = blobs.tree(found.address)
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("*.safetensors"))) > 1
    old, new = tensors(blobs.tree(model.address)), tensors(folder)
    assert all(torch.equal(old[name], new[name]) for name in old) and old.keys() == new.keys()


def test_the_numeric_format_is_the_bases_or_the_one_asked_for(
    blobs: DirBlobs, model: Artifact
) -> None:
    half = made(blobs, "export", {"model": model}, dtype="bfloat16")
    kept = made(blobs, "export", {"model": half})
    back = made(blobs, "export", {"model": half}, dtype="float32")
    formats = [
        {str(one.dtype) for one in tensors(blobs.tree(artifact.address)).values()}
        for artifact in (model, half, kept, back)
    ]
    assert formats == [{"torch.float32"}, {"torch.bfloat16"}, {"torch.bfloat16"}, {"torch.float32"}]
    config = json.loads((blobs.tree(half.address) / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_what_can_not_be_merged_is_refused(
    blobs: DirBlobs, model: Artifact, trained: Mapping[str, Artifact], tmp_path: Path
) -> None:
    other = Artifact("tree", str(blobs.put_tree(make_tiny(tmp_path / "other", seed=1))))
    adapter = trained["adapter"]
    message = refusal(blobs, {"model": other, "adapter": adapter})
    assert "trained for another base model" in message
    assert "this is not an adapter" in refusal(blobs, {"model": model, "adapter": model})
    outcome = run(blobs, "export", {"model": adapter})
    assert isinstance(outcome, Failed) and "not a model directory" in outcome.message
    for name, content, words in (
        ("adapter_model.safetensors", b"no tensors", "can not be loaded"),
        ("adapter_config.json", b"{", "is no JSON"),
        ("adapter_config.json", b'{"peft_type": "IA3"}', "only LORA is supported"),
    ):
        bad = damaged(blobs, adapter, tmp_path / words.replace(" ", "_"), name, content)
        assert words in refusal(blobs, {"model": model, "adapter": bad})


def test_an_adapter_that_holds_no_numbers_is_refused(
    blobs: DirBlobs, model: Artifact, trained: Mapping[str, Artifact], tmp_path: Path
) -> None:
    weights = tensors(blobs.tree(trained["adapter"].address))
    first = min(name for name in weights if "lora_B" in name)
    weights[first][0, 0] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_file(weights, path)
    name = "adapter_model.safetensors"
    bad = damaged(blobs, trained["adapter"], tmp_path / "nan", name, path.read_bytes())
    assert "can not be merged" in refusal(blobs, {"model": model, "adapter": bad})


def test_a_model_that_lacks_weights_is_not_written_out(blobs: DirBlobs, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model")
    weights = tensors(folder)
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = run(blobs, "export", {"model": Artifact("tree", str(blobs.put_tree(folder)))})
    assert isinstance(outcome, Failed) and "lack model.norm.weight" in outcome.message


def damaged(
    blobs: DirBlobs, adapter: Artifact, folder: Path, name: str, content: bytes
) -> Artifact:
    """A copy of an adapter in which one file is another."""
    folder.mkdir()
    for path in blobs.tree(adapter.address).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(content)
    return Artifact("tree", str(blobs.put_tree(folder)))
