"""Generate many answers at once, each exactly as if it had been alone.

The *canonical* logits of a row come from passes over that row alone: its prompt, then
what it has generated, in blocks of fixed size. Their shapes, and so their last digits,
depend on the row only, and they define the answer. Decoding in a batch is far faster and
differs from them by rounding noise. So the batch decides only what `sampling.settle` can
prove safe from noise, and a row that is too close to call gets its canonical pass: a few
in a thousand tokens. The bound on noise widens by itself if a pass shows it too narrow.

In other formats than float32 noise is as large as real differences: there the batch
decides directly and the results are `near`, not `exact`.

Rows of different adapters share a batch; passes over one row are adapted by its own alone.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from flowmesh.runtimes.low_rank import Adapter
from flowmesh.runtimes.prefixes import Prompt
from flowmesh.runtimes.row_cache import RowCache
from flowmesh.runtimes.sampling import GREEDY, Sampling, decide, settle
from flowmesh.runtimes.weights import BrokenModel, Weights

log = logging.getLogger(__name__)

#: First bound on the difference between batched and canonical float32 logits. Measured on
#: SmolLM2-135M: 1.5e-4 at most.
LEAST_NOISE = 1e-3
#: The bound stays this many times above the greatest difference seen.
_NOISE_MARGIN = 6.0
#: Canonical passes read generated tokens in blocks of this size and keep whole ones.
_BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate. `max_tokens` is already cut to what the context leaves."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was generated: `tokens` includes the token that ended it, `text` does not.

    `logprobs`: natural logarithms, one for each token, or None if not asked for. `cached_tokens`
    of the prompt were not read for this answer.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: list[float] | None = None
    cached_tokens: int = field(default=0, compare=False)


@dataclass(slots=True)
class Counts:
    """What decoding took so far. `recomputed` tokens needed a canonical pass.

    `steps` are passes that wrote a token for each of their rows.
    """

    tokens: int = 0
    steps: int = 0
    recomputed: int = 0
    noise: float = LEAST_NOISE


@dataclass(slots=True)
class _Row:
    index: int
    request: Request
    first: NDArray[np.float32]
    tokens: list[int] = field(default_factory=list)
    #: Prompt and whole blocks of generated tokens, once a canonical pass was needed.
    canonical: DynamicCache | None = None
    #: Its logits are no numbers, so it can not go on.
    broken: bool = False
    cached_tokens: int = field(default=0, compare=False)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Within it, a broken model or adapter breaks this row and no other."""
        try:
            yield
        except BrokenModel:
            self.broken = True


