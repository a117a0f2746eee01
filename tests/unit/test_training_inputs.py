"""What a training refuses before it starts, and what it tells of rows that it cuts."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_model import make_tiny
from support.training import Bench, chat, rows_for

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    ("op", "rows", "message"),
    [
        ("sft", [], "`data` has no rows; a training needs some to learn from"),
        ("sft", [{"text": "a"}], "`data` has one row; a training needs at least 2"),
        ("sft", [{"txt": "a"}] * 2, "there is no column 'prompt'; known: txt"),
        ("dpo", [{"chosen": "a", "rejectd": "b"}] * 2, "no column 'rejected'; did you mean"),
        ("sft", [{"text": "a"}, {"text": 3}], "`data`, row 2, column `text`: expected text, found"
         " a number"),
        ("sft", [{"text": "a"}, {"text": None}], "row 2, column `text`: expected text, found null"),
        ("sft", [{"text": "a"}, {"text": ""}], "row 2, column `text`: the text is empty"),
        ("sft", [{"messages": chat("user", "a")}, {"messages": "b"}],
         "row 2, column `messages`: expected a list of messages, found text"),
        ("sft", [{"messages": "hi"}] * 2,
         "`data`, row 1, column `messages`: expected a list of messages, found text"),
        ("sft", [{"messages": None}] * 2, "row 1, column `messages`: expected a list of messages"),
        ("sft", [{"text": chat("user", "a")}] * 2, "row 1, column `text`: expected text, found a"),
        ("sft", [{"messages": [{"role": "user"}]}] * 2,
         "message 1: expected a text under `content`, found no such key"),
        ("sft", [{"messages": [{"role": "user", "content": "a", "name": "b"}]}] * 2,
         "message 1: has the key 'name'"),
        ("sft", [{"messages": ["a"]}] * 2, "message 1: expected an object with role and content"),
        ("sft", [{"prompt": "a", "completion": chat("assistant", "b")}] * 2,
         "row 1, column `completion`: expected text, found a list"),
        ("kto", [{"prompt": "a", "completion": "b", "label": 1}] * 2,
         "row 1, column `label`: expected true or false, found a number"),
        ("dpo", [PAIR, {**PAIR, "rejected": "b"}, PAIR, {**PAIR, "chosen": "c"}],
         "2 of 4 pairs have equal `chosen` and `rejected`, the first in row 2"),
    ],
)  # fmt: skip
def test_refused_data(bench: Bench, op: str, rows: list[dict[str, Any]], message: str) -> None:
    assert message in bench.refused(bench.action(op, rows))


def test_an_empty_table_with_columns(bench: Bench) -> None:
    action = bench.action("sft", [])
    assert "`data` has no rows" in bench.refused(action)


def test_a_split_needs_rows_on_both_sides(bench: Bench) -> None:
    message = bench.refused(bench.action("sft", rows_for("sft", 3), eval_split=0.1))
    assert "`eval_split` 0.1 holds out 0 of 3 rows" in message


def test_messages_without_a_chat_template(bench: Bench, tmp_path: Path) -> None:
    plain = bench.tree(make_tiny(tmp_path / "plain", seed=1, chat=False))
    message = bench.refused(bench.action("dpo", ports={"model": plain}))
    assert "`data` holds messages, and the model has no chat template" in message
    assert "give plain texts" in message


def test_prompts_that_leave_nothing_of_the_completion(bench: Bench) -> None:
    rows = [*rows_for("sft", 3), {"prompt": "river " * 40, "completion": "b"}]
    message = bench.refused(bench.action("sft", rows, max_length=32))
    assert "`data`, row 4: the prompt has" in message
    assert "`max_length` is 32, so nothing is left of the completion" in message


def test_rows_that_are_cut_are_counted(bench: Bench) -> None:
    rows = [*rows_for("sft", 6), {"prompt": "a", "completion": "river " * 700}]
    summary = bench.summary(bench.done(bench.action("sft", rows, max_steps=1)))
    assert summary["truncated_rows"] == 1
    assert summary["max_length"] == 512  # the model's context
    assert summary["rows"] == 7


def test_long_rows_of_a_reward_model_are_left_out(bench: Bench) -> None:
    rows = rows_for("reward_model", 6)
    rows[2]["chosen"] = chat("assistant", "river " * 100)
    action = bench.action("reward_model", rows, max_steps=1, max_length=60)
    summary = bench.summary(bench.done(action))
    assert (summary["rows"], summary["dropped_rows"]) == (5, 1)
    assert "every row is longer" in bench.refused(bench.action("reward_model", rows, max_length=4))


def test_prompts_without_room_for_a_completion(bench: Bench) -> None:
    message = bench.refused(bench.action("grpo", max_completion_length=512))
    assert "exceed the model's context of 512" in message


def test_too_few_prompts_for_a_step(bench: Bench) -> None:
    message = bench.refused(
        bench.action("grpo", rows_for("grpo", 2), per_device_train_batch_size=16)
    )
    assert "`data` has 2 prompts, and a step takes 8" in message


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_prj"]}, "no module 'q_prj'; did you mean 'q_proj'?"),
        ({"target_modules": ["nothing"]}, "no module 'nothing'; known: down_proj, gate_proj"),
        ({"target_modules": "foo.*"}, "'foo.*' matches no module of the model; as a list, these"),
        ({"target_modules": ["lm_head"]}, "`lm_head` can not be adapted"),
        ({"modules_to_save": ["nothing"]}, "`lora.modules_to_save`: the model has no module"),
    ],
)
def test_modules_that_are_not_there(bench: Bench, lora: dict[str, Any], message: str) -> None:
    assert message in bench.refused(bench.action("sft", lora=lora))


@pytest.fixture(scope="module")
def adapter(bench: Bench) -> Path:
    outputs = bench.done(bench.action("sft", max_steps=1))
    return bench.blobs.tree(outputs["adapter"].address)


def _changed(bench: Bench, adapter: Path, folder: Path, **config: Any) -> Any:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return bench.tree(folder)


def test_an_adapter_of_another_base(bench: Bench, adapter: Path, tmp_path: Path) -> None:
    other = bench.tree(make_tiny(tmp_path / "other", seed=1))
    ports = {"adapter": bench.tree(adapter), "model": other}
    message = bench.refused(bench.action("sft", ports=ports))
    assert "`adapter`: this adapter was trained for another base model" in message
    for tree in (bench.model, other):
        assert f"tree {tree.digest.removeprefix('sha256:')[:12]}" in message


def test_an_adapter_of_other_shapes(bench: Bench, adapter: Path, tmp_path: Path) -> None:
    ports = {"adapter": _changed(bench, adapter, tmp_path / "a", r=4)}
    assert "the adapter does not fit the model" in bench.refused(bench.action("sft", ports=ports))


def test_an_adapter_of_other_modules(bench: Bench, adapter: Path, tmp_path: Path) -> None:
    for n, targets in enumerate((["q_proj"], ["nothing"])):
        changed = _changed(bench, adapter, tmp_path / str(n), target_modules=targets)
        message = bench.refused(bench.action("sft", ports={"adapter": changed}))
        assert "the adapter does not fit the model" in message


def test_no_adapter_at_all(bench: Bench) -> None:
    message = bench.refused(bench.action("sft", ports={"adapter": bench.model}))
    assert "`adapter`: this is not an adapter" in message


def test_an_adapter_that_a_user_brought_may_go_on(
    bench: Bench, adapter: Path, tmp_path: Path
) -> None:
    """PEFT's own trees do not name the tree of their base; whether they fit shows."""
    brought = shutil.copytree(adapter, tmp_path / "brought")
    (brought / "flowmesh.json").unlink()
    ports = {"adapter": bench.tree(brought)}
    ours = {"adapter": bench.tree(adapter)}
    found = [bench.done(bench.action("sft", ports=one, max_steps=1)) for one in (ports, ours)]
    assert found[0]["adapter"] == found[1]["adapter"]


