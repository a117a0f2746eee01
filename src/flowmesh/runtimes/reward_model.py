"""The engine of `reward`: texts to numbers, by a model with a layer that scores.

Each text is read alone, as TRL's RewardTrainer lays it out, so its reward is the same in
any company. An adapter of a reward model is a LoRA and a layer `score` in one directory;
both are put onto the base for the time of a pass, so one base serves many adapters.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowmesh.runtimes.adapters import (
    CONFIG,
    ORIGIN,
    TENSORS,
    AdapterRefused,
    read_adapter,
    read_config,
)
from flowmesh.runtimes.base import Blobs, Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.low_rank import Adapter, Adapting
from flowmesh.runtimes.refusal import Refusal
from flowmesh.runtimes.weights import (
    DTYPES,
    TEMPLATE_DAY,
    BadPrompt,
    BrokenModel,
    ModelRefused,
    check_complete,
    check_folder,
    memory_errors,
    refusing_model,
    set_up_torch,
)
from flowmesh.spec.action import Action, Artifact, Result, Usage

#: The layer that scores, and its weight as PEFT saves it.
_HEAD = "score"
_HEAD_KEY = f"base_model.model.{_HEAD}.weight"
#: Adapters that stay in memory beside the base.
_KEPT_ADAPTERS = 8
_PLACES = 6


def open_reward_model(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
    """Open the model of the port `model`; `engine` is `transformers/<dtype>`.

    A model that can not be run gives an engine that fails every task with the reason.
    """
    try:
        folder = blobs.tree(inputs["model"].address)
        return RewardEngine(load_classifier(folder, engine.rpartition("/")[2]), blobs)
    except ModelRefused as refused:
        return Refusal(str(refused))


@dataclass(frozen=True, slots=True)
class Scoring:
    """An adapter with the layer that scores, if it has one of its own."""

    adapter: Adapter
    head: torch.nn.Linear | None


class Classifier:
    """A model with a layer that scores, and its tokenizer.

    Attributes:
        has_head: whether the directory holds that layer; the base of an adapter need not.
        longest: most tokens that the model reads.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        set_up_torch()
        check_folder(folder)
        self.exact = dtype == "float32"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        place = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
        with refusing_model():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                **place, trust_remote_code=False
            )
            with torch.random.fork_rng():  # a layer that is missing is made up, and never used
                self.model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                    **place,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=DTYPES[dtype],
                    output_loading_info=True,
                )
        check_complete(self.model, found["missing_keys"], head=_HEAD)
        self.has_head = not found["missing_keys"]
        self.model.eval().to(self.device)
        config = self.model.config.get_text_config()
        # The model reads its score at the last token that is no padding: as in training.
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        config.pad_token_id = end if pad is None else pad
        self.longest = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self._adapting = Adapting(self.model)

    def logits(self, tokens: Sequence[int], scoring: Scoring | None) -> torch.Tensor:
        """`[labels]` of one text, read alone. Raises BrokenModel, MemoryError."""
        with self._scored_by(scoring), torch.inference_mode(), memory_errors():
            ids = torch.tensor([list(tokens)], device=self.device)
            found: torch.Tensor = self.model(input_ids=ids).logits[0].double().cpu()
        if not bool(torch.isfinite(found).all()):
            raise BrokenModel
        return found

    @contextmanager
    def _scored_by(self, scoring: Scoring | None) -> Iterator[None]:
        if scoring is None:
            yield
            return
        own = getattr(self.model, _HEAD, None)
        if scoring.head is not None:
            setattr(self.model, _HEAD, scoring.head)
        try:
            with self._adapting.on([scoring.adapter]):
                yield
        finally:
            if scoring.head is not None:
                setattr(self.model, _HEAD, own)

    def labels(self, count: int) -> list[str]:
        """Names of the labels; those that nobody has named are called as transformers does."""
        names = getattr(self.model.config, "id2label", None) or {}
        return [str(names.get(number, f"LABEL_{number}")) for number in range(count)]

    def tokens(self, params: Mapping[str, Any]) -> tuple[list[int], bool]:
        """The tokens of a task, and whether some were cut off. Raises BadPrompt."""
        limit = min(self.longest, params["max_length"] or self.longest)
        if "messages" in params:
            tokens = self._chat_tokens(params["messages"])
        else:
            tokens = list(self.tokenizer(self._text(params))["input_ids"])
        if not tokens:
            raise BadPrompt("the text is empty, so there is nothing to score")
        if len(tokens) <= limit:
            return tokens, False
        if params["truncate"] == "no":
            raise BadPrompt(
                f"the text has {len(tokens)} tokens and at most {limit} are read; raise "
                "`max_length` if the model reads more, or cut texts by `truncate: start`"
            )
        if "messages" in params:
            return tokens[-limit:] if params["truncate"] == "start" else tokens[:limit], True
        self.tokenizer.truncation_side = "left" if params["truncate"] == "start" else "right"
        cut = self.tokenizer(self._text(params), truncation=True, max_length=limit)
        return list(cut["input_ids"]), True

    def _text(self, params: Mapping[str, Any]) -> str:
        text, end = str(params["text"]), self.tokenizer.eos_token
        return text + end if params["end"] and end and not text.endswith(end) else text

    def _chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise BadPrompt("this model has no chat template; set `chat: false`, or give `text`")
        try:
            tokens: list[int] = self.tokenizer.apply_chat_template(
                list(messages), return_dict=True, strftime_now=TEMPLATE_DAY.strftime
            )["input_ids"]
        except jinja2.TemplateError as error:
            raise BadPrompt(f"the model's chat template refuses the messages: {error}") from error
        return tokens

    def read_scoring(self, source: Path, plain: Path, name: str, model: str) -> Scoring:
        """The adapter in `source`; its LoRA alone is laid out in the empty directory `plain`.

        Raises AdapterRefused, MemoryError.
        """
        weight = _taken_apart(source, plain)
        # What reads an adapter of a language model looks at `model` and `device` only.
        adapter = read_adapter(self, plain, name, model)  # type: ignore[arg-type]
        own = getattr(self.model, _HEAD, None)
        if weight is None and self.has_head:
            return Scoring(adapter, None)
        if weight is None or not isinstance(own, torch.nn.Linear):
            raise AdapterRefused(
                "neither the model nor its adapter has the layer `score`; give a model or an "
                "adapter that was trained as a reward model"
            )
        if weight.ndim != 2 or weight.shape[1] != own.in_features or not len(weight):
            raise AdapterRefused(
                f"the adapter's layer `score` is {list(weight.shape)}, and this base takes [labels,"
                f" {own.in_features}]: it was trained for a model of another size"
            )
        head = torch.nn.Linear(own.in_features, len(weight), bias=False)
        head.weight = torch.nn.Parameter(weight.to(own.weight.dtype), requires_grad=False)
        return Scoring(adapter, head.to(self.device))


