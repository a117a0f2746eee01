"""The engines of generate, choose and embed as a worker uses them: actions in, outcomes out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from flowmesh.base.digest import Digest  # noqa: E402
from flowmesh.operators.generate import CHOOSE, GENERATE  # noqa: E402
from flowmesh.runtimes.base import Done, Engine, Failed, FailureKind, Outcome, Work  # noqa: E402
from flowmesh.runtimes.embedder import open_embedder  # noqa: E402
from flowmesh.runtimes.language_model import open_language_model  # noqa: E402
from flowmesh.spec.action import Action, Artifact, Result  # noqa: E402
from support.blobs import DirBlobs  # noqa: E402
from support.tiny_adapter import make_adapter  # noqa: E402
from support.tiny_model import CONTEXT_TOKENS, make_tiny  # noqa: E402

pytestmark = pytest.mark.model

MODEL = Digest.of(b"a model for tests")
PORTS = {"model": Artifact("tree", str(MODEL))}


def opened(root: Path, model: Path, *, opening: Any = open_language_model) -> Engine:
    blobs = DirBlobs(root)
    blobs.lay_out(MODEL, model)
    engine: Engine = opening(blobs, PORTS, "transformers/float32")
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    model = make_tiny(tmp_path_factory.mktemp("model"))
    return opened(tmp_path_factory.mktemp("store"), model)


def generate(name: str, sample: int = 0, **given: Any) -> Work:
    params = GENERATE.params.model_validate({"max_tokens": 8} | given)
    task = GENERATE.task(params, params.model_dump(mode="json"), sample)
    return Work(name, Action("generate", 1, task, PORTS, "transformers/float32"))


def adapted(work: Work, adapter: Digest) -> Work:
    ports = {**PORTS, "adapter": Artifact("tree", str(adapter))}
    return replace(work, action=replace(work.action, inputs=ports))


def choose(name: str, **given: Any) -> Work:
    params = CHOOSE.params.model_validate({"prompt": "Is it blue?"} | given)
    task = CHOOSE.task(params, params.model_dump(mode="json"), 0)
    return Work(name, Action("choose", 1, task, PORTS, "transformers/float32"))


def run(engine: Engine, *batch: Work) -> dict[str, Outcome]:
    found = list(engine.run(batch))
    assert len(found) == len(batch)
    return {outcome.task: outcome for outcome in found}


def result(outcome: Outcome) -> Result:
    assert isinstance(outcome, Done), outcome
    assert outcome.result.rows is not None
    return outcome.result


def row(outcome: Outcome) -> dict[str, Any]:
    rows = result(outcome).rows
    assert rows is not None
    return rows[0]


def refusal(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind is FailureKind.INPUT
    return outcome.message


def test_results_hold_text_reason_and_counts(engine: Engine) -> None:
    outcome = run(engine, generate("t", prompt="What is blue?", logprobs=True))["t"]
    found = row(outcome)
    assert set(found) == {"text", "finish_reason", "logprobs"}
    assert found["finish_reason"] == "length"
    assert "".join(found["logprobs"]["tokens"]) == found["text"]
    assert len(found["logprobs"]["logprobs"]) == 8
    assert max(found["logprobs"]["logprobs"]) <= 0
    assert result(outcome).numerics == "exact"
    assert result(outcome).usage.generated_tokens == 8
    assert result(outcome).usage.prompt_tokens > 5


def test_passes_are_counted_that_write_for_all_rows(engine: Engine) -> None:
    before = engine.steps  # type: ignore[attr-defined]
    short = generate("a", prompt="What is blue?", max_tokens=4)
    found = run(engine, short, generate("b", prompt="What is red?", max_tokens=8))
    longest = max(result(one).usage.generated_tokens for one in found.values())
    assert engine.steps - before == longest - 1  # type: ignore[attr-defined]  # the prompt gives one


def test_tokens_are_told_if_asked_for(engine: Engine) -> None:
    weights = engine.weights  # type: ignore[attr-defined]
    found = row(run(engine, generate("t", prompt="Why?", logprobs=True, tokens=True))["t"])
    prompt = weights.prompt_tokens({"messages": [{"role": "user", "content": "Why?"}]})
    assert found["prompt_tokens"] == list(prompt)
    assert weights.text(found["completion_tokens"]) == found["text"]
    assert len(found["completion_tokens"]) == len(found["logprobs"]["logprobs"]) == 8
    plain = row(run(engine, generate("t", prompt="Why?", logprobs=True))["t"])
    assert plain == {key: found[key] for key in ("text", "finish_reason", "logprobs")}


def test_the_end_token_is_among_the_tokens(tmp_path: Path) -> None:
    engine = opened(tmp_path / "store", make_tiny(tmp_path / "model"))
    weights = engine.weights  # type: ignore[attr-defined]
    asked = {"prompt": "Why?", "tokens": True, "logprobs": True}
    whole = row(run(engine, generate("t", **asked))["t"])["completion_tokens"]
    weights.end_tokens = frozenset({whole[3]})
    ended = whole[: whole.index(whole[3]) + 1]
    found = row(run(engine, generate("t", **asked))["t"])
    assert found["finish_reason"] == "stop"
    assert found["completion_tokens"] == ended
    assert len(found["logprobs"]["logprobs"]) == len(ended)
    assert found["text"] == weights.text(ended[:-1])


def test_log_probabilities_are_those_of_the_draw_at_temperature_1(engine: Engine) -> None:
    """What a policy's update needs: of the whole vocabulary, at temperature 1."""
    weights = engine.weights  # type: ignore[attr-defined]
    for given in ({"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {}):
        asked = generate("t", prompt="Why?", seed=4, tokens=True, logprobs=True, **given)
        found = row(run(engine, asked)["t"])
        prompt, drawn = found["prompt_tokens"], found["completion_tokens"]
        with torch.inference_mode():
            logits = weights.model(torch.tensor([[*prompt, *drawn]])).logits[0].double()
        table = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        expected = [float(line[token]) for line, token in zip(table, drawn, strict=True)]
        assert found["logprobs"]["logprobs"] == pytest.approx(expected, abs=1e-5)


def test_samples_differ_and_each_is_repeatable(engine: Engine) -> None:
    batch = [
        generate(str(n), n, prompt="What is blue?", temperature=1, seed=3, samples=4)
        for n in range(4)
    ]
    texts = {name: row(outcome)["text"] for name, outcome in run(engine, *batch).items()}
    assert len(set(texts.values())) == 4
    assert row(run(engine, batch[2])["2"])["text"] == texts["2"]


def test_without_a_seed_the_task_decides(engine: Engine) -> None:
    first, second = (generate(name, prompt="What is blue?", temperature=1) for name in "ab")
    found = run(engine, first, second)
    assert row(found["a"]) != row(found["b"])
    assert row(run(engine, first)["a"]) == row(found["a"])


def test_a_bad_task_fails_alone(engine: Engine) -> None:
    long = "blue river " * CONTEXT_TOKENS
    found = run(
        engine,
        generate("long", prompt=long),
        generate("good", prompt="What is blue?"),
        generate("empty", prompt="", chat=False),
        choose("same", choices=["{{a}}", "{{b}}"]),
        choose("choice", prompt="x", choices=["a", "b" * 3000]),
    )
    assert str(CONTEXT_TOKENS) in refusal(found["long"])
    assert "shorten" in refusal(found["long"])
    assert row(found["good"])["text"]
    assert "empty" in refusal(found["empty"])
    assert row(found["same"])["choice"] in ("{{a}}", "{{b}}")
    assert "longest choice" in refusal(found["choice"])


def test_choices_that_became_equal_or_empty_are_refused(engine: Engine) -> None:
    work = choose("t", choices=["a", "b", "c"])
    for choices, words in ((["a", "b", "a"], "1 and 3"), (["a", "", "b"], "choice 2 is empty")):
        action = Action("choose", 1, work.action.params | {"choices": choices}, PORTS)
        assert words in refusal(run(engine, Work("t", action))["t"])


def test_probabilities_are_those_of_plain_passes(engine: Engine) -> None:
    choices = ["blue", "the river rises", "why", "bread and water for three"]
    weights = engine.weights  # type: ignore[attr-defined]
    prompt = weights.prompt_tokens({"prompt": "Name it:"})
    sums, lengths = [], []
    for choice in choices:
        tokens = weights.tokens(choice)
        with torch.inference_mode():
            logits = weights.model(torch.tensor([[*prompt, *tokens]])).logits[0].double()
        table = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        sums.append(sum(float(line[t]) for line, t in zip(table, tokens, strict=True)))
        lengths.append(len(tokens))
    for normalise, divisors in (("none", [1] * 4), ("length", lengths)):
        scores = torch.tensor([s / d for s, d in zip(sums, divisors, strict=True)])
        expected = torch.softmax(scores, dim=0).tolist()
        work = choose("t", prompt="Name it:", choices=choices, chat=False, normalise=normalise)
        found = row(run(engine, work)["t"])
        assert list(found["probabilities"]) == choices
        assert list(found["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
        assert found["choice"] == choices[expected.index(max(expected))]
        assert found["probability"] == found["probabilities"][found["choice"]]


def test_a_choice_is_the_same_in_any_company(engine: Engine) -> None:
    batch = [choose(str(n), prompt="blue " * n, choices=["yes", "no it is"]) for n in range(6)]
    together = run(engine, *batch)
    assert {work.task: run(engine, work)[work.task] for work in batch} == together


def test_a_model_without_chat_template_says_what_to_do(tmp_path: Path) -> None:
    engine = opened(tmp_path / "store", make_tiny(tmp_path / "model", chat=False))
    found = run(engine, generate("chat", prompt="a"), generate("plain", prompt="a", chat=False))
    assert "`chat: false`" in refusal(found["chat"])
    assert row(found["plain"])["text"]


def test_a_template_that_prints_the_date_gets_a_fixed_one(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }}")
    engine = opened(tmp_path / "store", model)
    weights = engine.weights  # type: ignore[attr-defined]
    tokens = weights.prompt_tokens({"messages": [{"role": "user", "content": "a"}]})
    assert weights.text(tokens) == "01 January 2025"


def test_a_template_that_refuses_gives_its_reason(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    engine = opened(tmp_path / "store", model)
    assert "no system role" in refusal(run(engine, generate("t", prompt="a"))["t"])


def test_other_weights_than_safetensors_are_never_loaded(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    engine = opened(tmp_path / "store", model)
    assert "safetensors" in refusal(run(engine, generate("t", prompt="a"))["t"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "can not be loaded"),
        ("model.safetensors", b"no weights", "can not be loaded"),
        ("config.json", None, "config.json"),
    ],
)
def test_a_damaged_model_fails_its_tasks(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    model = make_tiny(tmp_path / "model")
    (model / name).unlink()
    if content is not None:
        (model / name).write_bytes(content)
    engine = opened(tmp_path / "store", model)
    assert words in refusal(run(engine, generate("t", prompt="a"))["t"])


def test_weights_that_are_missing_are_never_made_up(tmp_path: Path) -> None:
    """The loader fills them by chance, so answers would vary from process to process."""
    model = make_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for layer in (0, 1):
        del weights[f"model.layers.{layer}.self_attn.q_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    engine = opened(tmp_path / "store", model)
    message = refusal(run(engine, generate("t", prompt="a"))["t"])
    assert "lack model.layers.0.self_attn.q_proj.weight and 1 more" in message
    assert "LlamaForCausalLM" in message


def test_a_model_that_scores_does_not_write(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (model / "config.json").write_text(json.dumps(config))
    engine = opened(tmp_path / "store", model)
    assert "scores and does not write" in refusal(run(engine, generate("t", prompt="a"))["t"])


def test_weights_that_are_no_numbers_fail_every_task(tmp_path: Path) -> None:
    engine = opened(tmp_path / "store", make_tiny(tmp_path / "model"))
    with torch.no_grad():
        engine.weights.model.model.norm.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    batch = (generate("a", prompt="a"), generate("b", prompt="b"), choose("c", choices=["x", "y"]))
    for outcome in run(engine, *batch).values():
        assert "not a number" in refusal(outcome)


def test_adapters_share_a_batch_and_are_loaded_while_the_engine_is_warm(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    engine = opened(tmp_path / "store", model)
    before = row(run(engine, generate("t", prompt="Why?"))["t"])
    parameters = [one.data_ptr() for one in engine.weights.model.parameters()]  # type: ignore[attr-defined]
    blobs = DirBlobs(tmp_path / "store")
    trees = [
        blobs.put_tree(
            make_adapter(model, tmp_path / str(seed), seed=seed, r=2 + seed, origin=str(MODEL))
        )
        for seed in range(4)
    ]
    batch = [
        adapted(work, tree)
        for number, tree in enumerate(trees)
        for work in (
            generate(f"greedy {number}", prompt="Why?"),
            generate(f"drawn {number}", prompt="Why?", temperature=1, seed=1),
            choose(f"chosen {number}", choices=["yes", "no it is"]),
        )
    ]
    batch.append(generate("base", prompt="Why?"))
    together = run(engine, *batch)
    assert {work.task: run(engine, work)[work.task] for work in batch} == together
    assert row(together["base"]) == before
    greedy = {row(outcome)["text"] for name, outcome in together.items() if name[0] in "gb"}
    assert len(greedy) == 5, "or the adapters change nothing"
    assert [one.data_ptr() for one in engine.weights.model.parameters()] == parameters  # type: ignore[attr-defined]


def test_a_bad_adapter_fails_its_own_rows(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model")
    engine = opened(tmp_path / "store", model)
    blobs = DirBlobs(tmp_path / "store")
    good = blobs.put_tree(make_adapter(model, tmp_path / "good", origin=str(MODEL)))
    elsewhere = str(Digest.of(b"another model"))
    foreign = blobs.put_tree(make_adapter(model, tmp_path / "foreign", origin=elsewhere))
    wild = blobs.put_tree(make_adapter(model, tmp_path / "wild", size=1e19))
    batch = {
        "good": adapted(generate("good", prompt="Why?"), good),
        "base": generate("base", prompt="Why?"),
        "foreign": adapted(generate("foreign", prompt="Why?"), foreign),
        "choice": adapted(choose("choice", choices=["a", "b"]), foreign),
        "wild": adapted(generate("wild", prompt="Why?"), wild),
        "model": adapted(generate("model", prompt="Why?"), MODEL),
    }
    found = run(engine, *batch.values())
    assert "another base model" in refusal(found["foreign"])
    assert refusal(found["choice"]) == refusal(found["foreign"])
    assert "adapter's, are damaged" in refusal(found["wild"])
    assert "this is not an adapter" in refusal(found["model"])
    for name in ("good", "base"):
        assert found[name] == run(engine, batch[name])[name]
        assert row(found[name])["text"]


def test_a_language_model_is_no_embedding_model(tmp_path: Path) -> None:
    engine = opened(tmp_path / "store", make_tiny(tmp_path / "model"), opening=open_embedder)
    assert "modules.json" in refusal(run(engine, generate("t", prompt="a"))["t"])
