"""Trainings on a tiny model, without a worker: run, stopped at a step, or killed, and resumed."""

import errno
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.operators.train import PARAMS
from flowmesh.runtimes.base import Done, Failed, Outcome, Progress, Stopped, Unwatched, Work
from flowmesh.runtimes.training.engine import open_trainer
from flowmesh.spec.action import Action, Artifact
from support.blobs import DirBlobs
from support.tiny_model import make_tiny

REWARDS = """
def brief(prompts, completions, want, **more):
    assert len(prompts) == len(completions) == len(want)
    return [sum(letter in "eE" for letter in text) / 10 for text in completions]
"""
_DRAWS = {"function": "brief", "num_generations": 2, "max_completion_length": 8}


def chat(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def rows_for(op: str, count: int = 12) -> list[dict[str, Any]]:
    """Rows of the format that an operator takes; plain for some, chats for others."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        row: dict[str, Any]
        question, good, bad = f"What is {n}?", f" The mountain {n} by the river.", f" no {n}"
        match op:
            case "sft":
                row = {"prompt": question, "completion": good}
            case "dpo" | "reward_model":
                answers = {"chosen": chat("assistant", good), "rejected": chat("assistant", bad)}
                row = {"prompt": chat("user", question), **answers}
            case "kto":
                row = {"prompt": question, "completion": good, "label": n % 2 == 0}
            case _:
                row = {"prompt": question, "want": good}
        rows.append(row)
    return rows


class Killed(Exception):
    """Stands for a worker that vanishes right after a checkpoint."""


class Watcher(Unwatched):
    """A monitor that asks to stop after a step, or raises where a worker would vanish."""

    interruptions_per_hour = 1.0

    def __init__(self, *, stop_at: int | None = None, kill_at: int | None = None) -> None:
        self._stop_at, self._kill_at = stop_at, kill_at
        self.saves: list[tuple[int, Digest]] = []
        self.heard: list[Progress] = []

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        # Asked at the end of a step, before that step is told.
        done = self.heard[-1].step if self.heard else 0
        return self._stop_at is not None and done + 1 >= self._stop_at

    def progress(self, progress: Progress) -> None:
        self.heard.append(progress)

    def saved(self, tree: Digest, step: int) -> None:
        self.saves.append((step, tree))
        if step == self._kill_at:
            raise Killed


class Bench:
    """A store with a tiny model in it, and the engine."""

    def __init__(self, root: Path) -> None:
        self.blobs = DirBlobs(root / "store")
        self.root = root
        gc.freeze()  # as a worker's zygote does: what was imported is not looked through again
        self.model = self.tree(make_tiny(root / "tiny"))
        self.rewards = self.blobs.put_file(REWARDS)

    def tree(self, folder: Path) -> Artifact:
        return Artifact("tree", str(self.blobs.put_tree(folder)))

    def action(
        self,
        op: str,
        rows: list[dict[str, Any]] | None = None,
        ports: Mapping[str, Artifact] | None = None,
        **params: Any,
    ) -> Action:
        """4 steps of 4 rows, logged in pairs, unless said otherwise."""
        inputs: dict[str, Any] = {"model": self.model}
        if op in ("grpo", "rloo") and params.get("function", "") is not None:
            params, inputs = {**_DRAWS, **params}, {**inputs, "file": self.rewards}
        usual = {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 2}
        checked = PARAMS[op].model_validate({**usual, "learning_rate": 1e-3, **params})
        inputs["data"] = self.blobs.put_table(rows_for(op) if rows is None else rows)
        plain = checked.model_dump(mode="json")
        return Action(op, 1, plain, {**inputs, **(ports or {})}, f"trl/{plain['dtype']}")

    def outcome(
        self, action: Action, watcher: Watcher | None = None, checkpoint: Digest | None = None
    ) -> Outcome:
        work = Work("task", action, checkpoint, watcher or Watcher())
        (found,) = open_trainer(self.blobs, action.inputs, action.engine).run([work])
        return found

    def done(self, action: Action, **more: Any) -> dict[str, Artifact]:
        """The outputs of a training that is expected to work."""
        outcome = self.outcome(action, **more)
        assert isinstance(outcome, Done), outcome
        return outcome.result.outputs

    def refused(self, action: Action) -> str:
        """The message of a training that is expected to be refused."""
        outcome = self.outcome(action)
        assert isinstance(outcome, Failed), outcome
        assert outcome.kind == "input", outcome
        assert "Traceback" not in outcome.message
        return outcome.message

    def interrupted(self, action: Action, watcher: Watcher) -> Digest:
        """Run until the watcher ends it; the tree of the last checkpoint."""
        try:
            outcome = self.outcome(action, watcher)
        except (Stopped, Killed):
            return watcher.saves[-1][1]
        raise AssertionError(f"was not interrupted: {outcome}")

    def summary(self, outputs: Mapping[str, Artifact]) -> dict[str, Any]:
        (row,) = self.blobs.rows(outputs["summary"])
        return row


class FullDisk(DirBlobs):
    """A store whose disk is full when the n-th checkpoint comes."""

    def __init__(self, other: DirBlobs, full_at: int) -> None:
        self.__dict__ |= vars(other)
        self._left = full_at

    def put_tree(self, folder: Path) -> Digest:
        self._left -= 1
        if self._left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().put_tree(folder)


def weights_of(outputs: Mapping[str, Artifact]) -> str:
    """The digest of what was trained."""
    return outputs["adapter" if "adapter" in outputs else "model"].digest
