"""A training's process that fails at a step: `HURT=rank:step:memory` or `rank:step:kill`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import transformers

from flowmesh.runtimes.training import process, team


def _hurt(rank: int, at: int, how: str) -> None:
    plain = transformers.Trainer.training_step

    def step(self: Any, *given: Any, **named: Any) -> Any:
        if (team.rank(), self.state.global_step + 1, self.args.train_batch_size) == (rank, at, 4):
            if how == "memory":
                raise MemoryError("too much")
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *given, **named)

    transformers.Trainer.training_step = step


if __name__ == "__main__":
    rank, at, how = os.environ["HURT"].split(":")
    _hurt(int(rank), int(at), how)
    sys.exit(process.main(Path(sys.argv[1])))
