"""The attempts at a training: from its last checkpoint, and once more where memory ran short."""

import gc
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flowmesh.operators.train import PARAMS
from flowmesh.operators.train_params import TrainParams
from flowmesh.runtimes.base import Blobs, Work
from flowmesh.runtimes.training.checkpoints import WHOLE, Story, read_story, step_of
from flowmesh.runtimes.training.trainers import KINDS
from flowmesh.spec.action import Action, Result


@dataclass(frozen=True, slots=True)
class Start:
    """Where an attempt begins.

    Attributes:
        checkpoint: the directory of the last whole checkpoint, if there is one.
        story: what earlier attempts left to be told.
    """

    checkpoint: Path | None
    story: Story


#: Makes one attempt, in an empty directory that outlives it.
Attempt = Callable[[Start, Path], Result]


def train(work: Work, blobs: Blobs, attempt: Attempt) -> Result:
    """Raises what an attempt does; MemoryError only where no smaller micro-batch is left to try."""
    start = _first(work, blobs)
    with ExitStack() as leaving:

        def folder() -> Path:
            made = blobs.scratch()
            leaving.callback(shutil.rmtree, made, ignore_errors=True)
            return made

        home = folder()
        try:
            return attempt(start, home)
        except MemoryError as error:
            micro_batch = smaller_batch(work.action, start.story)
            if micro_batch is None:
                raise
            shortage = str(error) or "out of memory"
        # Only here has the frame of the failed attempt let go of its tensors.
        gc.collect()
        again = _newest(home) or start
        step = step_of(again.checkpoint) if again.checkpoint else 0
        again.story.micro_batch = micro_batch
        again.story.note(
            f"{shortage}: went on from step {step} with micro-batches of {micro_batch} rows, and"
            " accumulates the more of them"
        )
        return attempt(again, folder())


def smaller_batch(action: Action, story: Story) -> int | None:
    """The largest part of the micro-batch that makes whole steps; None if there is no such part,
    or one is used already."""
    params = PARAMS[action.op].model_validate(action.params)
    assert isinstance(params, TrainParams), params
    whole, least = params.per_device_train_batch_size, KINDS[action.op].least_batch
    if story.micro_batch is not None:
        return None
    return max((n for n in range(least, whole) if whole % n == 0), default=None)


def _first(work: Work, blobs: Blobs) -> Start:
    if work.checkpoint is None:
        return Start(None, Story())
    checkpoint = blobs.tree(work.checkpoint)
    story = read_story(checkpoint)
    story.resumed_from.append(step_of(checkpoint))
    return Start(checkpoint, story)


def _newest(home: Path) -> Start | None:
    """What an attempt left in its directory, if it came to a checkpoint."""
    whole = home / WHOLE
    return Start(whole, read_story(whole)) if whole.exists() else None