class Decoder:
    """Generates with one model. Not for several threads at a time."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.counts = Counts()
        #: A wild adapter must not cost others their speed, so its bound is its own.
        self._adapter_noise: dict[str, float] = {}

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Yield `(index of the request, answer)` as answers are finished.

        Raises MemoryError; BrokenModel once all is yielded that can be: the requests without
        an answer are those that the model, or their adapter, makes no numbers of.
        """
        answered = 0
        for bucket in _buckets(requests):
            for found in self._bucket([(index, requests[index]) for index in bucket]):
                answered += 1
                yield found
        log.info(
            "decoded %d tokens so far, %d recomputed alone, noise bound %.1e",
            self.counts.tokens,
            self.counts.recomputed,
            self.counts.noise,
        )
        if answered < len(requests):
            raise BrokenModel

    def _bucket(self, requests: Sequence[tuple[int, Request]]) -> Iterator[tuple[int, Answer]]:
        rows, caches = self._started(requests)
        if not rows:
            return
        cache = RowCache(caches)
        caches.clear()
        yield from self._drop_finished(rows, cache)
        while rows:
            logits = self._step(rows, cache)
            for number, row in enumerate(rows):
                with row.breaking():
                    row.tokens.append(self._next_token(logits[number], row, number, cache))
            yield from self._drop_finished(rows, cache)

    def _started(
        self, requests: Sequence[tuple[int, Request]]
    ) -> tuple[list[_Row], list[DynamicCache]]:
        """Rows with their first token, and the caches of their prompts."""
        wanted = dict.fromkeys((request.prompt, request.adapter) for _, request in requests)
        prompts = {one: self._read(*one) for one in wanted}
        rows: list[_Row] = []
        caches: list[DynamicCache] = []
        unread = dict(prompts)
        for index, request in requests:
            prompt = prompts[request.prompt, request.adapter]
            row = _Row(index, request, _numbers(prompt.logits)[-1])
            read_for_it = unread.pop((request.prompt, request.adapter), None) is not None
            row.cached_tokens = prompt.remembered if read_for_it else len(request.prompt)
            with row.breaking():
                row.tokens.append(decide(_whole(row.first), request.sampling, 0))
            if not row.broken:
                rows.append(row)
                caches.append(prompt.cache)
        return rows, caches

    def _read(self, prompt: tuple[int, ...], adapter: Adapter | None) -> Prompt:
        with self.weights.adapted([adapter]):
            return self.weights.read(prompt)

    def _step(self, rows: Sequence[_Row], cache: RowCache) -> NDArray[np.float32]:
        """Read every row's last token; `[rows, vocabulary]` of logits for the next."""
        self.counts.steps += 1
        cache.reserve()
        mask = cache.mask[: cache.rows, : cache.length + 1] if cache.padded else None
        with self.weights.adapted([row.request.adapter for row in rows]):
            logits = self.weights.forward(
                [[row.tokens[-1]] for row in rows],
                cache.cache,
                positions=[[len(row.request.prompt) + len(row.tokens) - 1] for row in rows],
                mask=mask,
            )
        cache.appended()
        return _numbers(logits[:, -1])

    def _next_token(
        self, logits: NDArray[np.float32], row: _Row, number: int, cache: RowCache
    ) -> int:
        step, sampling = len(row.tokens), row.request.sampling
        self.counts.tokens += 1
        _whole(logits)
        if not self.weights.exact:
            return decide(logits, sampling, step)
        name = row.request.adapter.name if row.request.adapter else ""
        noise = max(self.counts.noise, self._adapter_noise.get(name, 0.0))
        decision = settle(logits, sampling, step, noise)
        # The first token behind a prompt of an adapter tells how much noise is its own.
        if decision.settled and (not name or name in self._adapter_noise):
            return decision.token
        self.counts.recomputed += 1
        canonical = _whole(self._canonical_logits(row, number, cache))
        noise = max(noise, _NOISE_MARGIN * _difference(canonical, logits))
        if name:
            self._adapter_noise[name] = noise
        else:
            self.counts.noise = noise
        return decide(canonical, sampling, step)

    def _canonical_logits(self, row: _Row, number: int, cache: RowCache) -> NDArray[np.float32]:
        if row.canonical is None:
            row.canonical = cache.prompt(number)
        start = len(row.request.prompt)
        read = int(row.canonical.get_seq_length()) - start
        with self.weights.adapted([row.request.adapter]):
            while len(row.tokens) - read > _BLOCK_TOKENS:
                block = row.tokens[read : read + _BLOCK_TOKENS]
                self.weights.extend(block, row.canonical, keep=1)
                read += _BLOCK_TOKENS
            rest = row.tokens[read:]
            logits = self.weights.extend(rest, row.canonical, keep=1)
        row.canonical.crop(-len(rest))
        return np.asarray(_numbers(logits)[-1])

    def _drop_finished(self, rows: list[_Row], cache: RowCache) -> Iterator[tuple[int, Answer]]:
        """Remove the rows that are done, last first: the last row takes a dropped one's place."""
        for number in reversed(range(len(rows))):
            row = rows[number]
            reason, text = self._ended(row)
            if not reason and not row.broken:
                continue
            logprobs = None
            if row.request.logprobs:
                with row.breaking():
                    logprobs = self._logprobs(row, cache.prompt(number))
            rows[number] = rows[-1]
            rows.pop()
            cache.drop(number)
            if not row.broken:
                yield (
                    row.index,
                    Answer(text, tuple(row.tokens), reason, logprobs, row.cached_tokens),
                )

    def _ended(self, row: _Row) -> tuple[str, str]:
        """Why a row is done, and its text; an empty reason if it goes on."""
        request, tokens = row.request, row.tokens
        if tokens[-1] in self.weights.end_tokens:
            return "stop", self.weights.text(tokens[:-1])
        if request.stop:
            # Four tokens can make one character, so this tail holds every stop string that
            # the last token can have completed.
            tail = 4 * max(map(len, request.stop)) + 8
            recent = self.weights.text(tokens[-tail:])
            if any(stop in recent for stop in request.stop):
                text = self.weights.text(tokens)
                places = [text.find(stop) for stop in request.stop if stop in text]
                if places:
                    return "stop", text[: min(places)]
        if len(tokens) >= request.max_tokens:
            return "length", self.weights.text(tokens)
        return "", ""

    def _logprobs(self, row: _Row, prompt: DynamicCache) -> list[float]:
        """Log-probability of each token by passes over the row alone, to six places."""
        values = [_log_softmax(row.first[None])[0, row.tokens[0]]]
        for start in range(0, len(row.tokens) - 1, _BLOCK_TOKENS):
            block = row.tokens[:-1][start : start + _BLOCK_TOKENS]
            with self.weights.adapted([row.request.adapter]):
                logits = self.weights.extend(block, prompt, keep=len(block))
            found = _log_softmax(_whole(_numbers(logits)))
            following = row.tokens[start + 1 : start + 1 + len(block)]
            values += list(found[np.arange(len(block)), following])
        return [round(float(value), 6) for value in values]


def _buckets(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Indices of requests whose prompts are of like length, so that little is padding."""
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt))
    bucket: list[int] = []
    for index in order:
        shortest = len(requests[bucket[0]].prompt) if bucket else 0
        if bucket and len(requests[index].prompt) > 2 * shortest + 256:
            yield bucket
            bucket = []
        bucket.append(index)
    if bucket:
        yield bucket


def _numbers(logits: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)


def _whole(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, if the likeliest has a number. Raises BrokenModel."""
    if not np.isfinite(np.max(logits)):
        raise BrokenModel
    return logits


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    # Some models rule tokens out by an infinite logit; these are alike in both.
    finite = np.isfinite(one) & np.isfinite(other)
    return float(np.max(np.abs(one[finite] - other[finite]), initial=0))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
