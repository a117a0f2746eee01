"""`evaluate`: each measure against plain passes, and what is refused."""

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from flowmesh.operators.evaluate import EVALUATE, EvaluateParams
from flowmesh.runtimes.base import Engine, Work
from flowmesh.runtimes.evaluating import matched, plain
from flowmesh.runtimes.scorer import Scorer, open_scorer
from flowmesh.spec.action import Artifact
from flowmesh.spec.operator import ParamError
from support.blobs import DirBlobs
from support.scoring import ENGINE, refusal, row, run, task_of, tree, work
from support.tiny_model import CONTEXT_TOKENS, TEXT, make_tiny

Opened = tuple[Engine, dict[str, Artifact]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirBlobs:
    return DirBlobs(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(store: DirBlobs, folder: Path) -> Opened:
    ports = {"model": tree(store, folder)}
    return open_scorer(store, ports, ENGINE), ports


def evaluate(ports: dict[str, Artifact], name: str, **given: Any) -> Work:
    return work(name, "evaluate", ports, **given)


def measured(model: Opened, **given: Any) -> dict[str, Any]:
    engine, ports = model
    return row(run(engine, evaluate(ports, "t", **given))["t"])


def plain_nll(weights: Any, prompt: list[int], tokens: list[int]) -> float:
    """By one pass over all of it, as transformers alone would do it."""
    with torch.inference_mode():
        logits = weights.model(torch.tensor([prompt + tokens])).logits[0].double()
    table = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return -sum(float(line[token]) for line, token in zip(table, tokens, strict=True))


@pytest.mark.parametrize("tokens", [2, 64, 65, 66, 129, 300])
def test_perplexity_of_a_text_is_that_of_plain_passes(model: Opened, tokens: int) -> None:
    engine = model[0]
    assert isinstance(engine, Scorer)
    read = engine.weights.tokenizer(TEXT)["input_ids"][:tokens]
    text = engine.weights.text(read)
    ids = engine.weights.tokenizer(text)["input_ids"]
    found = measured(model, metric="perplexity", text=text)
    assert found["tokens"] == len(ids) - 1
    assert found["nll"] == pytest.approx(plain_nll(engine.weights, ids[:1], ids[1:]), abs=2e-3)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"] / found["tokens"]), rel=1e-5)
    assert found["score"] == pytest.approx(-found["nll"] / found["tokens"], abs=1e-5)


def test_perplexity_of_a_completion_counts_it_alone(model: Opened) -> None:
    engine = model[0]
    assert isinstance(engine, Scorer)
    given = {"prompt": "Why does bread rise?", "completion": "It is the water of the mills."}
    found = measured(model, metric="perplexity", **given)
    chat = {"messages": [{"role": "user", "content": given["prompt"]}]}
    prompt = list(engine.weights.prompt_tokens(chat))
    tokens = engine.weights.tokens(given["completion"])
    assert found["tokens"] == len(tokens)
    assert found["nll"] == pytest.approx(plain_nll(engine.weights, prompt, tokens), abs=1e-3)


def test_exact_match_compares_the_greedy_answer(model: Opened) -> None:
    given = {"metric": "exact_match", "prompt": "What is blue?", "max_tokens": 6}
    written = measured(model, reference="x", **given)
    assert (written["score"], written["correct"]) == (0.0, False)
    right = measured(model, reference=f"  {written['completion'].upper()}  ", **given)
    assert (right["score"], right["correct"]) == (1.0, True)


@pytest.mark.parametrize(
    ("match", "reference", "ignore", "correct"),
    [
        ("equal", "paris", ["case", "punctuation", "whitespace"], True),
        ("equal", "paris", ["case", "whitespace"], False),
        ("equal", " Paris. ", [], False),
        ("equal", "a Paris.", ["articles", "whitespace"], True),
        ("contains", "Par", [], False),
        ("contains", "Paris", [], True),
    ],
)
def test_what_does_not_count_when_answers_are_compared(
    match: str, reference: str, ignore: list[str], correct: bool
) -> None:
    params = {"match": match, "reference": reference, "ignore": ignore}
    assert matched(params, "Paris.")["correct"] is correct


def test_plain_text() -> None:
    assert plain("  The «CAT»,\n the  hat ", ["whitespace", "case", "punctuation"]) == (
        "the cat the hat"
    )
    assert plain("The theatre", ["articles", "whitespace"]) == "theatre"
    assert plain(" As it is. ", []) == " As it is. "


def test_choice_accuracy_takes_the_likeliest(model: Opened) -> None:
    given = {"metric": "choice_accuracy", "prompt": "Name it:", "choices": ["blue", "a lock"]}
    found = [measured(model, answer=answer, **given) for answer in ("blue", "a lock")]
    assert found[0]["choice"] == found[1]["choice"]
    assert {one["correct"] for one in found} == {True, False}
    assert sum(one["probability"] for one in found) == pytest.approx(1, abs=1e-5)
    assert {one["score"] for one in found} == {0.0, 1.0}


def test_win_rate_is_that_of_the_judge(model: Opened) -> None:
    engine, ports = model
    pair = {"question": "Why?", "first": "the river", "second": "a stone"}
    judged = row(run(engine, work("t", "judge", ports, mode="pairwise", **pair))["t"])
    found = measured(model, metric="win_rate", **pair)
    assert found["winner"] == judged["winner"]
    assert found["preference"] == judged["preference"]
    assert found["score"] == {"first": 1.0, "second": 0.0}[judged["winner"]]


def test_a_bad_row_fails_alone(model: Opened) -> None:
    engine, ports = model
    choice = {"metric": "choice_accuracy", "prompt": "p", "choices": ["a", "b"]}
    found = run(
        engine,
        evaluate(ports, "short", metric="perplexity", text="a"),
        evaluate(ports, "nothing", metric="perplexity", prompt="p", completion=""),
        evaluate(ports, "long", metric="perplexity", text="river " * 600),
        evaluate(ports, "foreign", **choice, answer="c"),
        evaluate(ports, "empty", metric="exact_match", prompt="p", reference=" .", max_tokens=2),
        evaluate(ports, "good", **choice, answer="a"),
    )
    assert "less than two tokens" in refusal(found["short"])
    assert "completion is empty" in refusal(found["nothing"])
    assert str(CONTEXT_TOKENS) in refusal(found["long"])
    assert "'c'" in refusal(found["foreign"]) and "['a', 'b']" in refusal(found["foreign"])
    assert "nothing matches" in refusal(found["empty"])
    assert row(found["good"])["choice"] in ("a", "b")


def test_rows_are_measured_alike_alone_and_together(model: Opened) -> None:
    engine, ports = model
    batch = [
        evaluate(ports, f"{metric}{n}", metric=metric, **{"prompt": "mill " * n} | more)
        for n in range(1, 4)
        for metric, more in (
            ("perplexity", {"completion": "bread and water " * n}),
            ("exact_match", {"reference": "x", "max_tokens": 12}),
            ("choice_accuracy", {"choices": ["x", "y z"], "answer": "x"}),
        )
    ]
    together = run(engine, *batch)
    assert {one.task: run(engine, one)[one.task] for one in batch} == together


def test_an_adapter_is_measured_as_peft_runs_it(
    model: Opened, store: DirBlobs, folder: Path, tmp_path: Path
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(tmp_path / "adapter")
    engine, ports = model
    assert isinstance(engine, Scorer)
    ids = engine.weights.tokenizer(TEXT)["input_ids"][:40]
    text = engine.weights.text(ids)
    with_adapter = ports | {"adapter": tree(store, tmp_path / "adapter")}
    found = run(
        engine,
        evaluate(with_adapter, "adapted", metric="perplexity", text=text),
        evaluate(ports, "base", metric="perplexity", text=text),
        evaluate(with_adapter, "w", metric="exact_match", prompt="a", reference="x", max_tokens=9),
        evaluate(ports, "v", metric="exact_match", prompt="a", reference="x", max_tokens=9),
    )
    expected = plain_nll(type("Plain", (), {"model": adapted}), ids[:1], ids[1:])
    assert row(found["adapted"])["nll"] == pytest.approx(expected, abs=2e-3)
    assert abs(row(found["base"])["nll"] - expected) > 0.1
    assert row(found["w"])["completion"] != row(found["v"])["completion"]


def test_an_adapter_of_another_base_is_refused(
    model: Opened, store: DirBlobs, tmp_path: Path
) -> None:
    engine, ports = model
    (tmp_path / "notes.txt").write_text("no adapter")
    wrong = ports | {"adapter": tree(store, tmp_path)}
    found = run(engine, evaluate(wrong, "t", metric="perplexity", text="a river"))
    assert "not an adapter" in refusal(found["t"])


def test_a_model_without_chat_template_says_what_to_do(store: DirBlobs, tmp_path: Path) -> None:
    ports = {"model": tree(store, make_tiny(tmp_path / "model", chat=False))}
    engine = open_scorer(store, ports, ENGINE)
    given = {"metric": "perplexity", "prompt": "a", "completion": "river"}
    found = run(
        engine, evaluate(ports, "chat", **given), evaluate(ports, "plain", chat=False, **given)
    )
    assert "`chat: false`" in refusal(found["chat"])
    assert row(found["plain"])["tokens"] > 0


def test_weights_that_are_no_numbers_are_refused(store: DirBlobs, tmp_path: Path) -> None:
    broken = make_tiny(tmp_path / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    ports = {"model": tree(store, broken)}
    found = run(
        open_scorer(store, ports, ENGINE),
        evaluate(ports, "read", metric="perplexity", text="a river"),
        evaluate(ports, "write", metric="exact_match", prompt="a", reference="b"),
    )
    assert "not a number (NaN)" in refusal(found["read"])
    assert "not a number (NaN)" in refusal(found["write"])


PROMPTED = {"prompt": "p"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"metric": "perplexity"}, "prompt"),
        ({"metric": "perplexity", **PROMPTED}, "completion"),
        ({"metric": "perplexity", "text": "t", **PROMPTED}, "prompt"),
        ({"metric": "perplexity", "text": "t", "chat": False}, "chat"),
        ({"metric": "perplexity", "text": "t", "reference": "r"}, "reference"),
        ({"metric": "exact_match", **PROMPTED}, "reference"),
        ({"metric": "exact_match", "reference": "r"}, "prompt"),
        ({"metric": "exact_match", "reference": "r", "choices": ["a", "b"], **PROMPTED}, "choices"),
        ({"metric": "choice_accuracy", "choices": ["a", "b"], **PROMPTED}, "answer"),
        ({"metric": "choice_accuracy", "answer": "a", **PROMPTED}, "choices"),
        ({"metric": "win_rate", "first": "a"}, "second"),
        ({"metric": "win_rate", "first": "a", "second": "b", **PROMPTED}, "prompt"),
        ({"metric": "win_rate", "first": "a", "second": "b", "labels": ["A", "Ab"]}, "labels"),
        ({"metric": "win_rate", "first": "a", "second": "b", "max_tokens": 9}, "max_tokens"),
        ({"metric": "bleu", **PROMPTED}, "metric"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluateParams.model_validate(given)
    error = caught.value.errors()[0]
    cause = error.get("ctx", {}).get("error")
    assert (cause.field if isinstance(cause, ParamError) else error["loc"][0]) == field


def test_rows_that_differ_in_a_column_name_only_are_one_task() -> None:
    base = {"metric": "perplexity", "text": "t"}
    assert task_of(EVALUATE, base) == task_of(EVALUATE, base | {"into": "x"})
    assert task_of(EVALUATE, base) != task_of(EVALUATE, base | {"text": "u"})


@pytest.mark.parametrize(
    ("given", "rows", "value"),
    [
        (
            {"metric": "perplexity", "text": "t"},
            [{"nll": 10.0, "tokens": 10}, {"nll": 1.0, "tokens": 30}],
            math.exp(11 / 40),
        ),
        (
            {"metric": "exact_match", "reference": "r", "prompt": "p"},
            [{"score": 1.0}, {"score": 0.0}],
            0.5,
        ),
        (
            {"metric": "win_rate", "first": "a", "second": "b"},
            [{"winner": "first"}, {"winner": "tie"}, {"winner": None}],
            0.75,
        ),
    ],
)
def test_aggregates(given: dict[str, Any], rows: list[dict[str, Any]], value: float) -> None:
    params = EvaluateParams.model_validate(given | {"into": "m"})
    assert EVALUATE.aggregate is not None
    made = [{f"m_{key}": one for key, one in each.items()} for each in rows]
    (found,) = EVALUATE.aggregate(params, made)
    assert (found["metric"], found["n"]) == (given["metric"], 2)
    assert found["value"] == pytest.approx(value, abs=1e-6)
    assert found["ci_low"] < value < found["ci_high"]
    (empty,) = EVALUATE.aggregate(params, [])
    assert tuple(empty) == tuple(found)
    assert (empty["n"], empty["value"], empty["ci_low"]) == (0, None, None)
