"""The networks of an update: the policy, the value model, and passes of roll-outs through them."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from flowmesh.operators.train_params import Lora
from flowmesh.runtimes.lora_trees import LANGUAGE_MODEL, SCORER, attach
from flowmesh.runtimes.policy.objective import token_logprobs
from flowmesh.runtimes.policy.rollouts import Bounds, Rollout
from flowmesh.runtimes.training.models import lora_config
from flowmesh.runtimes.weights import (
    ModelRefused,
    check_complete,
    check_folder,
    check_writes,
    memory_errors,
    refusing_model,
    set_up_torch,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Roll-outs side by side: prompts end, and completions begin, in the same column.

    `tokens`, `mask`, `positions` are `[rows, prompt + completion]`; `width` is the number of
    columns of the longest completion.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    width: int

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], device: torch.device) -> "Batch":
        left = max(len(one.prompt) for one in rollouts)
        width = max(len(one.completion) for one in rollouts)
        tokens = torch.zeros(len(rollouts), left + width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, one in enumerate(rollouts):
            place = slice(left - len(one.prompt), left + len(one.completion))
            tokens[row, place] = torch.tensor((*one.prompt, *one.completion))
            mask[row, place] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return cls(tokens.to(device), mask.to(device), positions.to(device), width)

    @property
    def completions(self) -> Tensor:
        return self.tokens[:, -self.width :]

    def inputs(self) -> dict[str, Any]:
        return {
            "input_ids": self.tokens,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "use_cache": False,
        }


@dataclass(slots=True)
class Network:
    """A model that is trained, or that is asked.

    `base` is the digest text of the tree under its adapter; `adapted` whether it has one.
    """

    model: Any
    base: str
    adapted: bool
    half: bool

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter that learns, by its name."""
        named = self.model.named_parameters()
        return {name: one for name, one in named if one.requires_grad}

    @property
    def bounds(self) -> Bounds:
        config = self.model.config.get_text_config(decoder=True)
        context = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        return Bounds(int(self.model.get_input_embeddings().weight.shape[0]), context)

    def passing(self) -> AbstractContextManager[Any]:
        """Within it, a pass computes in the numeric format of the engine."""
        computing: AbstractContextManager[Any] = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.half
        )
        return computing

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Within it, the model is its base."""
        disabled: AbstractContextManager[Any] = (
            self.model.disable_adapter() if self.adapted else nullcontext()
        )
        return disabled


class Policy(Network):
    """A causal language model that says how likely completions are."""

    def logprobs(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """Of each completion's tokens, with the entropies there: `[rows, width]` both."""
        with memory_errors(), self.passing():
            logits = self.model(**batch.inputs(), logits_to_keep=batch.width + 1).logits
        return token_logprobs(logits[:, :-1], batch.completions, temperature)

    def end_tokens(self, folder: Path) -> frozenset[int]:
        """Tokens that end a completion."""
        with refusing_model():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
        named = self.model.generation_config.eos_token_id
        ends = named if isinstance(named, list) else [named]
        return frozenset(one for one in (*ends, tokenizer.eos_token_id) if one is not None)


class Critic(Network):
    """A value model: what reward is to be expected from each state of a roll-out."""

    def values(self, batch: Batch) -> Tensor:
        """`[rows, width + 1]`: before each token of the completions, and behind the last."""
        inner = self.model.get_base_model() if self.adapted else self.model
        backbone = getattr(inner, inner.base_model_prefix)
        with memory_errors(), self.passing():
            hidden = backbone(**batch.inputs()).last_hidden_state[:, -(batch.width + 1) :]
            values: Tensor = inner.score(hidden)[..., 0]
        return values.float()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network's weights are: a model's directory, its tree, and an adapter's directory."""

    folder: Path
    digest: str
    adapter: Path | None = None


