"""Carries out `policy_update`: loads the networks, takes the steps, writes what came of them."""

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowmesh.operators.policy import (
    METRICS_COLUMNS,
    SUMMARY_COLUMNS,
    PolicyUpdateParams,
    needed_columns,
)
from flowmesh.runtimes.base import (
    Blobs,
    Done,
    Failed,
    FailureKind,
    Monitor,
    Outcome,
    Progress,
    Stopped,
    Work,
)
from flowmesh.runtimes.policy.checkpoints import Keeper, Story, read_story, restore
from flowmesh.runtimes.policy.nets import (
    Critic,
    Network,
    Policy,
    Source,
    load_critic,
    load_policy,
    load_reference,
)
from flowmesh.runtimes.policy.rollouts import Bounds, read_rollouts
from flowmesh.runtimes.policy.update import Figures, Prepared, Update
from flowmesh.runtimes.rows import Row, TableError, read_table, store_table
from flowmesh.runtimes.training.curve import draw_curve
from flowmesh.runtimes.training.energy import Meter
from flowmesh.runtimes.training.outputs import write_adapter, write_model
from flowmesh.runtimes.training.refused import Refused
from flowmesh.runtimes.weights import ModelRefused
from flowmesh.spec.action import Action, Artifact, Result, Usage


def open_policy_update(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "PolicyEngine":
    """An `OpenEngine`."""
    return PolicyEngine(blobs)


class PolicyEngine:
    """Runs updates one by one; weights that are trained are nothing to keep warm."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        """An `Engine`'s. Raises Stopped."""
        for work in batch:
            try:
                yield Done(work.task, self._result(work))
            except (TableError, ModelRefused, Refused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
            except MemoryError as error:
                yield Failed(work.task, FailureKind.MEMORY, str(error) or "out of memory")

    def _result(self, work: Work) -> Result:
        given, story = PolicyUpdateParams.model_validate(work.action.params), self._story(work)
        try:
            return self._update(work, _halved(given, story.halvings), story)
        except MemoryError:
            if story.halvings or given.per_device_train_batch_size % 2:
                raise
        # Only here has the frame of the failed attempt let go of its tensors.
        gc.collect()
        # Once, and from where this attempt began: the same steps, computed in smaller parts.
        again = self._story(work)
        again.halvings = 1
        again.notes.append("memory ran out: the micro-batch was halved, and the steps are the same")
        return self._update(work, _halved(given, 1), again)

    def _story(self, work: Work) -> Story:
        if work.checkpoint is None:
            return Story()
        story = read_story(self._blobs.tree(work.checkpoint))
        story.resumed_from.append(story.step)
        return story

    def _update(self, work: Work, params: PolicyUpdateParams, story: Story) -> Result:
        setting = _setting(work.action, self._blobs, params)
        update = _loaded(setting)
        if work.checkpoint is not None:
            prepared = restore(self._blobs.tree(work.checkpoint), update)
        else:
            prepared = _prepared(update, setting)
        keeper = Keeper(self._blobs, work.monitor, update, prepared, story)
        _go(update, prepared, story, keeper, work.monitor)
        return self._outputs(setting, update, story)

    def _outputs(self, setting: "_Setting", update: Update, story: Story) -> Result:
        params, folder = setting.params, self._blobs.scratch()
        summary = _summary(update, story)
        outputs = {
            "metrics": store_table(self._blobs, story.log, METRICS_COLUMNS),
            "summary": store_table(self._blobs, [summary], SUMMARY_COLUMNS),
            "loss_curve": self._curve(story, folder),
        }
        weights = "model" if params.lora is None else "adapter"
        outputs[weights] = self._tree(update.policy, setting.model, folder / "policy")
        if update.critic is not None:
            outputs["value"] = self._tree(update.critic, setting.critic, folder / "value")
        tokens = story.log[-1]["tokens"]
        return Result(
            outputs=outputs,
            numerics="exact" if params.dtype == "float32" and not story.halvings else "near",
            usage=Usage(prompt_tokens=tokens, joules=summary["joules"]),
        )

    def _tree(self, network: Network, source: Source, folder: Path) -> Artifact:
        if network.adapted:
            write_adapter(network.model, network.base, folder)
        else:
            write_model(network.model, source.folder, folder)
        return Artifact("tree", str(self._blobs.put_tree(folder)))

    def _curve(self, story: Story, folder: Path) -> Artifact:
        path = folder / "loss_curve.png"
        log = [{"step": row["step"], "loss": row["loss"]} for row in story.log]
        draw_curve("policy_update", log, path)
        return Artifact("file", str(self._blobs.put(path)))


@dataclass(frozen=True, slots=True)
class _Setting:
    """What an update is made from."""

    params: PolicyUpdateParams
    rollouts: Artifact
    blobs: Blobs
    model: Source
    critic: Source
    reference: Source | None


def _setting(action: Action, blobs: Blobs, params: PolicyUpdateParams) -> _Setting:
    ports: dict[str, Artifact] = {}
    for port, bound in action.inputs.items():
        assert isinstance(bound, Artifact), port
        ports[port] = bound
    model, whole = ports["model"], ports.get("value_model", ports["model"])
    reference = ports.get("reference_model")
    return _Setting(
        params=params,
        rollouts=ports["rollouts"],
        blobs=blobs,
        model=_source(blobs, model, ports.get("adapter")),
        critic=_source(blobs, whole, ports.get("value")),
        reference=None if reference is None else _source(blobs, reference, None),
    )


def _source(blobs: Blobs, model: Artifact, adapter: Artifact | None) -> Source:
    folder = None if adapter is None else blobs.tree(adapter.address)
    return Source(blobs.tree(model.address), model.digest, folder)


def _loaded(setting: _Setting) -> Update:
    """Raises TableError, ModelRefused, Refused, MemoryError."""
    params = setting.params
    half = params.dtype == "bfloat16"
    policy = load_policy(setting.model, params.lora, seed=params.seed, half=half)
    rollouts = read_rollouts(
        read_table(setting.blobs, setting.rollouts),
        needed_columns(params),
        params.signal,
        policy.bounds,
    )
    critic: Critic | None = None
    if params.method == "ppo":
        critic = load_critic(setting.critic, params.lora, policy, seed=params.seed)
        _check_fit(critic.bounds, policy.bounds, "value_model")
    return Update(params, rollouts, policy, critic)


def _prepared(update: Update, setting: _Setting) -> Prepared:
    reference: Policy | None = None
    if setting.reference is not None and update.needs_reference:
        reference = load_reference(setting.reference, half=update.policy.half)
        _check_fit(reference.bounds, update.policy.bounds, "reference_model")
    ends: frozenset[int] = frozenset()
    if setting.params.missing_eos_penalty:
        ends = update.policy.end_tokens(setting.model.folder)
    return update.prepare(reference, ends)


def _check_fit(found: Bounds, policy: Bounds, port: str) -> None:
    if found.vocabulary != policy.vocabulary or found.context < policy.context:
        raise Refused(
            f"`{port}` reads {found.context} tokens of a vocabulary of {found.vocabulary}, the"
            f" policy {policy.context} of {policy.vocabulary}: they can not read the same roll-outs"
        )


def _go(update: Update, prepared: Prepared, story: Story, keeper: Keeper, monitor: Monitor) -> None:
    """Take the steps that are left. Raises Stopped, with a checkpoint left behind."""
    meter, began, first = Meter(), time.monotonic(), story.step
    before = dict(story.log[-1]) if story.log else dict.fromkeys(METRICS_COLUMNS)
    for number in range(first, update.steps):
        figures = update.step(update.rows_of(number), prepared, number=number)
        took = time.monotonic() - began
        story.log.append(_row(update, story, figures, before, (took, meter.joules())))
        monitor.progress(_progress(update, story, took, first, before["tokens"] or 0))
        if story.step == update.steps:
            return
        if monitor.stopping:
            keeper.save()
            raise Stopped
        if keeper.pace.is_due(story.step):
            keeper.save()


def _row(
    update: Update,
    story: Story,
    figures: Figures,
    before: Row,
    spent: tuple[float, float | None],
) -> Row:
    """A row of `metrics`; tokens, seconds and joules are counted over all attempts."""
    took, joules = spent
    row: Row = dict.fromkeys(METRICS_COLUMNS)
    row |= asdict(figures)
    row |= {
        "step": story.step + 1,
        "learning_rate": update.params.learning_rate,
        "tokens": figures.tokens + (story.log[-1]["tokens"] if story.log else 0),
        "seconds": round(took + (before["seconds"] or 0.0), 3),
        "joules": None if joules is None else joules + (before["joules"] or 0.0),
    }
    return row


def _progress(update: Update, story: Story, took: float, first: int, tokens: int) -> Progress:
    last, took = story.log[-1], max(took, 1e-9)
    facts = {
        "loss": last["loss"],
        "learning_rate": last["learning_rate"],
        "tokens_per_s": (last["tokens"] - tokens) / took,
        "left_s": (update.steps - story.step) * took / (story.step - first),
    }
    return Progress(story.step, update.steps, facts)


def _summary(update: Update, story: Story) -> Row:
    """The row of `summary`: losses and the like are those of the last step."""
    params, last = update.params, story.log[-1]
    rollouts = update.rollouts
    row: Row = dict.fromkeys(SUMMARY_COLUMNS)
    row |= {name: last[name] for name in SUMMARY_COLUMNS if name in last}
    row |= {
        "method": params.method,
        "steps": story.step,
        "rollouts": len(rollouts),
        "prompt_tokens": sum(len(one.prompt) for one in rollouts),
        "completion_tokens": sum(len(one.completion) for one in rollouts),
        "signal_mean": sum(one.signal for one in rollouts) / len(rollouts),
        "old_logprobs": "given" if update.old_known else "recomputed",
        "effective_batch": params.batch_size,
        "micro_batch": params.per_device_train_batch_size,
        "resumed_from": story.resumed_from,
        "notes": [*story.notes, *_lessons(update)],
    }
    return row


def _lessons(update: Update) -> list[str]:
    """What to tell of roll-outs that have nothing to teach; rewards of `ppo` always have."""
    if update.params.method != "group" or any(one.signal for one in update.rollouts):
        return []
    return [
        f"`{update.params.signal}` is 0 in every row, so nothing was learnt from it: the rewards"
        " of a group never differed"
    ]


def _halved(params: PolicyUpdateParams, halvings: int) -> PolicyUpdateParams:
    """The same steps, computed in smaller parts."""
    smaller = {
        "per_device_train_batch_size": params.per_device_train_batch_size >> halvings,
        "gradient_accumulation_steps": params.gradient_accumulation_steps << halvings,
    }
    return params.model_copy(update=smaller)
