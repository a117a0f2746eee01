"""The promises of `embed` on the real encoder, all-MiniLM-L6-v2."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from flowmesh.operators.generate import EMBED
from flowmesh.runtimes.base import Done, Failed, Outcome, Work
from flowmesh.runtimes.embedder import Embedder
from flowmesh.spec.action import INLINE_LIMIT_BYTES, Action

pytestmark = pytest.mark.model

TEXTS = [
    "How do I sort a list in Python?",
    "Sorting Python lists",
    "My grandmother bakes bread every Sunday.",
    "",
    "river " * 300,
]


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Embedder:
    return Embedder(minilm, "float32")


def embed(embedder: Embedder, texts: list[str], **given: object) -> list[Outcome]:
    batch = []
    for number, text in enumerate(texts):
        params = EMBED.params.model_validate({"text": text} | given)
        task = EMBED.task(params, params.model_dump(mode="json"), 0)
        batch.append(Work(str(number), Action("embed", 1, task, {})))
    found = {outcome.task: outcome for outcome in embedder.run(batch)}
    return [found[work.task] for work in batch]


def vector(outcome: Outcome) -> list[float]:
    assert isinstance(outcome, Done), outcome
    assert outcome.result.rows is not None
    numbers: list[float] = outcome.result.rows[0]["embedding"]
    return numbers


def test_a_vector_is_the_same_in_any_company(embedder: Embedder) -> None:
    together = embed(embedder, TEXTS)
    assert [embed(embedder, [text])[0].result for text in TEXTS] == [o.result for o in together]  # type: ignore[union-attr]
    assert all(outcome.result.numerics == "exact" for outcome in together)  # type: ignore[union-attr]


def test_like_texts_are_closer_than_unlike_ones(embedder: Embedder) -> None:
    sort, also, bread = (np.array(vector(outcome)) for outcome in embed(embedder, TEXTS[:3]))
    assert sort @ also > 0.8 > 0.3 > sort @ bread
    assert np.linalg.norm(sort) == pytest.approx(1, abs=1e-5)


def test_vectors_are_those_of_the_model_card(embedder: Embedder) -> None:
    """First numbers as sentence-transformers gives them."""
    numbers = vector(embed(embedder, TEXTS[:1])[0])
    assert len(numbers) == 384
    assert numbers[:3] == pytest.approx([0.010174906, 0.05540412, 0.033831865], abs=1e-6)


def test_a_vector_is_small_enough_to_be_kept_inline(embedder: Embedder) -> None:
    for outcome in embed(embedder, TEXTS):
        assert isinstance(outcome, Done)
        assert len(msgspec.json.encode(outcome.result.rows)) <= INLINE_LIMIT_BYTES


def test_length_is_kept_if_asked(embedder: Embedder) -> None:
    plain = np.array(vector(embed(embedder, TEXTS[:1], normalize=False)[0]))
    unit = np.array(vector(embed(embedder, TEXTS[:1])[0]))
    assert np.linalg.norm(plain) > 1.5
    assert plain / np.linalg.norm(plain) == pytest.approx(unit, abs=1e-6)


def test_a_long_text_is_cut_or_refused(embedder: Embedder) -> None:
    (cut,) = embed(embedder, [TEXTS[4]])
    assert isinstance(cut, Done)
    assert cut.result.usage.prompt_tokens == 256
    (refused,) = embed(embedder, [TEXTS[4]], truncate=False)
    assert isinstance(refused, Failed)
    assert "302 tokens" in refused.message
    assert "256" in refused.message


def test_bfloat16_is_near(minilm: Path, embedder: Embedder) -> None:
    rough = embed(Embedder(minilm, "bfloat16"), TEXTS)
    for outcome, exact in zip(rough, embed(embedder, TEXTS), strict=True):
        assert np.array(vector(outcome)) @ np.array(vector(exact)) > 0.99
        assert outcome.result.numerics == "near"  # type: ignore[union-attr]
