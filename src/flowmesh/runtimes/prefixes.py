"""Read what prompts have in common only once: a system message, the turns of a conversation.

A prompt is read in parts, each of which ends with a turn. Where the parts end follows from the
prompt's own tokens alone, so the shapes of the passes, and with them every bit of the result,
are the same whether a part was read now or is remembered from another row or batch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

#: Shorter parts cost more in passes over the weights than their being remembered saves.
PART_TOKENS = 64
#: Most bytes of attention caches that one model remembers.
LIMIT_BYTES = 256 << 20

#: Reads tokens behind a cache, which grows; returns the logits behind the last one.
Extend = Callable[[Sequence[int], DynamicCache], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was read.

    `logits` `[1, vocabulary]` are those for the next token. `remembered` tokens were not read
    again.
    """

    cache: DynamicCache
    logits: torch.Tensor
    remembered: int = 0


class Prefixes:
    """The beginnings of prompts that one model has read last, up to a number of bytes."""

    def __init__(self, turn_ends: Collection[int], limit_bytes: int = LIMIT_BYTES) -> None:
        self._turn_ends = frozenset(turn_ends)
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        #: By adapter and tokens; what was used last comes last.
        self._known: dict[tuple[str, tuple[int, ...]], DynamicCache] = {}

    def read(self, tokens: Sequence[int], adapter: str, extend: Extend) -> Prompt:
        """Read a prompt by itself, but for the parts that are remembered.

        Args:
            adapter: name of the one that the model is adapted by now, or nothing.
        """
        ends = self._ends(tokens)
        cache, at = self._deepest(tokens, adapter, ends)
        remembered = at
        for end in ends:
            if end > at:
                extend(tokens[at:end], cache)
                at, cache = end, self._remember((adapter, tuple(tokens[:end])), cache)
        return Prompt(cache, extend(tokens[at:], cache), remembered)

    def _ends(self, tokens: Sequence[int]) -> list[int]:
        """Where the parts of a prompt end, but for the last one, which is always read."""
        ends: list[int] = []
        for at, token in enumerate(tokens[:-1], start=1):
            if token in self._turn_ends and at - (ends[-1] if ends else 0) >= PART_TOKENS:
                ends.append(at)
        return ends

    def _deepest(
        self, tokens: Sequence[int], adapter: str, ends: Sequence[int]
    ) -> tuple[DynamicCache, int]:
        for end in reversed(ends):
            key = (adapter, tuple(tokens[:end]))
            known = self._known.pop(key, None)
            if known is not None:
                self._known[key] = known
                return _copy(known), end
        return DynamicCache(), 0

    def _remember(self, key: tuple[str, tuple[int, ...]], cache: DynamicCache) -> DynamicCache:
        """Keep a cache; the copy with which to go on, as one that is remembered would be."""
        self._known[key] = cache
        self._size_bytes += _size_bytes(cache)
        while self._size_bytes > self._limit_bytes and self._known:
            oldest = next(iter(self._known))
            self._size_bytes -= _size_bytes(self._known.pop(oldest))
        return _copy(cache)


def _copy(cache: DynamicCache) -> DynamicCache:
    # `clone` gives memory of its own, as alignment may change the last digits of a sum.
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copy.update(
            layer.keys.clone(memory_format=torch.contiguous_format),
            layer.values.clone(memory_format=torch.contiguous_format),
            number,
        )
    return copy


def _size_bytes(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
