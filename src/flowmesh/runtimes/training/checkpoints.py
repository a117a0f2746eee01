"""Checkpoints: how a trainer's folder becomes a tree of the store.

The trainer writes its folder in place, file after file. It counts once its tree is whole; the
folder stays until the next one is, for an attempt that runs out of memory. Torch's own files in
it are read back as weights only: nothing is unpickled that could run.
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import transformers

from flowmesh.runtimes.base import Blobs, Monitor
from flowmesh.runtimes.pace import Pace
from flowmesh.runtimes.training import team

#: What the resume needs of a trainer's folder; the tokenizer and the arguments it does not.
_NEEDED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "*.pt",
    "*.pth",
    "trainer_state.json",
)
_STATE_FILE = "flowmesh.json"
BEST_FILE = "best.safetensors"
#: The folder of the last checkpoint that is whole, in the directory of an attempt.
WHOLE = "whole"
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: safetensors passes the system's words on; torch tells no more than that it wrote too little.
_FULL_WORDS = ("No space left on device", "iostream error", "] . unexpected pos ")


@dataclass
class Story:
    """What a training remembers beside the trainer's own state.

    Attributes:
        resumed_from: the steps at which it went on after an interruption.
        micro_batch: rows that are computed at once, where memory was too short for those asked.
        notes: what the summary tells.
    """

    resumed_from: list[int] = field(default_factory=list)
    micro_batch: int | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_story(checkpoint: Path) -> Story:
    return Story(**json.loads((checkpoint / _STATE_FILE).read_bytes()))


def step_of(checkpoint: Path) -> int:
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return int(state["global_step"])


class Keeper:
    """Takes checkpoints of one trainer, at its pace."""

    def __init__(
        self, blobs: Blobs, monitor: Monitor, story: Story, every_steps: int | None
    ) -> None:
        self._blobs, self._monitor, self._story = blobs, monitor, story
        self.pace = Pace(every_steps, monitor.interruptions_per_hour)

    def save(self, trainer: transformers.Trainer, model: Any) -> None:
        """Take one. A disk that is full costs this checkpoint only, and is noted.

        All processes of a training write to one folder; the first makes the tree.
        """
        step, root = trainer.state.global_step, Path(trainer.args.output_dir)
        began = time.monotonic()
        # TRL's own would write a model card too.
        well = _written(lambda: transformers.Trainer._save_checkpoint(trainer, model, None))
        well = team.all_well(well)
        if team.is_first():
            folder = root / f"checkpoint-{step}"
            well = well and _written(lambda: self._keep(folder, step))
            shutil.rmtree(folder, ignore_errors=True)
        self.pace.took(began)
        if team.is_first() and not well:
            shutil.rmtree(root / WHOLE, ignore_errors=True)  # room for the next one
            self._story.note(
                f"the disk was full at step {step}: that checkpoint was not kept, the one of step"
                f" {self.pace.saved_step} was"
            )

    def _keep(self, folder: Path, step: int) -> None:
        root = folder.parent
        tree = self._blobs.put_tree(self._packed(folder, root / BEST_FILE))
        whole, old = root / WHOLE, root / "old"
        # Renamed, not removed: whoever looks finds a whole folder or none.
        if whole.exists():
            whole.rename(old)
        folder.rename(whole)
        shutil.rmtree(old, ignore_errors=True)
        self.pace.saved_step = step
        self._monitor.saved(tree, step)

    def _packed(self, folder: Path, best: Path) -> Path:
        """The folder, without what the resume does not need and with what only we know."""
        for path in sorted(folder.iterdir()):
            # A folder holds the adapter to compare with, which is made again from the start's;
            # beside it, transformers would not load the one that is trained.
            if path.is_dir():
                shutil.rmtree(path)
            elif not any(path.match(pattern) for pattern in _NEEDED):
                path.unlink()
        if best.exists():
            shutil.copyfile(best, folder / BEST_FILE)
        (folder / _STATE_FILE).write_text(json.dumps(asdict(self._story)))
        return folder


def _written(write: Callable[[], None]) -> bool:
    """Whether there was room on the disk for it."""
    try:
        write()
    except Exception as error:  # whatever library hit the full disk, in its own words
        if not is_disk_full(error):
            raise
        return False
    return True


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whatever it was turned into on its way."""
    return any(
        getattr(one, "errno", None) in _FULL or any(words in str(one) for words in _FULL_WORDS)
        for one in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
