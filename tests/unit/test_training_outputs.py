"""What a training leaves: artifacts for everybody, the same bytes wherever they were made."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmesh.base.digest import Digest, canonical
from flowmesh.runtimes.base import Done, Work
from flowmesh.runtimes.merging import open_merging
from flowmesh.runtimes.training.energy import Meter
from flowmesh.spec.action import Action, Artifact
from support.training import Bench, Watcher, chat, rows_for, weights_of

_PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
said = []
for base, adapter in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    given = dict(tokenizer(sys.argv[2], return_tensors="pt"))
    said.append(model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist())
print(json.dumps(said))
"""
_FRESH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.training import Bench, weights_of
bench = Bench(Path(sys.argv[2]))
print(weights_of(bench.done(bench.action(sys.argv[3]))))
"""
_TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("bench"))


def _written(jobs: list[tuple[Path, Path | None]], prompt: str) -> list[list[int]]:
    """What plain transformers and peft write, in a process that has nothing of ours."""
    plain = json.dumps([[str(base), adapter and str(adapter)] for base, adapter in jobs])
    command = [sys.executable, "-c", _PLAIN, plain, prompt]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tokens: list[list[int]] = json.loads(said)
    return tokens


def _ours(base: Path, adapter: Path | None, prompt: str) -> list[int]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    ids = AutoTokenizer.from_pretrained(str(base))(prompt, return_tensors="pt")["input_ids"]
    for _ in range(12):
        last = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, last.reshape(1, 1)], 1)
        if last == 2:
            break
    tokens: list[int] = ids[0].tolist()
    return tokens


@pytest.mark.slow
def test_artifacts_load_without_flowmesh(bench: Bench) -> None:
    base = bench.blobs.tree(bench.model.address)
    lora = bench.done(bench.action("sft", max_steps=8, learning_rate=0.05))
    full = bench.done(bench.action("sft", max_steps=8, lora=None))
    adapter = bench.blobs.tree(lora["adapter"].address)
    model = bench.blobs.tree(full["model"].address)
    jobs = [(base, None), (base, adapter), (model, None)]
    ours = [_ours(*job, "What is 3?") for job in jobs]
    assert _written(jobs, "What is 3?") == ours
    assert ours[0] != ours[1] != ours[2] != ours[0]


def test_what_an_adapter_holds(bench: Bench) -> None:
    tree = bench.blobs.tree(bench.done(bench.action("sft", max_steps=1))["adapter"].address)
    assert sorted(path.name for path in tree.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "flowmesh.json",
    ]  # fmt: skip
    assert (tree / "flowmesh.json").read_bytes() == canonical({"base": bench.model.digest})
    config = json.loads((tree / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ""
    assert config["target_modules"] == sorted(config["target_modules"])


def test_what_a_model_holds(bench: Bench) -> None:
    base = bench.blobs.tree(bench.model.address)
    outputs = bench.done(bench.action("sft", max_steps=1, lora=None))
    tree = bench.blobs.tree(outputs["model"].address)
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tree / name).read_bytes() == (base / name).read_bytes()
    assert {path.suffix for path in tree.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert str(bench.root) not in (tree / "config.json").read_text()


def test_a_reward_model_scores_what_was_chosen_higher(bench: Bench) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    outputs = bench.done(bench.action("reward_model", max_steps=20, learning_rate=0.01))
    base, tree = bench.blobs.tree(bench.model.address), bench.blobs.tree(
        outputs["adapter"].address
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model = AutoModelForSequenceClassification.from_pretrained(
        str(base), num_labels=1, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(model, str(tree)).eval()
    row = rows_for("reward_model")[0]

    def score(answer: str) -> float:
        ids = tokenizer.apply_chat_template(row["prompt"] + row[answer], return_dict=True)
        return float(model(input_ids=torch.tensor([ids["input_ids"]])).logits[0, 0])

    assert score("chosen") > score("rejected") + 1


def test_one_after_another_is_as_each_in_a_fresh_process(bench: Bench, tmp_path: Path) -> None:
    """Nothing of a training is left for the next: draws, formats, or settings of libraries."""
    bench.done(bench.action("sft", dtype="bfloat16", seed=3))
    torch.manual_seed(99)
    here = [weights_of(bench.done(bench.action(op))) for op in ("reward_model", "grpo")]
    command = [sys.executable, "-c", _FRESH, str(_TESTS), str(tmp_path), "grpo"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == here[-1]


def test_a_training_leaves_the_process_as_it_was(bench: Bench) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    bench.done(bench.action("sft", max_steps=1, seed=9))
    assert torch.equal(torch.rand(2), expected)
    assert torch.are_deterministic_algorithms_enabled()


def test_nothing_is_written_outside_of_the_scratch(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    bench.done(bench.action("grpo", max_steps=1))
    assert list(tmp_path.iterdir()) == []
    assert list((bench.root / "store" / "scratch").iterdir()) == []


def test_the_seed_changes_the_weights_and_only_it(bench: Bench) -> None:
    plain = bench.done(bench.action("sft"))
    again = bench.done(bench.action("sft", logging_steps=1))
    other = bench.done(bench.action("sft", seed=1))
    assert weights_of(plain) == weights_of(again) != weights_of(other)
    assert plain["loss_curve"] == again["loss_curve"]


def test_metrics_and_summary(bench: Bench) -> None:
    held = bench.blobs.put_table(rows_for("dpo", 4))
    action = bench.action("dpo", ports={"eval_data": held}, eval_steps=2, max_steps=5)
    outcome = bench.outcome(action)
    assert isinstance(outcome, Done), outcome
    outputs = outcome.result.outputs
    rows = bench.blobs.rows(outputs["metrics"])
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert all(row["eval_loss"] is not None for row in rows)
    assert rows[0]["tokens"] < rows[1]["tokens"]
    assert rows[0]["accuracy"] is not None
    summary = bench.summary(outputs)
    assert summary["operator"] == "dpo"
    assert (summary["steps"], summary["rows"], summary["eval_rows"]) == (5, 12, 4)
    assert summary["eval_loss_first"] == rows[0]["eval_loss"]
    assert summary["eval_loss_last"] == rows[2]["eval_loss"]
    assert 0 < summary["trainable_parameters"] < summary["total_parameters"]
    assert summary["versions"]["trl"]
    assert outcome.result.usage.prompt_tokens == summary["tokens"] == rows[2]["tokens"]
    picture = bench.blobs.path(Digest.parse(outputs["loss_curve"].digest)).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert b"Software" not in picture


def test_rewards_are_learnt_from_columns_and_told(bench: Bench) -> None:
    source = (
        "def brief(prompts, completions, want, **more):\n"
        "    return [float(len(text) > 5) if want == ['x', 1, None] else -1.0\n"
        "            for text, want in zip(completions, want, strict=True)]\n"
    )
    rows = [{"prompt": f"a {n}", "want": ["x", 1, None]} for n in range(8)]
    ports = {"file": bench.blobs.put_file(source)}
    outputs = bench.done(bench.action("rloo", rows, ports=ports, eval_split=0.25))
    summary = bench.summary(outputs)
    assert summary["reward_first"] >= 0
    assert summary["reward_last"] is not None


def test_a_function_may_leave_completions_to_others(bench: Bench) -> None:
    """A step none of whose groups has two rewards teaches nothing, and is told as such."""
    source = "def brief(completions, **more): return [1.0, None, None, None]"
    outputs = bench.done(bench.action("grpo", ports={"file": bench.blobs.put_file(source)}))
    assert [row["reward"] for row in bench.blobs.rows(outputs["metrics"])] == [1.0, 1.0]
    assert bench.summary(outputs)["reward_last"] == 1.0


def test_rewards_of_a_model_and_of_a_function(bench: Bench) -> None:
    scorer = bench.done(bench.action("reward_model", max_steps=2))["adapter"]
    whole = bench.done(bench.action("reward_model", max_steps=2, lora=None))["model"]
    for ports in ({"reward_adapter": scorer}, {"reward_model": whole}):
        both = bench.action("grpo", ports=ports, max_steps=1, reward_weights=[0.5, 2])
        assert bench.summary(bench.done(both))["reward_first"] is not None


@pytest.mark.parametrize(
    ("op", "rows"),
    [
        ("sft", [{"text": f"the river {n}"} for n in range(4)]),
        ("sft", [{"messages": chat("user", "a") + chat("assistant", "b"), "id": 1}] * 4),
        ("sft", [{"prompt": chat("user", "a"), "completion": chat("assistant", "b")}] * 4),
        ("dpo", [{"chosen": "the river is", "rejected": "the river at"}] * 4),
        ("dpo", [{"chosen": chat("user", "a") + chat("assistant", "b"),
                  "rejected": chat("user", "a") + chat("assistant", "c")}] * 4),
        ("reward_model", [{"chosen": "the river is", "rejected": "the river at"}] * 4),
        ("kto", [{"prompt": chat("user", str(n)), "completion": chat("assistant", f"b{n}"),
                  "label": n > 1} for n in range(4)]),
    ],
)  # fmt: skip
def test_every_format(bench: Bench, op: str, rows: list[dict[str, Any]]) -> None:
    assert bench.summary(bench.done(bench.action(op, rows, max_steps=1)))["rows"] == 4


def test_packed_rows_do_not_see_each_other(bench: Bench) -> None:
    rows = [{"text": f"the river {n} rises in the hills"} for n in range(8)]
    common: dict[str, Any] = {"lora": None, "max_steps": 1, "logging_steps": 1}
    plain = bench.action("sft", rows, per_device_train_batch_size=8, **common)
    packed = bench.action(
        "sft", rows, per_device_train_batch_size=1, packing=True, max_length=512, **common
    )
    (first,), (second,) = (bench.blobs.rows(bench.done(one)["metrics"]) for one in (plain, packed))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_joules_are_added_over_packages_and_wraps(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / name / "energy_uj").write_text("9000000\n")
    meter = Meter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("9500000\n")
    assert meter.joules() == pytest.approx(2.5)
    assert meter.joules() == pytest.approx(2.5)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
    assert Meter(tmp_path / "none").joules() is None


def test_the_engine_keeps_nothing(bench: Bench) -> None:
    """Two tasks of one engine, one of them bad: each gets its own outcome."""
    from flowmesh.runtimes.base import Failed, Work
    from flowmesh.runtimes.training.engine import open_trainer

    good, bad = bench.action("sft", max_steps=1), bench.action("sft", [])
    engine = open_trainer(bench.blobs, good.inputs, good.engine)
    first, second = engine.run([Work("bad", bad), Work("good", good)])
    assert isinstance(first, Failed)
    assert isinstance(second, Done)
    assert isinstance(second.result.outputs["adapter"], Artifact)


def test_the_reference_is_where_it_started_or_the_base(bench: Bench) -> None:
    """Of a policy that equals its reference, the loss of DPO is log 2."""
    start = bench.done(bench.action("sft", max_steps=8, learning_rate=0.05))["adapter"]
    losses = {}
    for reference in ("start", "base"):
        action = bench.action("dpo", ports={"adapter": start}, reference=reference)
        losses[reference] = bench.summary(bench.done(action))["train_loss_first"]
    assert losses["start"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses["base"] - math.log(2)) > 0.01


@pytest.mark.parametrize("op", ["sft", "dpo", "grpo"])
def test_the_weights_are_those_of_plain_trl(bench: Bench, tmp_path: Path, op: str) -> None:
    """Over two epochs: what we put around its trainers changes nothing."""
    import datasets
    import trl
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, base = rows_for(op, 6), str(bench.blobs.tree(bench.model.address))
    outputs = bench.done(bench.action(op, rows, max_steps=None, num_train_epochs=2))
    ours = load_file(bench.blobs.tree(outputs["adapter"].address) / "adapter_model.safetensors")
    common = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 4, "num_train_epochs": 2,
        "learning_rate": 1e-3, "bf16": False, "use_cpu": True, "seed": 0, "report_to": [],
        "gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True,
        "optim": "adamw_torch",
    }  # fmt: skip
    more: dict[str, Any] = {}
    if op == "grpo":
        common |= {"num_generations": 2, "max_completion_length": 8}
        more["reward_funcs"] = lambda completions, **rest: [
            sum(letter in "eE" for letter in text) / 10 for text in completions
        ]
    names = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}
    trainer = getattr(trl, f"{names[op]}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=getattr(trl, f"{names[op]}Config")(**common),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        **more,
    )
    trainer.train()
    theirs = get_peft_model_state_dict(trainer.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_that_scores_can_be_merged(bench: Bench) -> None:
    """What it teaches as `reward_model` is what it teaches as `reward_adapter`, to the byte."""
    scores = bench.done(bench.action("reward_model", max_steps=1))["adapter"]
    params = {"dtype": "base"}
    ports: dict[str, Any] = {"model": bench.model, "adapter": scores}
    merging = Work("task", Action("merge_adapter", 1, params, ports, ""), None, Watcher())
    (outcome,) = open_merging(bench.blobs, ports, "").run([merging])
    assert isinstance(outcome, Done), outcome
    whole = outcome.result.outputs["model"]
    alone: dict[str, Any] = {"function": None, "max_steps": 1, "num_generations": 2}
    alone |= {"max_completion_length": 8}
    found = [
        bench.done(bench.action("grpo", ports={port: tree}, **alone))
        for port, tree in (("reward_adapter", scores), ("reward_model", whole))
    ]
    assert found[0]["adapter"] == found[1]["adapter"]
