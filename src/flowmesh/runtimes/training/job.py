"""One training: read, check, build TRL's trainer, let it run, and keep what it made."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PrinterCallback, set_seed

from flowmesh.operators.train import PARAMS
from flowmesh.operators.train_params import TrainParams
from flowmesh.runtimes.base import Blobs, Monitor, Stopped
from flowmesh.runtimes.lora_trees import LANGUAGE_MODEL, SCORER, read_start
from flowmesh.runtimes.rows import Row, store_table
from flowmesh.runtimes.training import data, lengths, models, outputs, rewards, settings, team
from flowmesh.runtimes.training.attempts import Start
from flowmesh.runtimes.training.checkpoints import BEST_FILE, Keeper
from flowmesh.runtimes.training.curve import draw_curve
from flowmesh.runtimes.training.refused import Refused, Unfinished
from flowmesh.runtimes.training.resuming import Resumable
from flowmesh.runtimes.training.trainers import KINDS
from flowmesh.runtimes.training.watch import Watch, best_evaluation, has_lost_patience
from flowmesh.runtimes.weights import memory_errors
from flowmesh.spec.action import Action, Artifact, Result, Usage


class Job:
    """One attempt at a task's training, in this process; of several, each makes it alike."""

    def __init__(
        self, action: Action, monitor: Monitor, blobs: Blobs, start: Start, folder: Path
    ) -> None:
        self._action, self._monitor, self._blobs, self._folder = action, monitor, blobs, folder
        self._op = action.op
        self._kind = KINDS[self._op]
        params = PARAMS[self._op].model_validate(action.params)
        assert isinstance(params, TrainParams), params
        self._params: Any = params
        self._model = self._artifact("model")
        self._checkpoint, self._story = start.checkpoint, start.story

    def run(self) -> Result | None:
        """What was made; None in a process that does not speak for all.

        Raises Refused, ModelRefused, Stopped, MemoryError, Unfinished.
        """
        self._prepare()
        with memory_errors(), ExitStack() as leaving:
            keeper = Keeper(self._blobs, self._monitor, self._story, self._params.checkpoint_steps)
            watch = Watch(self._params, self._monitor, keeper, evaluates=self._eval is not None)
            rewarding = self._rewarding(leaving) if self._kind.draws else {}
            trainer = self._trainer(watch, rewarding, keeper)
            self._train_on(trainer, watch)
            return self._result(trainer) if team.is_first() else None

    def _prepare(self) -> None:
        """Check whatever can be checked before weights are loaded. Raises Refused."""
        params, action = self._params, self._action
        train = data.read_rows(self._blobs, action, "data")
        assert train is not None, action
        held = data.read_rows(self._blobs, action, "eval_data")
        for rows in (train, held) if held is not None else (train,):
            data.check_losses(params, rows)
        if held is None:
            train, held = data.split(train, params.eval_split, params.seed)
        base = self._blobs.tree(self._model.address)
        if not self._kind.scores:
            models.check_scores(base, "model", scores=False)
        self._tokenizer = models.load_tokenizer(base)
        context = models.context_of(base)
        self._max_length = min(getattr(params, "max_length", context), context)
        self._train = self._fitted(train, context)
        self._eval = self._fitted(held, context) if held is not None else None
        if self._kind.draws:
            self._check_groups(train)

    def _fitted(self, rows: data.Rows, context: int) -> lengths.Measured:
        if self._kind.draws:
            return lengths.fit_prompts(
                rows,
                self._tokenizer,
                context=context,
                completion=self._params.max_completion_length,
            )
        return lengths.fit(self._op, rows, self._tokenizer, limit=self._max_length)

    def _check_groups(self, rows: data.Rows) -> None:
        params = self._params
        prompts = params.effective_batch // params.num_generations
        if len(rows.rows) < prompts:
            raise Refused(
                f"`data` has {len(rows.rows)} prompts, and a step takes {prompts}; give more, or"
                " lower `per_device_train_batch_size`"
            )

    def _artifact(self, port: str) -> Artifact:
        bound = self._action.inputs[port]
        assert isinstance(bound, Artifact), bound
        return bound

    def _train_on(self, trainer: Any, watch: Watch) -> None:
        """Until the last step, an early stop, or a stop that the monitor asked for."""
        checkpoint, best = self._checkpoint, self._folder / BEST_FILE
        if checkpoint is not None and (checkpoint / BEST_FILE).exists() and team.is_first():
            shutil.copyfile(checkpoint / BEST_FILE, best)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if watch.stopped:
            raise Stopped
        state = trainer.state
        patience = self._params.early_stopping_patience
        if state.global_step < state.max_steps and not has_lost_patience(
            state.log_history, patience
        ):
            raise Unfinished(
                f"the trainer ended at step {state.global_step} of {state.max_steps}, unasked"
            )
        if best.exists() and team.is_first():
            trainer.model.load_state_dict(load_file(best), strict=False)

    def _trainer(self, watch: Watch, rewarding: dict[str, Any], keeper: Keeper) -> Any:
        """TRL's trainer. Raises Refused for settings that it refuses."""
        kind, params = self._kind, self._params
        micro_batch = self._story.micro_batch or params.per_device_train_batch_size
        shared = settings.common(params, self._folder, micro_batch=micro_batch)
        config = kind.config(**{**shared, **kind.more(params, self._max_length)})
        config._n_gpu = min(config.n_gpu, 1)
        set_seed(params.seed)
        base = self._blobs.tree(self._model.address)
        model = models.load_model(base, scores=kind.scores, pad_token=self._tokenizer.pad_token_id)
        model, adapting, start = self._adapted(model)
        resumable = type(kind.trainer.__name__, (Resumable, kind.trainer), {"keeper": keeper})
        try:
            trainer = resumable(
                model=model,
                args=config,
                processing_class=self._tokenizer,
                train_dataset=self._dataset(self._train.rows, 0),
                eval_dataset=self._dataset(self._eval.rows, len(self._train.rows.rows))
                if self._eval is not None
                else None,
                callbacks=[watch],
                **adapting,
                **rewarding,
            )
        except ValueError as error:
            raise Refused(f"these settings can not be trained with: {error}") from error
        if start is not None:
            models.load_into(trainer.model, start)
        trainer.remove_callback(PrinterCallback)
        watch.trainer = trainer
        return trainer

    def _adapted(self, model: Any) -> tuple[Any, dict[str, Any], models.StartAdapter | None]:
        """The model to give to the trainer, its further arguments, and weights to load later.

        Given a model with an adapter in it, TRL compares with a frozen copy of that adapter;
        given the configuration of an adapter, with the model without one.
        """
        params = self._params
        if params.lora is None:
            return model, {}, None
        if "adapter" not in self._action.inputs:
            config = models.lora_config(params.lora, model, scores=self._kind.scores)
            return model, {"peft_config": config}, None
        folder = self._blobs.tree(self._artifact("adapter").address)
        task = SCORER if self._kind.scores else LANGUAGE_MODEL
        start = read_start(folder, base=self._model.digest, task=task, port="adapter")
        if self._kind.compares and params.reference == "base":
            return model, {"peft_config": start.config}, start
        return models.adapt(model, start), {}, None

    def _dataset(self, rows: data.Rows, first: int) -> datasets.Dataset:
        if not self._kind.draws:
            return datasets.Dataset.from_list(rows.rows)
        numbered = [{**row, rewards.ROW: first + n} for n, row in enumerate(rows.rows)]
        return datasets.Dataset.from_list(numbered)

    def _rewarding(self, leaving: ExitStack) -> dict[str, Any]:
        """The trainer's arguments about rewards. Raises Refused, ModelRefused."""
        funcs: list[Any] = []
        readers: list[Any] = []
        inputs = self._action.inputs
        if "reward_model" in inputs or "reward_adapter" in inputs:
            model, reader = self._scorer()
            funcs.append(model)
            readers.append(reader)
        if self._params.function is not None:
            extras = [*self._train.rows.extras, *(self._eval.rows.extras if self._eval else ())]
            source = self._blobs.path(self._artifact("file").address)
            home = self._folder / f"rewards-{team.rank()}"
            home.mkdir()
            function = rewards.RewardFunction(
                source, self._params, extras, home=home, alone=not funcs
            )
            leaving.callback(function.close)
            funcs.insert(0, function)
            readers.insert(0, None)
        return {"reward_funcs": funcs, "reward_processing_classes": readers}

    def _scorer(self) -> tuple[Any, Any]:
        """The model that scores, with the tokenizer that it reads with."""
        inputs = self._action.inputs
        base = self._artifact("reward_model" if "reward_model" in inputs else "model")
        folder = self._blobs.tree(base.address)
        if "reward_adapter" not in inputs:
            models.check_scores(folder, "reward_model", scores=True)
        tokenizer = models.load_tokenizer(folder)
        model = models.load_model(folder, scores=True, pad_token=tokenizer.pad_token_id)
        if "reward_adapter" in inputs:
            place = self._blobs.tree(self._artifact("reward_adapter").address)
            start = read_start(place, base=base.digest, task=SCORER, port="reward_adapter")
            model = models.adapt(model, start).merge_and_unload()
        return model.eval().requires_grad_(False), tokenizer

    # What is kept

    def _result(self, trainer: Any) -> Result:
        folder = self._folder
        op, params, log = self._op, self._params, trainer.state.log_history
        made: dict[str, Artifact] = {}
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel):
            outputs.write_adapter(model, self._model.digest, folder / "adapter")
            made["adapter"] = Artifact("tree", str(self._blobs.put_tree(folder / "adapter")))
        else:
            base = self._blobs.tree(self._model.address)
            outputs.write_model(model, base, folder / "model")
            made["model"] = Artifact("tree", str(self._blobs.put_tree(folder / "model")))
        rows = outputs.metrics_rows(op, log, params.logging_steps)
        made["metrics"] = store_table(self._blobs, rows, tuple(rows[0]))
        summary = outputs.summary_row(log, self._facts(trainer))
        made["summary"] = store_table(self._blobs, [summary], tuple(summary))
        draw_curve(op, log, folder / "loss.png")
        made["loss_curve"] = Artifact("file", str(self._blobs.put(folder / "loss.png")))
        near = params.dtype != "float32" or self._story.micro_batch
        usage = Usage(prompt_tokens=summary["tokens"], joules=summary["joules"])
        return Result(outputs=made, numerics="near" if near else "exact", usage=usage)

    def _facts(self, trainer: Any) -> Row:
        """What the summary tells beside the log."""
        params, state, args = self._params, trainer.state, trainer.args
        patience = params.early_stopping_patience
        best = best_evaluation(state.log_history)["step"] if patience else state.global_step
        sizes = [(one.numel(), one.requires_grad) for one in trainer.model.parameters()]
        parts = [self._train, *([self._eval] if self._eval else [])]
        micro = args.per_device_train_batch_size
        return {
            "operator": self._op,
            "planned_steps": state.max_steps,
            "kept_step": best,
            "trainable_parameters": sum(size for size, learns in sizes if learns),
            "total_parameters": sum(size for size, _ in sizes),
            "rows": len(self._train.rows.rows),
            "eval_rows": len(self._eval.rows.rows) if self._eval else 0,
            "truncated_rows": sum(part.truncated for part in parts),
            "dropped_rows": sum(part.dropped for part in parts),
            "max_length": self._max_length,
            "effective_batch": params.effective_batch,
            "micro_batch": micro,
            "devices": params.devices,
            "resumed_from": self._story.resumed_from,
            "stopped_early": state.global_step < state.max_steps,
            "notes": [
                *self._story.notes,
                *outputs.lessons(state.log_history, self._train.rows.rows),
            ],
        }