class RewardEngine:
    """An `Engine` for actions of `reward`."""

    def __init__(self, classifier: Classifier, blobs: Blobs) -> None:
        self.classifier, self._blobs = classifier, blobs
        self._scorings: dict[str, Scoring] = {}

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                yield self._score(work)
            except (BadPrompt, BrokenModel, ModelRefused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))

    def _score(self, work: Work) -> Done:
        params, scoring = work.action.params, self._scoring(work.action)
        tokens, truncated = self.classifier.tokens(params)
        logits = self.classifier.logits(tokens, scoring)
        reward = _reward(logits, self.classifier.labels(len(logits)), params)
        result = Result(
            rows=[{"reward": round(reward, _PLACES), "truncated": truncated}],
            numerics="exact" if self.classifier.exact else "near",
            usage=Usage(prompt_tokens=len(tokens)),
        )
        return Done(work.task, result)

    def _scoring(self, action: Action) -> Scoring | None:
        adapter, model = action.inputs.get("adapter"), action.inputs["model"]
        if adapter is None:
            if not self.classifier.has_head:
                raise ModelRefused(
                    "the model has no layer that scores: give a reward model or a classifier, or "
                    "bind to `adapter` one that was trained by `reward_model` on this model"
                )
            return None
        assert isinstance(adapter, Artifact) and isinstance(model, Artifact), action.inputs
        found = self._scorings.pop(adapter.digest, None)
        if found is None:
            source, plain = self._blobs.tree(adapter.address), self._blobs.scratch()
            found = self.classifier.read_scoring(source, plain, adapter.digest, model.digest)
        self._scorings[adapter.digest] = found
        if len(self._scorings) > _KEPT_ADAPTERS:
            del self._scorings[next(iter(self._scorings))]
        return found


def _reward(logits: torch.Tensor, labels: Sequence[str], params: Mapping[str, Any]) -> float:
    """The number that was asked for, of one label. Raises BadPrompt for one that is not there."""
    label, value = params["label"], params["value"]
    if label is not None and label not in labels:
        raise BadPrompt(f"the model has no label {label!r:.80}; it has {list(labels)!r:.500}")
    if label is None and len(labels) > 1:
        raise BadPrompt(
            f"the model has several labels; set `label` to one of {list(labels)!r:.500}"
        )
    number = 0 if label is None else labels.index(label)
    if value == "logit" or (value is None and len(labels) == 1):
        return float(logits[number])
    if len(labels) == 1:
        return 1 / (1 + math.exp(-max(-700.0, float(logits[0]))))
    return float(torch.softmax(logits, dim=-1)[number])


def _taken_apart(source: Path, plain: Path) -> torch.Tensor | None:
    """Lay out an adapter without its layer that scores, which is returned if it has one.

    Raises AdapterRefused.
    """
    config = read_config(source)
    if (task := config.get("task_type")) != "SEQ_CLS":
        raise AdapterRefused(
            f"this adapter was trained for {task!r:.40}; one that scores is of SEQ_CLS, as "
            "`reward_model` makes it"
        )
    try:
        with memory_errors():
            tensors = load_file(source / TENSORS)
    except SafetensorError as error:
        raise AdapterRefused(f"the adapter's {TENSORS} is damaged: {error}") from error
    head = tensors.pop(_HEAD_KEY, None)
    kept = [one for one in config.get("modules_to_save") or () if one not in (_HEAD, "classifier")]
    config |= {"task_type": "CAUSAL_LM", "modules_to_save": kept or None}
    (plain / CONFIG).write_text(json.dumps(config))
    save_file(tensors, plain / TENSORS)
    if (source / ORIGIN).is_file():
        (plain / ORIGIN).write_bytes((source / ORIGIN).read_bytes())
    return head


@lru_cache(maxsize=1)
def load_classifier(folder: Path, dtype: str) -> Classifier:
    """The model of a folder, loaded once in a process. Raises ModelRefused, MemoryError."""
    return Classifier(folder, dtype)
