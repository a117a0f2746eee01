"""Attention caches as a decoder needs them: many rows in one buffer, or one row alone.

transformers' own cache grows by copying itself at every token and drops rows by copying
what is left. Here rows live in a buffer with room to grow, a finished row's place is
taken by the last one, and a row's prompt can be read back bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

#: Room is added in steps of this many tokens, or a half more, whichever is larger.
_ROOM_TOKENS = 64


class _RowsLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer for all rows: `[rows, heads, room, width]` each."""

    def __init__(self, shape: torch.Size, like: torch.Tensor, value_width: int) -> None:
        super().__init__()
        self.key_room = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.value_room = torch.zeros(
            (*shape[:-1], value_width), dtype=like.dtype, device=like.device
        )
        self.dtype, self.device = like.dtype, like.device
        self.is_initialized = True

    def show(self, rows: int, length: int) -> None:
        self.keys = self.key_room[:rows, :, :length]
        self.values = self.value_room[:rows, :, :length]

    def grow(self, room: int) -> None:
        self.key_room = _grown(self.key_room, room)
        self.value_room = _grown(self.value_room, room)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, length = self.keys.shape[0], self.keys.shape[2]
        after = length + key_states.shape[2]
        self.key_room[:rows, :, length:after] = key_states
        self.value_room[:rows, :, length:after] = value_states
        self.show(rows, after)
        return self.keys, self.values


class RowCache:
    """The caches of several rows, padded on the left to one length, as a model takes them.

    Attributes:
        cache: what to pass as `past_key_values`; a forward pass appends to it.
        mask: `[rows, room]`, 1 where a row has a token, on the model's device; the columns
            behind the present length are 1 already.
    """

    def __init__(self, prompts: Sequence[DynamicCache]) -> None:
        lengths = [int(prompt.get_seq_length()) for prompt in prompts]
        self.rows, self.length = len(prompts), max(lengths)
        self._starts = [self.length - length for length in lengths]
        self._prompt_end = self.length
        room = self.length + _ROOM_TOKENS
        self.layers: list[_RowsLayer] = []
        for number, first in enumerate(prompts[0].layers):
            heads, width = first.keys.shape[1], first.keys.shape[3]
            shape = torch.Size((self.rows, heads, room, width))
            layer = _RowsLayer(shape, first.keys, first.values.shape[3])
            for row, prompt in enumerate(prompts):
                place = (row, slice(None), slice(self._starts[row], self.length))
                layer.key_room[place] = prompt.layers[number].keys[0]
                layer.value_room[place] = prompt.layers[number].values[0]
            layer.show(self.rows, self.length)
            self.layers.append(layer)
        self.cache = Cache(layers=list(self.layers))
        self.mask = torch.ones((self.rows, room), dtype=torch.long, device=layer.device)
        for row, start in enumerate(self._starts):
            self.mask[row, :start] = 0

    @property
    def padded(self) -> bool:
        return any(self._starts[: self.rows])

    def reserve(self) -> None:
        """Have room for one more token."""
        room = self.mask.shape[1]
        if self.length < room:
            return
        room += max(_ROOM_TOKENS, room // 2)
        for layer in self.layers:
            layer.grow(room)
            layer.show(self.rows, self.length)
        more = torch.ones(
            (len(self.mask), room - self.mask.shape[1]),
            dtype=self.mask.dtype,
            device=self.mask.device,
        )
        self.mask = torch.cat([self.mask, more], dim=1)

    def appended(self) -> None:
        """Note that a forward pass has added one token to every row."""
        self.length += 1

    def prompt(self, row: int) -> DynamicCache:
        """A copy of what the prompt of a row left in the cache: the same bytes as went in."""
        alone = DynamicCache()
        place = (slice(row, row + 1), slice(None), slice(self._starts[row], self._prompt_end))
        for number, layer in enumerate(self.layers):
            # `clone` gives memory of its own, as alignment may change the last digits of a sum.
            alone.update(
                layer.key_room[place].clone(memory_format=torch.contiguous_format),
                layer.value_room[place].clone(memory_format=torch.contiguous_format),
                number,
            )
        return alone

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            for layer in self.layers:
                layer.key_room[row] = layer.key_room[last]
                layer.value_room[row] = layer.value_room[last]
            self.mask[row] = self.mask[last]
            self._starts[row] = self._starts[last]
        self.rows = last
        for layer in self.layers:
            layer.show(self.rows, self.length)


def _grown(tensor: torch.Tensor, room: int) -> torch.Tensor:
    bigger = tensor.new_zeros((*tensor.shape[:2], room, tensor.shape[3]))
    bigger[:, :, : tensor.shape[2]] = tensor
    return bigger
