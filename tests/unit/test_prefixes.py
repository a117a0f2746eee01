"""What prompts have in common is read once, and that changes no bit of any result."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from flowmesh.runtimes.decoding import Answer, Decoder, Request  # noqa: E402
from flowmesh.runtimes.prefixes import PART_TOKENS, Prefixes, Prompt  # noqa: E402
from flowmesh.runtimes.weights import Weights  # noqa: E402
from support.tiny_model import make_tiny  # noqa: E402

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def weights(folder: Path) -> Weights:
    return Weights(folder, "float32")


def conversation(weights: Weights, *turns: int) -> tuple[int, ...]:
    """Turns of so many tokens each, every one but the last with an end; equal calls agree."""
    end = min(weights.end_tokens)
    tokens: list[int] = []
    for number, length in enumerate(turns):
        tokens += [5 + (number * 31 + at * 7) % 50 for at in range(length)]
        tokens += [end] if number + 1 < len(turns) else []
    return tuple(tokens)


def same(one: Prompt, other: Prompt) -> bool:
    layers = zip(one.cache.layers, other.cache.layers, strict=True)
    caches = all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in layers)
    return caches and torch.equal(one.logits, other.logits)


def test_a_remembered_beginning_gives_every_bit_that_reading_it_does(
    folder: Path, weights: Weights
) -> None:
    prompts = [(*conversation(weights, 80, 70, 9), extra) for extra in (11, 12, 13)]
    fresh = [Weights(folder, "float32").read(prompt) for prompt in prompts]
    warm = [weights.read(prompt) for prompt in prompts]
    assert all(same(one, other) for one, other in zip(fresh, warm, strict=True))
    assert [one.remembered for one in fresh] == [0, 0, 0]
    assert [one.remembered for one in warm] == [0, 152, 152]


def test_a_longer_conversation_goes_on_from_the_shorter_one(weights: Weights) -> None:
    weights.read(conversation(weights, 80, 70))
    assert weights.read(conversation(weights, 80, 70, 90, 4)).remembered == 81


def test_short_parts_and_plain_texts_are_read_in_one_pass(weights: Weights) -> None:
    short = conversation(weights, PART_TOKENS // 2, 5)
    plain = conversation(weights, 3 * PART_TOKENS)
    for prompt in (short, plain):
        assert [weights.read(prompt).remembered for _ in range(2)] == [0, 0]


def test_adapters_do_not_share_what_they_have_read() -> None:
    read: list[int] = []

    def extend(tokens, cache):  # type: ignore[no-untyped-def]
        read.append(len(tokens))
        return torch.zeros(1, 4)

    prefixes = Prefixes({1})
    prompt = (*[2] * PART_TOKENS, 1, 3)
    found = [prefixes.read(prompt, name, extend).remembered for name in ("", "a", "a")]
    assert found == [0, 0, PART_TOKENS + 1]
    assert read == [PART_TOKENS + 1, 1, PART_TOKENS + 1, 1, 1]


def test_memory_is_bounded_and_what_was_used_last_stays(weights: Weights) -> None:
    one, other = conversation(weights, 80, 3), conversation(weights, 90, 3)
    size = weights.read(one).cache.layers
    bytes_of_one = sum(layer.keys.nbytes + layer.values.nbytes for layer in size)
    small = Prefixes(weights.end_tokens, limit_bytes=bytes_of_one + 1)

    def extend(tokens, cache):  # type: ignore[no-untyped-def]
        return weights.extend(tokens, cache, keep=1)

    found = [small.read(prompt, "", extend).remembered for prompt in (one, one, other, one)]
    assert found == [0, 81, 0, 0]


def test_answers_tell_what_was_not_read_for_them(weights: Weights) -> None:
    first, second = (*conversation(weights, 80, 9), 11), (*conversation(weights, 80, 9), 12)
    wanted = [Request(prompt, 3) for prompt in (first, first, second)]
    answers: dict[int, Answer] = dict(Decoder(weights).generate(wanted))
    assert [answers[number].cached_tokens for number in range(3)] == [0, len(first), 81]
