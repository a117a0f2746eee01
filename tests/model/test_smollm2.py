"""The promises of `generate` and `choose` on the real model, SmolLM2-135M-Instruct."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from flowmesh.runtimes.adapters import read_adapter
from flowmesh.runtimes.choosing import choose
from flowmesh.runtimes.decoding import Answer, Decoder, Request
from flowmesh.runtimes.sampling import GREEDY, Sampling, stream_key
from flowmesh.runtimes.weights import Weights, load_weights
from support.tiny_adapter import make_adapter

pytestmark = pytest.mark.model

QUESTIONS = [
    "What is the capital of France?",
    "Hi",
    "Name three colours of the rainbow.",
    "Why is the sky blue? Explain it to a child of five years, in simple words, please.",
    "Write a haiku about rain.",
    "What is 12 + 30?",
    "List the months of the year that have exactly thirty days, one on each line, in order.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Summarise this: the river rises in the hills behind the town and reaches the sea at the old "
    "harbour. In spring it carries more water than the mills can use, and in a dry summer there "
    "is so little that the children cross it on stones. The people who live along it know its "
    "ways: they build on the higher bank and keep their boats above the weir.",
    "Give me a synonym for quick.",
    "What do bees make?",
]
TOKENS = 12


@pytest.fixture(scope="module")
def weights(smollm2: Path) -> Weights:
    return load_weights(smollm2, "float32")


def prompt_of(weights: Weights, question: str) -> tuple[int, ...]:
    return weights.prompt_tokens({"messages": [{"role": "user", "content": question}]})


def requests(weights: Weights, *temperatures: float) -> list[Request]:
    """One of each question; they take the temperatures in turn."""
    made = []
    for number, question in enumerate(QUESTIONS):
        prompt, temperature = prompt_of(weights, question), temperatures[number % len(temperatures)]
        sampling = GREEDY
        if temperature:
            sampling = Sampling(temperature, 0.95, 0, stream_key(11, number % 2, prompt))
        made.append(Request(prompt, TOKENS, sampling, logprobs=number % 4 < 2))
    return made


def answers(weights: Weights, wanted: list[Request]) -> list[Answer]:
    found = dict(Decoder(weights).generate(wanted))
    return [found[index] for index in range(len(wanted))]


@pytest.mark.parametrize(
    ("temperatures", "count"),
    [((0.0, 0.8), 6), *(pytest.param((t,), 12, marks=pytest.mark.slow) for t in (0.0, 0.8))],
)
def test_an_answer_is_the_same_in_any_company(
    weights: Weights, temperatures: tuple[float, ...], count: int
) -> None:
    """Of all, of some in another order, and of none."""
    wanted = requests(weights, *temperatures)
    together = answers(weights, wanted)
    assert len({answer.text for answer in together}) == len(wanted)
    order = random.Random(1).sample(range(len(wanted)), count)
    expected = [together[index] for index in order]
    assert answers(weights, [wanted[index] for index in order]) == expected
    assert [answers(weights, [wanted[index]])[0] for index in order] == expected


def test_adapters_share_a_batch_and_change_no_others_answer(
    weights: Weights, smollm2: Path, tmp_path: Path
) -> None:
    folders = [
        make_adapter(smollm2, tmp_path / str(n), seed=n, size=0.05, r=4 + 4 * n) for n in range(2)
    ]
    adapters = [read_adapter(weights, folder, folder.name) for folder in folders]
    wanted = [
        replace(request, adapter=adapter)
        for request in (requests(weights, 0.0)[4], requests(weights, 0.8)[10])
        for adapter in (None, *adapters)
    ]
    together = answers(weights, wanted)
    assert [answers(weights, [one])[0] for one in wanted] == together
    assert len({answer.tokens for answer in together}) == len(wanted), "or they change nothing"


def test_greedy_knows_the_capital_and_stops_by_itself(weights: Weights) -> None:
    (answer,) = answers(weights, requests(weights, 0.0)[:1])
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.tokens) == 8


def test_a_stop_string_is_cut_off(weights: Weights) -> None:
    prompt = prompt_of(weights, QUESTIONS[0])
    (answer,) = answers(weights, [Request(prompt, TOKENS, stop=("is Par",))])
    assert (answer.text, answer.finish_reason) == ("The capital of France ", "stop")


def test_choose_picks_the_sensible_answer(weights: Weights) -> None:
    for question, choices, best in (
        ("What is the capital of France?", ["Berlin", "Paris", "Madrid"], "Paris"),
        ("What colour is the sky on a clear day?", ["The sky is green", "The sky is blue"], 1),
    ):
        found = choose(weights, prompt_of(weights, question), choices, by_length=False)
        assert found.text == (best if isinstance(best, str) else choices[best])
        assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_the_conversion_gives_the_known_bytes(smollm2: Path) -> None:
    """Pinned: a change here gives every result of this model another name."""
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in smollm2.iterdir()
    }
    assert digests == {
        "LICENSE": "c71d239df917",
        "chat_template.jinja": "872be49dbb63",
        "config.json": "a3b553d2a79e",
        "generation_config.json": "8025b6679dcf",
        "model.safetensors": "a672150fb4f9",
        "tokenizer.json": "e9f1b9eb29e5",
        "tokenizer_config.json": "0c7f5232b71d",
    }


def test_the_tokenizer_splits_digits_as_the_model_was_taught(weights: Weights) -> None:
    pieces = [weights.text([token]) for token in weights.tokens("in 1987,  12\n 3")]
    assert [piece for piece in pieces if piece.strip().isdigit()] == list("1987123")
