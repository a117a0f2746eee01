"""Decoding on a tiny random model, whose decisions are so close that batches tip them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flowmesh.runtimes.decoding import Answer, Decoder, Request, _Row  # noqa: E402
from flowmesh.runtimes.row_cache import RowCache  # noqa: E402
from flowmesh.runtimes.sampling import GREEDY, Sampling, stream_key  # noqa: E402
from flowmesh.runtimes.weights import BrokenModel, Weights  # noqa: E402
from support.tiny_model import CONTEXT_TOKENS, make_tiny  # noqa: E402

pytestmark = pytest.mark.model

WORDS = ["river", "town", "water", "bread", "shadow", "blue", "three", "why", "what", "mountain"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(make_tiny(tmp_path_factory.mktemp("tiny")), "float32")


def requests(weights: Weights, count: int, *, temperature: float, tokens: int) -> list[Request]:
    """Prompts of unlike lengths, some of them equal, with a mix of settings."""
    rng = random.Random(5)
    made = []
    for number in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.choice([1, 2, 5, 20, 60])))
        prompt = weights.prompt_tokens({"prompt": text if number % 4 else "What is blue?"})
        sampling = GREEDY
        if temperature:
            top_p, top_k = rng.choice([(1.0, 0), (0.9, 0), (1.0, 20), (0.8, 50)])
            sampling = Sampling(temperature, top_p, top_k, stream_key(3, number, prompt))
        made.append(Request(prompt, rng.randint(1, tokens), sampling, logprobs=number % 3 == 0))
    return made


def answers(weights: Weights, wanted: Sequence[Request]) -> list[Answer]:
    found = dict(Decoder(weights).generate(wanted))
    return [found[index] for index in range(len(wanted))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_the_same_in_any_company(weights: Weights, temperature: float) -> None:
    wanted = requests(weights, 24, temperature=temperature, tokens=90)
    together = answers(weights, wanted)
    assert [answers(weights, [one])[0] for one in wanted] == together
    order = list(range(len(wanted)))
    random.Random(1).shuffle(order)
    shuffled = answers(weights, [wanted[index] for index in order])
    assert [shuffled[order.index(index)] for index in range(len(wanted))] == together


def test_close_calls_are_decided_alone(weights: Weights) -> None:
    """A wide bound sends most tokens through the canonical pass, and changes no answer."""
    wanted = requests(weights, 6, temperature=1.0, tokens=150)
    careful = Decoder(weights)
    careful.counts.noise = 0.5
    found = dict(careful.generate(wanted))
    assert [found[index] for index in range(6)] == answers(weights, wanted)
    assert careful.counts.recomputed > careful.counts.tokens / 4


class NoisyWeights(Weights):
    """A model whose batched passes are off by up to `noise`, in another way each time."""

    def __init__(self, quiet: Weights, noise: float) -> None:
        self.__dict__.update(quiet.__dict__)
        self.noise, self.rng = noise, torch.Generator().manual_seed(0)

    def forward(self, tokens: Any, cache: Any, **kwargs: Any) -> Any:
        logits = super().forward(tokens, cache, **kwargs)
        return logits + self.noise * (2 * torch.rand(logits.shape, generator=self.rng) - 1)

    def extend(self, tokens: Any, cache: Any, *, keep: int) -> Any:
        quiet = Weights.__new__(Weights)
        quiet.__dict__.update(self.__dict__)
        return quiet.extend(tokens, cache, keep=keep)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_noise_within_the_bound_changes_no_answer(weights: Weights, temperature: float) -> None:
    wanted = requests(weights, 24, temperature=temperature, tokens=60)
    noisy = Decoder(NoisyWeights(weights, noise=0.05))
    noisy.counts.noise = 0.051
    found = dict(noisy.generate(wanted))
    assert [found[index] for index in range(24)] == answers(weights, wanted)
    assert noisy.counts.recomputed > 20, "or the noise tips nothing and this proves nothing"


def test_the_bound_on_noise_widens_when_a_pass_exceeds_it(weights: Weights) -> None:
    noisy = Decoder(NoisyWeights(weights, noise=0.05))
    dict(noisy.generate(requests(weights, 24, temperature=1.0, tokens=60)))
    assert noisy.counts.noise == pytest.approx(6 * 0.05, rel=0.1)


class BreakingWeights(Weights):
    """A model that makes no numbers of a row once it has read a certain token."""

    def __init__(self, whole: Weights, token: int) -> None:
        self.__dict__.update(whole.__dict__)
        self.token = token

    def forward(self, tokens: Any, cache: Any, **kwargs: Any) -> Any:
        logits = super().forward(tokens, cache, **kwargs).clone()
        for row, read in enumerate(tokens):
            if self.token in read:
                logits[row] = torch.nan
        return logits


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_row_that_breaks_stops_no_other(weights: Weights, logprobs: bool) -> None:
    prompts = [weights.prompt_tokens({"prompt": text}) for text in ("What is blue?", "Why?", "a")]
    wanted = [Request(prompt, 30, logprobs=logprobs) for prompt in prompts]
    whole = answers(weights, wanted)
    held = [set(prompt) | set(one.tokens) for prompt, one in zip(prompts, whole, strict=True)]
    token = min(set(whole[1].tokens[2:-1]) - set(whole[1].tokens[:2]) - held[0] - held[2])
    found: dict[int, Answer] = {}
    with pytest.raises(BrokenModel):
        for index, answer in Decoder(BreakingWeights(weights, token)).generate(wanted):
            found[index] = answer
    assert found == {0: whole[0], 2: whole[2]}


def test_greedy_agrees_with_transformers(weights: Weights) -> None:
    wanted = requests(weights, 4, temperature=0.0, tokens=40)
    for request, answer in zip(wanted, answers(weights, wanted), strict=True):
        ids = torch.tensor([request.prompt])
        known = weights.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            do_sample=False,
        )
        assert known[0, len(request.prompt) :].tolist() == list(answer.tokens)


def test_log_probabilities_agree_with_one_plain_pass(weights: Weights) -> None:
    prompt = weights.prompt_tokens({"prompt": "What is blue?"})
    request = Request(prompt, 150, Sampling(1.0, key=stream_key(1, 0, prompt)), logprobs=True)
    (answer,) = answers(weights, [request])
    with torch.inference_mode():
        logits = weights.model(torch.tensor([[*prompt, *answer.tokens]])).logits[0].double()
    table = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    expected = [float(row[token]) for row, token in zip(table, answer.tokens, strict=True)]
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)
    assert len(answer.tokens) > 64, "or blocks are not tried"


def test_ends_at_the_end_token_the_limit_or_a_stop_string(weights: Weights) -> None:
    prompt = weights.prompt_tokens({"prompt": "What is blue?"})
    (whole,) = answers(weights, [Request(prompt, 40)])
    assert (whole.finish_reason, len(whole.tokens)) == ("length", 40)
    stop = whole.text[12:15]
    (cut,) = answers(weights, [Request(prompt, 40, stop=("never there", stop))])
    assert (cut.finish_reason, cut.text) == ("stop", whole.text[: whole.text.index(stop)])
    ending = Weights.__new__(Weights)
    ending.__dict__.update(weights.__dict__)
    ending.end_tokens = frozenset({whole.tokens[5]})
    first = whole.tokens.index(whole.tokens[5])
    (ended,) = answers(ending, [Request(prompt, 40)])
    assert ended.finish_reason == "stop"
    assert ended.tokens == whole.tokens[: first + 1]
    assert ended.text == weights.text(whole.tokens[:first])


def test_an_answer_may_fill_the_context(weights: Weights) -> None:
    prompt = weights.prompt_tokens({"prompt": "blue " * 100})
    room = CONTEXT_TOKENS - len(prompt)
    (answer,) = answers(weights, [Request(prompt, room)])
    assert len(answer.tokens) == room


def test_the_row_cache_returns_a_prompt_bit_for_bit(weights: Weights) -> None:
    prompts = [weights.read(weights.tokens(text)).cache for text in ("a", "the river", "why? " * 9)]
    cache = RowCache(prompts)
    cache.drop(0)
    for number, kept in ((0, prompts[2]), (1, prompts[1])):
        for layer, known in zip(cache.prompt(number).layers, kept.layers, strict=True):
            assert torch.equal(layer.keys, known.keys)
            assert torch.equal(layer.values, known.values)


def test_out_of_memory_is_a_memory_error(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(weights.model, "forward", exhausted)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        answers(weights, [Request((1, 2), 3)])


def test_bfloat16_decodes_directly(tmp_path: Path) -> None:
    weights = Weights(make_tiny(tmp_path), "bfloat16")
    decoder = Decoder(weights)
    found = dict(decoder.generate(requests(weights, 6, temperature=1.0, tokens=20)))
    assert len(found) == 6
    assert decoder.counts.recomputed == 0


def test_a_canonical_pass_does_not_remember_earlier_ones(weights: Weights) -> None:
    """Bit for bit: passes that came before must not change the shapes of this one."""
    prompt = weights.prompt_tokens({"prompt": "What is blue?"})
    (answer,) = answers(weights, [Request(prompt, 140)])
    decoder = Decoder(weights)

    def row(length: int) -> _Row:
        read = weights.read(prompt)
        return _Row(0, Request(prompt, 140), read.logits.numpy()[-1], list(answer.tokens[:length]))

    cache = RowCache([weights.read(prompt).cache])
    often = row(0)
    for length in (3, 40, 64, 65, 100, 129, 139):
        often.tokens = list(answer.tokens[:length])
        logits = decoder._canonical_logits(often, 0, cache)
        assert np.array_equal(logits, decoder._canonical_logits(row(length), 0, cache))
