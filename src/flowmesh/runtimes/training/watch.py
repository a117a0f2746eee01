"""What happens between a trainer's steps: logs, progress, evaluation, checkpoints, and stops."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file

from flowmesh.operators.train_params import TrainParams
from flowmesh.runtimes.base import Monitor, Progress
from flowmesh.runtimes.training import team
from flowmesh.runtimes.training.checkpoints import BEST_FILE, Keeper
from flowmesh.runtimes.training.energy import Meter
from flowmesh.runtimes.training.refused import Diverged

#: Keys that we add to the trainer's log, which its checkpoints carry.
SECONDS, JOULES, TOKENS = "flowmesh_seconds", "flowmesh_joules", "flowmesh_tokens"
_EVALUATIONS = 10
#: What may be wished for at the end of a step.
_GO_ON, _SAVE, _STOP = range(3)

Log = list[dict[str, Any]]


def trained(log: Sequence[dict[str, Any]]) -> Log:
    """The entries of steps."""
    return [entry for entry in log if "loss" in entry]


def evaluated(log: Sequence[dict[str, Any]]) -> Log:
    """The entries of evaluations."""
    return [entry for entry in log if "eval_loss" in entry]


def best_evaluation(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first of the lowest losses."""
    return min(evaluated(log), key=lambda entry: float(entry["eval_loss"]))


def has_lost_patience(log: Sequence[dict[str, Any]], patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought no lower loss."""
    found = evaluated(log)
    if patience is None or not found:
        return False
    return len(found) - 1 - found.index(best_evaluation(log)) >= patience


class Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Sits in the trainer's loop.

    All that decides about the result is read from the trainer's state, which a checkpoint
    carries: a training that was interrupted decides as one that was not.
    """

    def __init__(
        self, params: TrainParams, monitor: Monitor, keeper: Keeper, *, evaluates: bool
    ) -> None:
        self._params, self._monitor, self._keeper = params, monitor, keeper
        self._evaluates = evaluates
        #: Steps that share completions: only between them is nothing in the air.
        self._stride = int(getattr(params, "num_iterations", 1))
        self._meter = Meter()
        self._began = time.monotonic()
        self._first_step = 0
        self._before: dict[str, Any] = {}
        self.stopped = False
        #: Set by whoever builds the trainer, which is made after its callbacks.
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._began = time.monotonic()
        self._first_step = state.global_step
        self._before = (trained(state.log_history) or [{}])[-1]
        self._keeper.pace.saved_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_evaluate = self._evaluates and (last or step % self._eval_steps(state) == 0)
        control.should_save = False
        if last or step % self._stride:
            return
        wish = team.agreed(self._wish(step))
        control.should_save = wish >= _SAVE
        if wish == _STOP:
            self.stopped = control.should_training_stop = True

    def _wish(self, step: int) -> int:
        if self._monitor.stopping:
            return _STOP
        return _SAVE if self._keeper.pace.is_due(step) else _GO_ON

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        entry = state.log_history[-1]
        for name in ("loss", "grad_norm", "eval_loss"):
            if entry.get(name) is not None and not math.isfinite(entry[name]):
                raise Diverged(self._diverged(name, entry, state))
        if "loss" in entry:
            self._complete(entry, state)
            self._monitor.progress(Progress(state.global_step, state.max_steps, self._facts(entry)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        patience = self._params.early_stopping_patience
        if patience is None:
            return
        best = best_evaluation(state.log_history)["step"]
        if best == state.global_step and team.is_first():
            weights = {
                name: one.detach().clone().contiguous()
                for name, one in self.trainer.model.named_parameters()
                if one.requires_grad
            }
            save_file(weights, Path(args.output_dir) / BEST_FILE)
        if has_lost_patience(state.log_history, patience):
            # A checkpoint of a step that nothing follows would only cost.
            self.stopped = control.should_save = False
            control.should_training_stop = True

    def _eval_steps(self, state: Any) -> int:
        return self._params.eval_steps or math.ceil(state.max_steps / _EVALUATIONS)

    def _complete(self, entry: dict[str, Any], state: Any) -> None:
        """Add what the trainer does not log, counted over all attempts."""
        before = self._before
        entry[SECONDS] = before.get(SECONDS, 0.0) + time.monotonic() - self._began
        joules = self._meter.joules()
        if joules is not None:
            entry[JOULES] = before.get(JOULES, 0.0) + joules
        tokens = int(entry.get("num_tokens", 0))
        # GRPO and RLOO keep their count in the state; the others begin at 0 again.
        if not state.num_input_tokens_seen:
            tokens += before.get(TOKENS, 0)
        entry[TOKENS] = tokens

    def _facts(self, entry: dict[str, Any]) -> dict[str, float]:
        took = max(entry[SECONDS] - self._before.get(SECONDS, 0.0), 1e-9)
        done = max(entry["step"] - self._first_step, 1)
        tokens = entry[TOKENS] - self._before.get(TOKENS, 0)
        left = self.trainer.state.max_steps - entry["step"]
        facts = {
            "loss": entry["loss"],
            "learning_rate": entry["learning_rate"],
            "tokens_per_s": tokens / took,
            "left_s": left * took / done,
        }
        if entry.get("reward") is not None:
            facts["reward"] = entry["reward"]
        return facts

    def _diverged(self, name: str, entry: dict[str, Any], state: Any) -> str:
        known = (trained(state.log_history) or [entry])[-1]
        rate = known.get("learning_rate", self._params.learning_rate)
        what = {"loss": "the loss", "grad_norm": "the gradient", "eval_loss": "the eval loss"}
        kept = self._keeper.pace.saved_step
        tail = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due before"
        return (
            f"{what[name]} is {entry[name]} at step {state.global_step} of {state.max_steps}, at a"
            f" learning rate of {rate:g}; lower `learning_rate` or `max_grad_norm`, or look at the"
            f" rows of that step; {tail}"
        )
