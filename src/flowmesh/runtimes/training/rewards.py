"""Rewards of `grpo` and `rloo`: a function of the user's, and a model that scores.

The function runs as those of the operator `python` do: in a process of its own with an
emptied environment, limits of time and address space, and killed with all that it started.
What is said there holds here too: this limits mistakes, and is no wall against malice.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.base.nearest import nearest
from flowmesh.runtimes.python_process import FunctionProcess, ProcessEnded, TookTooLong
from flowmesh.runtimes.rows import Row
from flowmesh.runtimes.training.refused import Refused
from flowmesh.spec.table import encode_rows

#: A column of the trainer's data that leads back to the row's other columns.
ROW = "flowmesh_row"
_MB = 1_000_000


class RewardFunction:
    """Called by TRL's trainer with a batch of completions. Raises Refused.

    Args:
        source: the user's file.
        rows: what was dropped from each row of the data, by its number in `ROW`.
        alone: whether there are no other rewards, so that it may not leave out all.
    """

    def __init__(
        self, source: Path, params: Any, rows: Sequence[Row], *, home: Path, alone: bool
    ) -> None:
        self._params, self._rows, self._home, self._alone = params, rows, home, alone
        self.__name__: str = params.function
        self._process = self._load(source, self.__name__)

    def __call__(
        self, prompts: list[Any], completions: list[Any], **more: Any
    ) -> list[float | None]:
        rows = [self._rows[number] for number in more[ROW]]
        names = dict.fromkeys(name for row in rows for name in row)
        columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
        columns |= {"prompts": prompts, "completions": completions}
        # Equal completions are judged with equal draws, also after an interruption.
        seed = str(Digest.of(encode_rows([columns])))
        answer = self._ask(self._process, {"columns": columns, "seed": seed})
        return self._checked(answer["rewards"], len(completions))

    def close(self) -> None:
        self._process.close()

    def _load(self, source: Path, function: str) -> FunctionProcess:
        process = FunctionProcess(self._home)
        setup = {
            "source": str(source),
            "function": function,
            "memory_bytes": self._params.memory_mb * _MB,
            "parent": os.getpid(),
        }
        try:
            answer = self._ask(process, setup)
        except Refused:
            process.close()
            raise
        if "missing" in answer:
            process.close()
            known = nearest(function, answer["missing"])
            raise Refused(f"`file` has no function {function!r}{known}")
        return process

    def _ask(self, process: FunctionProcess, request: dict[str, Any]) -> dict[str, Any]:
        limit_s = self._params.timeout_s
        cpu_s = math.ceil(limit_s * (os.cpu_count() or 1)) + 1
        name = f"the reward function {self.__name__}()"
        try:
            answer = process.ask({**request, "cpu_s": cpu_s}, timeout_s=limit_s)
        except TookTooLong:
            raise Refused(f"{name} was killed at its limit of {limit_s:g} s") from None
        except ProcessEnded as ended:
            raise Refused(f"{name} {ended}") from None
        if "memory" in answer:
            raise Refused(f"{name} needs more than `memory_mb`: {self._params.memory_mb} MB")
        if "failed" in answer:
            raise Refused(f"the reward function: {answer['failed']}")
        return answer

    def _checked(self, rewards: list[float | None], expected: int) -> list[float | None]:
        if len(rewards) != expected:
            raise Refused(
                f"the reward function {self.__name__}() returned {len(rewards)} rewards for"
                f" {expected} completions"
            )
        if self._alone and all(one is None for one in rewards):
            raise Refused(
                f"the reward function {self.__name__}() returned None for all {expected}"
                " completions, and there is no other reward: nothing can be learnt"
            )
        return rewards
