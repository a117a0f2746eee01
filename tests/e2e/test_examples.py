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

#: Parameters of each example that make it small.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "quickstart": {"samples": 2, "max_tokens": 8},
    "sft-lora": {"epochs": 1},
    "dpo": {"pairs": 8},
    "reward-and-grpo": {"steps": 1, "epochs": 1, "max_tokens": 8},
    "rlaif-loop": {"messages": 4, "samples": 2, "epochs": 1, "max_tokens": 8},
}
#: So many rows of each table.
ROWS = {"prompts": 4, "tickets": 16, "held_out": 4}


def workflow(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return document


def tables(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The first rows of the tables that an example names."""
    inputs = document["inputs"].items()
    return {name: table(one["file"], ROWS[name]) for name, one in inputs if "file" in one}


def test_no_example_is_forgotten() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(trainers: Fabric, tiny_model: Path, tmp_path: Path, name: str) -> None:
    document = workflow(name)
    declared = list(document["outputs"])
    document["models"] = dict.fromkeys(document["models"], {"path": str(tiny_model)})
    client = trainers.client(f"examples-{name}")
    run = client.submit(document, inputs=tables(document), parameters=SMALL[name])
    settled(run)
    assert list(run.outputs) == declared
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
