"""Every workflow of `examples/` runs to its end on a tiny model, with few rows and steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowmesh.sdk.runs import Output
from support.fabric import Fabric
from support.training_runs import EXAMPLES, settled, table

pytestmark = pytest.mark.model

#: What makes an example small, where it has such an input.
SMALL = {"epochs": 1, "steps": 1, "pairs": 8, "messages": 4, "samples": 2, "max_tokens": 8}
#: So many rows of each table.
ROWS = {"prompts": 4, "tickets": 16, "held_out": 4}


def tables(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The first rows of the tables that an example names."""
    inputs = document["inputs"].items()
    return {name: table(one["file"], ROWS[name]) for name, one in inputs if "file" in one}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_runs(trainers: Fabric, tiny_model: Path, tmp_path: Path, path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    document["models"] = {name: {"path": str(tiny_model)} for name in document["models"]}
    run = trainers.client(f"examples-{path.stem}").submit(
        document,
        inputs=tables(document),
        parameters={name: value for name, value in SMALL.items() if name in document["inputs"]},
    )
    settled(run)
    assert list(run.outputs) == list(document["outputs"])
    for output in run.outputs.values():
        check(output, tiny_model, tmp_path)


def check(output: Output, model: Path, folder: Path) -> None:
    place = output.path(folder)
    match output.artifact.kind:
        case "table":
            assert output.rows()
        case "file":
            assert place.suffix == ".png"
        case _:
            check_adapter(place, model)


def check_adapter(folder: Path, model: Path) -> None:
    """PEFT loads it, and it changes what the model says."""
    import peft
    import torch
    import transformers

    config = json.loads((folder / "adapter_config.json").read_text())
    if config["task_type"] == "SEQ_CLS":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    else:
        base = transformers.AutoModelForCausalLM.from_pretrained(model)
    adapted = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        tuned = adapted(tokens).logits
        with adapted.disable_adapter():
            assert not torch.equal(tuned, adapted(tokens).logits)