def load_policy(source: Source, lora: Lora | None, *, seed: int, half: bool) -> Policy:
    """The policy to train: its adapter, or all of it where `lora` is None.

    Raises ModelRefused, Refused, MemoryError.
    """
    model = _load_writer(source.folder)
    if lora is None and source.adapter is None:
        return Policy(model.requires_grad_(True), source.digest, adapted=False, half=half)
    adapted = _adapted(model, source, lora, LANGUAGE_MODEL, seed)
    return Policy(adapted, source.digest, adapted=True, half=half)


def load_reference(source: Source, *, half: bool) -> Policy:
    """A policy that is only asked. Raises ModelRefused, MemoryError."""
    model = _load_writer(source.folder).requires_grad_(False)
    return Policy(model, source.digest, adapted=False, half=half)


def load_critic(source: Source, lora: Lora | None, policy: Policy, *, seed: int) -> Critic:
    """The value model to train; a new one gives zero everywhere.

    With an adapter it shares the frozen weights of the policy, whose base it has.

    Raises ModelRefused, Refused, MemoryError.
    """
    model = _load_scorer(source.folder)
    if lora is None and source.adapter is None:
        return Critic(model.requires_grad_(True), source.digest, adapted=False, half=policy.half)
    if policy.adapted and policy.base == source.digest:
        _share(model, policy.model)
    adapted = _adapted(model, source, lora, SCORER, seed)
    return Critic(adapted, source.digest, adapted=True, half=policy.half)


def _adapted(model: Any, source: Source, lora: Lora | None, task: str, seed: int) -> Any:
    model.requires_grad_(False)
    if source.adapter is not None:
        port = "value" if task == SCORER else "adapter"
        adapted = attach(model, source.adapter, base=source.digest, task=task, port=port)
    else:
        assert lora is not None, source
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, lora_config(lora, model, scores=task == SCORER))
    return adapted.eval()


def _load_writer(folder: Path) -> Any:
    set_up_torch()
    check_folder(folder)
    check_writes(folder)
    with refusing_model():
        model, report = transformers.AutoModelForCausalLM.from_pretrained(str(folder), **_PLAIN)
    check_complete(model, report["missing_keys"])
    missing = {"position_ids", "logits_to_keep"} - set(inspect.signature(model.forward).parameters)
    if missing:
        raise ModelRefused(
            f"{type(model).__name__} can not be asked for the completions alone; decoder-only "
            "transformers such as Llama, Qwen or Gemma can"
        )
    return model.eval().to(_device())


#: Weights are float32 whatever the passes compute in: small steps would be lost in less.
_PLAIN = {
    "dtype": torch.float32,
    "use_safetensors": True,
    "trust_remote_code": False,
    "local_files_only": True,
    "attn_implementation": "sdpa",
    "output_loading_info": True,
}


def _load_scorer(folder: Path) -> Any:
    set_up_torch()
    check_folder(folder)
    with refusing_model(), torch.random.fork_rng():
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(folder), num_labels=1, **_PLAIN
        )
    check_complete(model, report["missing_keys"], head="score")
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise ModelRefused(
            f"{type(model).__name__} has no layer `score`, which a value model needs here; "
            "decoder-only transformers such as Llama, Qwen or Gemma have it"
        )
    if any(name.startswith("score.") for name in report["missing_keys"]):
        torch.nn.init.zeros_(model.score.weight)
    return model.eval().to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _share(model: Any, policy: Any) -> None:
    """Have a model's backbone use the memory of the policy's, which has the same weights."""
    theirs = dict(_plain_names(policy.get_base_model()))
    for name, parameter in _plain_names(model):
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.data = theirs[name].data


def _plain_names(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters by the names that they have without an adapter."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


@contextmanager
def asking(network: Network, *, base: bool = False) -> Iterator[None]:
    """Within it, passes leave no gradients; `base` switches the adapter off."""
    with torch.no_grad(), network.without_adapter() if base else nullcontext():
        yield
