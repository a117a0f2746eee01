"""`reward`: as TRL and PEFT would compute it, alone and together, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from flowmesh.operators.catalog import catalog
from flowmesh.operators.scoring import REWARD, RewardParams
from flowmesh.runtimes.base import Done, Engine, Work
from flowmesh.runtimes.low_rank import Adapter, Update
from flowmesh.runtimes.reward_model import Classifier, Scoring, open_reward_model
from flowmesh.runtimes.training.engine import open_trainer
from flowmesh.spec.action import Action, Artifact
from flowmesh.spec.operator import ParamError
from support.blobs import DirBlobs
from support.scoring import ENGINE, refusal, row, run, task_of, tree, work
from support.tiny_model import CONTEXT_TOKENS, make_tiny

Ports = dict[str, Artifact]
ANSWER = {"prompt": "Why does bread rise?", "completion": "The water of the mills."}
CHAT = [
    {"role": "user", "content": ANSWER["prompt"]},
    {"role": "assistant", "content": ANSWER["completion"]},
]


def make_classifier(folder: Path, labels: Sequence[str] = ("LABEL_0",), **more: Any) -> Path:
    """The tiny model with a random layer that scores."""
    make_tiny(folder, **more)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int) -> Any:
    """A LoRA with a layer that scores, as PEFT saves it; the model that it belongs to."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        config = peft.LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"], task_type="SEQ_CLS"
        )
        adapted = peft.get_peft_model(model, config).eval()
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "score" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirBlobs:
    return DirBlobs(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def scalar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("model") / "scalar")


@pytest.fixture(scope="module")
def scalar(store: DirBlobs, scalar_folder: Path) -> tuple[Engine, Ports]:
    ports = {"model": tree(store, scalar_folder)}
    return open_reward_model(store, ports, ENGINE), ports


def reward(ports: Ports, name: str = "t", **given: Any) -> Work:
    return work(name, "reward", ports, **given)


def expected(model: Any, tokens: list[int]) -> list[float]:
    """As one pass of the model alone gives it, at the last token."""
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
    return [float(one) for one in logits]


