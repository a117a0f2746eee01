"""Checkpoints of an update: between two steps, all that the later ones depend on.

A tree of four files. What never changes during an update is a file of its own, which the
store keeps once. Optimisers count steps in their own state, so the learning rate's too.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmesh.runtimes.base import Blobs, Monitor
from flowmesh.runtimes.pace import Pace
from flowmesh.runtimes.policy.update import Prepared, Update
from flowmesh.runtimes.rows import Row
from flowmesh.runtimes.training.checkpoints import is_disk_full

_STATE, _WEIGHTS, _OPTIMISERS = "state.json", "weights.safetensors", "optimisers.safetensors"
_PREPARED = "prepared.safetensors"


@dataclass
class Story:
    """What an update remembers beside its tensors.

    Attributes:
        log: the rows of `metrics` so far; the next step is the one behind them.
        resumed_from: the steps at which it went on after an interruption.
        halvings: how often the micro-batch was halved, for want of memory.
        notes: what the summary tells.
    """

    log: list[Row] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)
    halvings: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.log)


def read_story(folder: Path) -> Story:
    return Story(**json.loads((folder / _STATE).read_bytes()))


class Keeper:
    """Takes checkpoints of one update, at its pace."""

    def __init__(
        self, blobs: Blobs, monitor: Monitor, update: Update, prepared: Prepared, story: Story
    ) -> None:
        self._blobs, self._monitor, self._story = blobs, monitor, story
        self._update, self._prepared = update, prepared
        self.pace = Pace(update.params.checkpoint_steps, monitor.interruptions_per_hour)
        self.pace.saved_step = story.step

    def save(self) -> None:
        """Take one. A disk that is full costs this checkpoint only, and is noted."""
        began, folder = time.monotonic(), self._blobs.scratch()
        try:
            write(folder, self._update, self._prepared, self._story)
            tree = self._blobs.put_tree(folder)
        except Exception as error:  # whatever library hit the full disk, in its own words
            if not is_disk_full(error):
                raise
            self._story.notes.append(
                f"the disk was full at step {self._story.step}: no checkpoint of it was kept"
            )
        else:
            self.pace.saved_step = self._story.step
            self._monitor.saved(tree, self._story.step)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self.pace.took(began)


def write(folder: Path, update: Update, prepared: Prepared, story: Story) -> None:
    """Write a checkpoint into an empty directory."""
    _save(prepared.tensors(), folder / _PREPARED)
    weights = {
        f"{name}/{parameter}": tensor
        for name, network in update.networks.items()
        for parameter, tensor in network.trained().items()
    }
    _save(weights, folder / _WEIGHTS)
    moments = {
        f"{name}/{number}/{moment}": tensor
        for name, optimiser in update.optimisers.items()
        for number, state in optimiser.state_dict()["state"].items()
        for moment, tensor in state.items()
    }
    _save(moments, folder / _OPTIMISERS)
    (folder / _STATE).write_text(json.dumps(asdict(story)))


def restore(folder: Path, update: Update) -> Prepared:
    """Put an update's networks and optimisers where a checkpoint has them."""
    weights = load_file(folder / _WEIGHTS)
    moments = load_file(folder / _OPTIMISERS)
    with torch.no_grad():
        for name, network in update.networks.items():
            for parameter, tensor in network.trained().items():
                tensor.copy_(weights[f"{name}/{parameter}"])
    for name, optimiser in update.optimisers.items():
        state = optimiser.state_dict()
        optimiser.load_state_dict({**state, "state": _of(name, moments)})
    return Prepared(**load_file(folder / _PREPARED))


def _of(name: str, moments: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        owner, number, moment = key.split("/")
        if owner == name:
            found.setdefault(int(number), {})[moment] = tensor
    return found


def _save(tensors: Mapping[str, Any], path: Path) -> None:
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    save_file(plain, path)