def test_a_damaged_adapter(bench: Bench, adapter: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    (damaged / "adapter_config.json").write_text("{")
    message = bench.refused(bench.action("sft", ports={"adapter": bench.tree(damaged)}))
    assert "`adapter`: the adapter's adapter_config.json is no JSON" in message


def test_a_model_that_is_none(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x").write_text("x")
    message = bench.refused(bench.action("sft", ports={"model": bench.tree(tmp_path / "none")}))
    assert "this is not a model directory: it has no config.json" in message


@pytest.mark.parametrize(
    ("source", "params", "message"),
    [
        ("def brif(**x): return []", {}, "`file` has no function 'brief'; did you mean 'brif'?"),
        ("def brief(", {}, "the reward function: loading the file raised SyntaxError"),
        ("def brief(**x): return [1.0]", {}, "brief() returned 1 rewards for 4 completions"),
        ("def brief(**x):\n    raise ValueError('no')", {}, "brief() raised ValueError: no (line"),
        ("def brief(**x): return [None] * 4", {}, "brief() returned None for all 4 completions"),
        ("def brief(**x): return [None, float('nan')] * 2", {},
         "brief() returned nan for completion 2; expected a number or None"),
        ("def brief(**x): return ['good'] * 4", {},
         "brief() returned 'good' for completion 1; expected a number or None"),
        ("def brief(**x): return [[1]] * 4", {}, "brief() returned [1] for completion 1"),
        ("def brief(**x): return 0.5", {},
         "brief() returned 0.5; expected a list of rewards, one for each completion"),
        ("def brief(**x): return None", {}, "brief() returned None; expected a list of rewards"),
        ("def brief(**x): return 'x' * 99", {}, f"brief() returned '{'x' * 59}...; expected a"),
        ("def brief(): return []", {}, "raised TypeError: brief() got an unexpected keyword"),
        ("def brief(**x):\n    while True: pass", {"timeout_s": 0.5}, "killed at its limit of 0.5"),
        ("import os\ndef brief(**x): os._exit(3)", {}, "ended its process with status 3"),
    ],
)  # fmt: skip
def test_reward_functions_that_fail(
    bench: Bench, source: str, params: dict[str, Any], message: str
) -> None:
    action = bench.action("grpo", ports={"file": bench.blobs.put_file(source)}, **params)
    told = bench.refused(action)
    assert message in told
    if "(line" not in message:
        assert "of the file)" not in told or "SyntaxError" in told


def test_rewards_of_any_kind_of_number(bench: Bench) -> None:
    """Also from a generator, and under names that hide those of Python."""
    source = "def brief(**x): yield from (True, None, 2, 0.5)\nlist = float = enumerate = None"
    action = bench.action("grpo", ports={"file": bench.blobs.put_file(source)}, max_steps=1)
    assert bench.summary(bench.done(action))["reward_first"] == pytest.approx(3.5 / 3)


@pytest.mark.parametrize("op", ["grpo", "rloo"])
def test_rewards_that_teach_nothing_are_noted(bench: Bench, op: str) -> None:
    source = "def brief(completions, **x): return [1] * len(completions)"
    action = bench.action(op, ports={"file": bench.blobs.put_file(source)}, max_steps=1)
    (note,) = bench.summary(bench.done(action))["notes"]
    assert "the rewards of a group never differed, so nothing was learnt from them" in note


def test_rewards_that_teach_leave_no_note(bench: Bench) -> None:
    source = "def brief(completions, **x): return range(len(completions))"
    action = bench.action("grpo", ports={"file": bench.blobs.put_file(source)}, max_steps=1)
    assert bench.summary(bench.done(action))["notes"] == []


def test_labels_of_one_kind_are_noted(bench: Bench) -> None:
    rows = [{**row, "label": False} for row in rows_for("kto")]
    summary = bench.summary(bench.done(bench.action("kto", rows, max_steps=1)))
    (note,) = summary["notes"]
    assert note.startswith("every `label` is false: nothing in the rows tells")
    assert bench.summary(bench.done(bench.action("kto", max_steps=1)))["notes"] == []


def test_weights_that_are_no_numbers(bench: Bench, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(bench.blobs.tree(bench.model.address), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = bench.refused(bench.action("sft", ports={"model": bench.tree(folder)}))
    assert "the loss is nan at step 1 of 4, at a learning rate of 0.001" in message
    assert "no checkpoint was due before" in message


def test_models_and_adapters_for_something_else(bench: Bench, adapter: Path) -> None:
    made = bench.done(bench.action("reward_model", max_steps=1))
    whole = bench.done(bench.action("reward_model", max_steps=1, lora=None))["model"]
    writes, scores = bench.tree(adapter), made["adapter"]
    cases = [
        ("sft", {"adapter": scores}, "`adapter`: this adapter was trained for 'SEQ_CLS'"),
        (
            "reward_model",
            {"adapter": writes},
            "`adapter`: this adapter was trained for 'CAUSAL_LM'",
        ),
        ("grpo", {"reward_adapter": writes}, "`reward_adapter`: this adapter was trained for"),
        ("grpo", {"reward_model": bench.model}, "`reward_model` is a LlamaForCausalLM, which does"),
        ("sft", {"model": whole}, "`model` is a LlamaForSequenceClassification, which scores"),
    ]
    for op, ports, message in cases:
        assert message in bench.refused(bench.action(op, ports=ports))


def test_losses_that_the_data_does_not_allow(bench: Bench) -> None:
    texts = [{"text": f"the river {n}"} for n in range(4)]
    message = bench.refused(bench.action("sft", texts, completion_only_loss=True))
    assert "`completion_only_loss` needs `data` with `prompt` and `completion`" in message
    message = bench.refused(bench.action("sft", texts, assistant_only_loss=True))
    assert "`assistant_only_loss` is about chats, and `data` holds plain texts" in message
    lonely = [{"messages": chat("user", "a")}] * 4
    message = bench.refused(bench.action("sft", lonely, assistant_only_loss=True))
    assert "`data`, row 1, column `messages`: there is no message of the assistant" in message
    chats = [{"messages": chat("user", "a") + chat("assistant", "b")}] * 4
    message = bench.refused(bench.action("sft", chats, assistant_only_loss=True))
    assert "these settings can not be trained with" in message
    assert "template" in message
