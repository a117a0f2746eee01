"""Low-rank adapters over the linear layers of one model: many in a batch, one base in memory.

An adapter changes the output of a layer from `base(x)` to `base(x) + x down^T up`. Rows of
different adapters share every pass of the base. The adapters' own products are two for each
layer, whatever the number of adapters: their `down` matrices are laid side by side, what
a row got from others' is set to zero, and the rest goes through the `up` matrices below
one another. A zero times a finite number adds nothing, so no row feels another's adapter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

#: Most bytes of adapters that one model keeps for later batches.
CACHE_BYTES = 1 << 30
#: What keeping the reason of a refusal counts for.
_REFUSAL_BYTES = 1024

#: Layers, and what runs in place of each one's `forward`.
Forwards = list[tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one layer: `down` `[rank, in]`, and `up` `[rank, out]`, scaled.

    All numbers are finite. (PEFT calls them A and B; `up` is B transposed, times its scale.)
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in memory, checked against its base; `updates` by the name of the layer."""

    name: str
    updates: Mapping[str, Update]

    @property
    def size_bytes(self) -> int:
        pairs = self.updates.values()
        return sum(one.nbytes for update in pairs for one in (update.down, update.up))


class AdapterCache:
    """The adapters that one model used last, up to a number of bytes; reasons of refusals too."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._kept: dict[tuple[str, str], Adapter | str] = {}

    def get(self, adapter: str, model: str) -> Adapter | str | None:
        found = self._kept.pop((adapter, model), None)
        if found is not None:
            self._kept[adapter, model] = found
        return found

    def put(self, adapter: str, model: str, read: Adapter | str) -> None:
        """Keep it, and let go of those that were used longest ago."""
        self._kept[adapter, model] = read
        self.size_bytes += _bytes_of(read)
        while self.size_bytes > self.limit_bytes and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            self.size_bytes -= _bytes_of(self._kept.pop(oldest))


@dataclass(slots=True)
class _Layout:
    """Layers at which the same adapters have the same ranks, and so one mask for all of them.

    Attributes:
        owners: `[ranks]`, the number of the adapter that each column belongs to.
        foreign: `[rows, 1, ranks]`, true where a column is not of the row's adapter.
    """

    owners: torch.Tensor
    foreign: torch.Tensor

    def set_rows(self, owners: torch.Tensor) -> None:
        self.foreign = (owners[:, None] != self.owners[None])[:, None]


@dataclass(slots=True)
class _Mixture:
    """Several adapters side by side, ready to run; `rows` are those of the present masks."""

    adapters: tuple[Adapter, ...]
    forwards: Forwards
    layouts: list[_Layout]
    rows: tuple[Adapter | None, ...] = ()

    def set_rows(self, rows: tuple[Adapter | None, ...]) -> None:
        if rows == self.rows:
            return
        numbers = {adapter: number for number, adapter in enumerate(self.adapters)}
        owners = [-1 if adapter is None else numbers[adapter] for adapter in rows]
        for layout in self.layouts:
            layout.set_rows(torch.tensor(owners, device=layout.owners.device))
        self.rows = rows


@dataclass(slots=True)
class Adapting:
    """Puts adapters onto the layers of one model for the time of a pass. Not for threads."""

    model: torch.nn.Module
    _mixture: _Mixture | None = None
    _single: tuple[Adapter, Forwards] | None = None
    _layers: dict[str, torch.nn.Module] = field(default_factory=dict)

    @contextmanager
    def on(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Within it, row i of a pass is adapted by `adapters[i]`; one entry serves all rows."""
        if not any(adapters):
            yield
            return
        forwards = self._forwards(tuple(adapters))
        # A module's own attributes come before its class's: this costs less than hooks, and
        # nothing at all while no adapter is on.
        for layer, forward in forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in forwards:
                del layer.__dict__["forward"]

    def _forwards(self, rows: tuple[Adapter | None, ...]) -> Forwards:
        wanted = dict.fromkeys(rows)
        if len(wanted) == 1:
            return self._alone(next(adapter for adapter in wanted if adapter))
        adapters = tuple(adapter for adapter in wanted if adapter)
        mixture = self._mixture
        # Rows end one by one: what is mixed already serves until half of it lies idle.
        if (
            mixture is None
            or not set(adapters) <= set(mixture.adapters)
            or 2 * len(adapters) <= len(mixture.adapters)
        ):
            mixture = self._mixture = self._mixed(adapters)
        mixture.set_rows(rows)
        return mixture.forwards

    def _alone(self, adapter: Adapter) -> Forwards:
        if self._single is not None and self._single[0] is adapter:
            return self._single[1]
        forwards: Forwards = []
        for name, update in adapter.updates.items():
            layer = self._layer(name)
            alone = partial(_adapted, type(layer).forward, layer, update.down, update.up)
            forwards.append((layer, alone))
        self._single = adapter, forwards
        return forwards

    def _mixed(self, adapters: tuple[Adapter, ...]) -> _Mixture:
        layouts: dict[tuple[tuple[int, int], ...], _Layout] = {}
        forwards: Forwards = []
        for name in dict.fromkeys(name for adapter in adapters for name in adapter.updates):
            updates = {n: a.updates[name] for n, a in enumerate(adapters) if name in a.updates}
            shape = tuple((number, update.rank) for number, update in updates.items())
            down = torch.cat([update.down for update in updates.values()])
            up = torch.cat([update.up for update in updates.values()])
            if shape not in layouts:
                owners = [number for number, rank in shape for _ in range(rank)]
                layouts[shape] = _Layout(
                    torch.tensor(owners, device=down.device), down.new_empty(0)
                )
            layer = self._layer(name)
            mixed = partial(_mixed, type(layer).forward, layer, down, up, layouts[shape])
            forwards.append((layer, mixed))
        return _Mixture(adapters, forwards, list(layouts.values()))

    def _layer(self, name: str) -> torch.nn.Module:
        if not self._layers:
            self._layers = dict(self.model.named_modules())
        return self._layers[name]


def _adapted(
    forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    layer: torch.nn.Module,
    down: torch.Tensor,
    up: torch.Tensor,
    x: torch.Tensor,
) -> torch.Tensor:
    out = forward(layer, x)
    low = torch.nn.functional.linear(x, down)
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up)
    return out


def _mixed(
    forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
    layer: torch.nn.Module,
    down: torch.Tensor,
    up: torch.Tensor,
    layout: _Layout,
    x: torch.Tensor,
) -> torch.Tensor:
    out = forward(layer, x)
    # Filled, not multiplied: what overflows in another tenant's adapter must not reach a row.
    low = torch.nn.functional.linear(x, down)
    # Some layers get `[rows * tokens, in]`, in this order.
    low.view(len(layout.foreign), -1, low.shape[-1]).masked_fill_(layout.foreign, 0)
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up)
    return out


def _bytes_of(kept: Adapter | str) -> int:
    return _REFUSAL_BYTES if isinstance(kept, str) else kept.size_bytes