def test_a_chat_is_read_as_trl_reads_it(scalar: Any, scalar_folder: Path) -> None:
    engine, ports = scalar
    tokenizer = transformers.AutoTokenizer.from_pretrained(scalar_folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(scalar_folder)
    tokens = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    found = run(
        engine,
        reward(ports, "prompt", **ANSWER),
        reward(ports, "messages", messages=CHAT[:1], completion=ANSWER["completion"]),
    )
    assert row(found["prompt"])["reward"] == pytest.approx(expected(model, tokens)[0], abs=1e-5)
    assert row(found["messages"]) == row(found["prompt"])


def test_plain_text_ends_as_trl_ends_it(scalar: Any, scalar_folder: Path) -> None:
    engine, ports = scalar
    tokenizer = transformers.AutoTokenizer.from_pretrained(scalar_folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(scalar_folder)
    text = ANSWER["prompt"] + ANSWER["completion"]
    found = run(
        engine,
        reward(ports, "ended", chat=False, **ANSWER),
        reward(ports, "as it is", text=text),
    )
    for name, written in (("ended", text + tokenizer.eos_token), ("as it is", text)):
        (value,) = expected(model, tokenizer(written)["input_ids"])
        assert row(found[name])["reward"] == pytest.approx(value, abs=1e-5)


def test_rows_are_scored_alike_alone_and_together(scalar: Any) -> None:
    engine, ports = scalar
    batch = [reward(ports, str(n), text="the river rises " * n) for n in range(1, 9)]
    together = run(engine, *batch)
    assert {one.task: run(engine, one)[one.task] for one in batch} == together
    assert len({row(outcome)["reward"] for outcome in together.values()}) == 8


def test_labels_of_a_classifier(store: DirBlobs, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", ["bad", "fair", "good"])
    ports = {"model": tree(store, folder)}
    engine = open_reward_model(store, ports, ENGINE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    logits = torch.tensor(expected(model, tokenizer("the river")["input_ids"]))
    found = run(
        engine,
        *(reward(ports, name, text="the river", label=name) for name in ("bad", "good")),
        reward(ports, "logit", text="the river", label="good", value="logit"),
        reward(ports, "none", text="the river"),
        reward(ports, "wrong", text="the river", label="best"),
    )
    shares = torch.softmax(logits, dim=0)
    assert row(found["bad"])["reward"] == pytest.approx(float(shares[0]), abs=1e-5)
    assert row(found["good"])["reward"] == pytest.approx(float(shares[2]), abs=1e-5)
    assert row(found["logit"])["reward"] == pytest.approx(float(logits[2]), abs=1e-5)
    assert "['bad', 'fair', 'good']" in refusal(found["none"])
    assert "no label 'best'" in refusal(found["wrong"])


def test_the_probability_of_one_label_is_its_logistic(scalar: Any) -> None:
    engine, ports = scalar
    found = run(
        engine,
        reward(ports, "logit", text="a mill"),
        reward(ports, "share", text="a mill", value="probability"),
    )
    logit = torch.tensor(row(found["logit"])["reward"])
    assert row(found["share"])["reward"] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)


def test_long_texts_are_refused_or_cut_where_it_is_said(scalar: Any, scalar_folder: Path) -> None:
    engine, ports = scalar
    tokenizer = transformers.AutoTokenizer.from_pretrained(scalar_folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(scalar_folder)
    text = "the river rises in the hills " * 5
    tokens = tokenizer(text)["input_ids"]
    chat = {"prompt": text, "completion": "why"}
    found = run(
        engine,
        reward(ports, "refused", text=text, max_length=9),
        reward(ports, "over", text="river " * 600),
        reward(ports, "start", text=text, max_length=9, truncate="start"),
        reward(ports, "end", text=text, max_length=9, truncate="end"),
        reward(ports, "whole", text=text, truncate="end"),
        reward(ports, "chat", max_length=9, truncate="start", **chat),
    )
    assert f"{len(tokens)} tokens and at most 9" in refusal(found["refused"])
    assert f"at most {CONTEXT_TOKENS}" in refusal(found["over"])
    for name, cut in (("start", tokens[-9:]), ("end", tokens[:9]), ("whole", tokens)):
        made = row(found[name])
        assert made["reward"] == pytest.approx(expected(model, cut)[0], abs=1e-5)
        assert made["truncated"] is (name != "whole")
    assert row(found["chat"])["truncated"] is True


def test_adapters_share_a_base_that_has_no_score(store: DirBlobs, tmp_path: Path) -> None:
    base = make_tiny(tmp_path / "base")
    plain = {"model": tree(store, base)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokens = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    engine = open_reward_model(store, plain, ENGINE)
    batch, values = [reward(plain, "none", **ANSWER)], {}
    for seed in range(2):
        adapted = make_adapter(base, tmp_path / f"adapter-{seed}", seed)
        ports = plain | {"adapter": tree(store, tmp_path / f"adapter-{seed}")}
        batch += [reward(ports, f"{seed}{copy}", **ANSWER) for copy in "ab"]
        (values[seed],) = expected(adapted, tokens)
    batch[1], batch[-1] = batch[-1], batch[1]
    found = run(engine, *batch)
    assert "`reward_model`" in refusal(found["none"])
    for seed, value in values.items():
        assert row(found[f"{seed}a"])["reward"] == pytest.approx(value, abs=1e-4)
        assert row(found[f"{seed}a"]) == row(found[f"{seed}b"])
    assert abs(values[0] - values[1]) > 0.1


def test_a_base_may_lack_the_layer_that_scores_and_nothing_else(
    store: DirBlobs, tmp_path: Path
) -> None:
    base = make_tiny(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", 0)
    weights = load_file(base / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    ports = {"model": tree(store, base), "adapter": tree(store, tmp_path / "adapter")}
    engine = open_reward_model(store, ports, ENGINE)
    message = refusal(run(engine, reward(ports, "t", **ANSWER))["t"])
    assert "lack model.norm.weight" in message


def test_a_classifier_whose_head_has_another_name_takes_an_adapter(tmp_path: Path) -> None:
    """Such an adapter has no layer `score` of its own, and none is looked for in the model."""
    folder = make_tiny(tmp_path / "model")
    config = transformers.BertConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    classifier = Classifier(folder, "float32")
    name = "bert.encoder.layer.0.attention.self.query"
    rng = torch.Generator().manual_seed(1)
    update = Update(*(torch.randn(2, 16, generator=rng) for _ in range(2)))
    scoring = Scoring(Adapter("a", {name: update}), None)
    plain = classifier.logits([3, 4, 5], None)
    assert classifier.logits([3, 4, 5], scoring) != plain
    assert classifier.logits([3, 4, 5], None) == plain


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_what_reward_model_has_trained_scores_what_it_has_learnt(
    store: DirBlobs, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    answers = {"chosen": "the river", "rejected": "a stone"}
    rows = [{"prompt": f"What is {n}?"} | answers for n in range(4)]
    chats = [
        {"prompt": [{"role": "user", "content": row["prompt"]}]}
        | {name: [{"role": "assistant", "content": row[name]}] for name in answers}
        for row in rows
    ]
    given = {"max_steps": 6, "learning_rate": 0.01, "lora": lora}
    params = catalog()["reward_model"].params.model_validate(given).model_dump(mode="json")
    base = tree(store, make_tiny(tmp_path / "base"))
    ports = {"model": base, "data": store.put_table(chats)}
    action = Action("reward_model", 1, params, ports, "trl/float32")
    (outcome,) = open_trainer(store, ports, "trl/float32").run([Work("t", action)])
    assert isinstance(outcome, Done), outcome
    made = outcome.result.outputs
    trained = {"model": base, "adapter": made["adapter"]} if lora else {"model": made["model"]}
    found = run(
        open_reward_model(store, trained, ENGINE),
        *(
            reward(trained, f"{name}{n}", prompt=one["prompt"], completion=one[name])
            for n, one in enumerate(rows)
            for name in answers
        ),
    )
    for n in range(4):
        assert row(found[f"chosen{n}"])["reward"] > row(found[f"rejected{n}"])["reward"] + 0.1


def test_adapters_that_do_not_fit_are_refused(
    store: DirBlobs, scalar: Any, scalar_folder: Path, tmp_path: Path
) -> None:
    engine, ports = scalar
    make_adapter(scalar_folder, tmp_path / "good", 3)

    def changed(name: str, change: Any) -> Work:
        folder = tmp_path / name
        folder.mkdir()
        for one in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / one).write_bytes((tmp_path / "good" / one).read_bytes())
        change(folder)
        return reward(ports | {"adapter": tree(store, folder)}, name, text="river")

    def write(name: str, old: str, new: str) -> Any:
        def change(folder: Path) -> None:
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))

        return change

    def resize(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors["base_model.model.score.weight"] = torch.ones(1, 32)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    found = run(
        engine,
        changed("language", write("adapter_config.json", "SEQ_CLS", "CAUSAL_LM")),
        changed("json", write("adapter_config.json", "{", "[")),
        changed("file", lambda folder: (folder / "adapter_model.safetensors").unlink()),
        changed("base", lambda folder: (folder / "flowmesh.json").write_text('{"base": "x"}')),
        changed("size", resize),
        changed("good-copy", lambda folder: None),
    )
    assert "SEQ_CLS" in refusal(found["language"])
    assert "is no JSON" in refusal(found["json"])
    assert "adapter_model.safetensors" in refusal(found["file"])
    assert "another base" in refusal(found["base"])
    assert "another size" in refusal(found["size"])
    assert isinstance(row(found["good-copy"])["reward"], float)


def test_an_adapter_leaves_nothing_behind(
    store: DirBlobs, scalar: Any, scalar_folder: Path, tmp_path: Path
) -> None:
    engine, ports = scalar
    make_adapter(scalar_folder, tmp_path / "adapter", 4)
    adapted = ports | {"adapter": tree(store, tmp_path / "adapter")}
    before = run(engine, reward(ports, text="river"))
    other = run(engine, reward(adapted, text="river"))
    assert run(engine, reward(ports, text="river")) == before != other


def test_a_reward_that_is_no_number_is_a_broken_model(store: DirBlobs, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] *= float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ports = {"model": tree(store, folder)}
    found = run(open_reward_model(store, ports, ENGINE), reward(ports, text="a"))
    assert "not a number" in refusal(found["t"])


def test_what_can_not_be_read_is_refused(store: DirBlobs, scalar: Any, tmp_path: Path) -> None:
    engine, ports = scalar
    assert "empty" in refusal(run(engine, reward(ports, text=""))["t"])
    silent = {"model": tree(store, make_classifier(tmp_path / "silent", chat=False))}
    found = run(open_reward_model(store, silent, ENGINE), reward(silent, **ANSWER))
    assert "`chat: false`" in refusal(found["t"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("no model")
    nothing = {"model": tree(store, tmp_path / "notes")}
    found = run(open_reward_model(store, nothing, ENGINE), reward(nothing, text="a"))
    assert "config.json" in refusal(found["t"])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "p"}, "completion"),
        ({"text": "t", "completion": "c"}, "completion"),
        ({"text": "t", "prompt": "p"}, "prompt"),
        ({"text": "t", "max_length": 0}, "max_length"),
        ({"text": "t", "truncate": "middle"}, "truncate"),
        ({"text": "t", "value": "score"}, "value"),
        ({"prompt": "p", "completion": "c", "chat": False, "system": "s"}, "system"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RewardParams.model_validate(given)
    error = caught.value.errors()[0]
    cause = error.get("ctx", {}).get("error")
    assert (cause.field if isinstance(cause, ParamError) else error["loc"][0]) == field


def test_two_spellings_of_one_chat_are_one_task() -> None:
    base = task_of(REWARD, ANSWER)
    spelt = {"messages": CHAT[:1], "completion": ANSWER["completion"], "into": "points"}
    assert task_of(REWARD, spelt) == base
    assert task_of(REWARD, ANSWER | {"completion": "other"}) != base


def test_columns_and_aggregate() -> None:
    params = RewardParams(text="t", into="points", truncate="start")
    (shaped,) = REWARD.shape(params, [{"reward": 1.0, "truncated": False}], 0)
    assert tuple(shaped) == REWARD.adds(params) == ("points", "points_truncated")
    assert REWARD.adds(RewardParams(text="t")) == ("reward",)
    assert REWARD.aggregate is not None
    (found,) = REWARD.aggregate(params, [{"points": value} for value in (1.0, 2.0, 3.0)])
    assert (found["n"], found["mean"], found["std"]) == (3, 2.0, 1.0)
    assert found["ci_high"] == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    (empty,) = REWARD.aggregate(params, [])
    assert tuple(empty) == tuple(found)
    assert empty == dict.fromkeys(found) | {"n": 0, "method": "student t"}
