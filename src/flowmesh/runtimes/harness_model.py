"""Our engine as a model of lm-evaluation-harness: exact in any batch, with an adapter or without.

Import this where `lm_eval` is installed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import datasets
import jinja2
import lm_eval
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager

from flowmesh.operators.harness import HarnessParams
from flowmesh.runtimes.decoding import Decoder, Request
from flowmesh.runtimes.low_rank import Adapter
from flowmesh.runtimes.rows import Row, TableError
from flowmesh.runtimes.weights import TEMPLATE_DAY, BadPrompt, BrokenModel, Weights
from flowmesh.spec.action import Usage

_TEST, _FEWSHOT = "test", "fewshot"


@dataclass(frozen=True, slots=True)
class Found:
    """What the harness says of one task."""

    task: str
    results: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    usage: Usage


def evaluate_task(
    weights: Weights,
    adapter: Adapter | None,
    config: Mapping[str, Any],
    documents: Sequence[Row],
    examples: Sequence[Row],
    params: HarnessParams,
) -> Found:
    """Run one task over documents. Raises TableError, BadPrompt, BrokenModel, MemoryError."""
    for metric in config.get("metric_list") or ():
        if metric["metric"] not in metric_registry:
            raise TableError(f"`task`: no metric of lm-eval is called {metric['metric']!r:.80}")
    splits = {_TEST: documents} | ({_FEWSHOT: examples} if examples else {})
    complete = dict(config) | {
        "custom_dataset": lambda **_: {
            name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()
        },
        "test_split": _TEST,
        "fewshot_split": _FEWSHOT if examples else None,
        "fewshot_config": {"sampler": "first_n"} if examples else None,
        "num_fewshot": params.num_fewshot or 0,
    }
    model = _Model(weights, adapter, params.max_tokens)
    with _sandboxed(), _telling():
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[complete],
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=params.num_fewshot or 0,
            apply_chat_template=params.chat,
            system_instruction=params.system,
            bootstrap_iters=0,
            log_samples=True,
        )
    name = str(config["task"])
    usage = Usage(
        prompt_tokens=model.read_tokens,
        generated_tokens=model.written_tokens,
        cached_tokens=model.cached_tokens,
    )
    return Found(name, found["results"][name], found["samples"][name], usage)


class _Model(TemplateLM):  # type: ignore[misc]  # lm-eval is not typed
    """Requests of the harness as passes over single rows, and answers written in batch."""

    def __init__(self, weights: Weights, adapter: Adapter | None, max_tokens: int) -> None:
        super().__init__()
        self._weights, self._adapter, self._max_tokens = weights, adapter, max_tokens
        self.tokenizer = weights.tokenizer
        self.read_tokens = self.written_tokens = self.cached_tokens = 0

    @property
    def eot_token_id(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(end if end is not None else min(self._weights.end_tokens))

    @property
    def tokenizer_name(self) -> str:
        return "flowmesh"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, **more)["input_ids"])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                strftime_now=TEMPLATE_DAY.strftime,
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return [self._scored(prompt, tokens) for _, prompt, tokens in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], **kwargs: Any) -> list[float]:
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        return [self._scored([self.prefix_token_id], tokens)[0] for tokens in texts]

    def _scored(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
        """The log-likelihood of tokens behind a prompt, and whether greedy decoding gives them."""
        self._check_length(len(prompt) + len(tokens))
        if not tokens:
            raise BadPrompt("a continuation of the task is empty and can not be scored")
        with self._weights.adapted([self._adapter]):
            read = self._weights.read(prompt)
            logits = read.logits[-1:]
            if len(tokens) > 1:
                rest = self._weights.extend(tokens[:-1], read.cache, keep=len(tokens) - 1)
                logits = torch.cat([logits, rest])
        table = torch.log_softmax(logits.double(), dim=-1)
        found = float(table[torch.arange(len(tokens)), torch.tensor(tokens)].sum())
        if found != found:
            raise BrokenModel
        self.read_tokens += len(prompt) + len(tokens)
        self.cached_tokens += read.remembered
        return found, table.argmax(dim=-1).tolist() == list(tokens)

    def generate_until(self, requests: Sequence[Any], **kwargs: Any) -> list[str]:
        asked = [self._request(*request.args) for request in requests]
        texts = [""] * len(asked)
        for index, answer in Decoder(self._weights).generate(asked):
            texts[index] = answer.text
            self.written_tokens += len(answer.tokens)
            self.cached_tokens += answer.cached_tokens
        self.read_tokens += sum(len(request.prompt) for request in asked)
        return texts

    def _request(self, text: str, settings: Mapping[str, Any]) -> Request:
        prompt = tuple(self.tok_encode(text))
        self._check_length(len(prompt) + 1)
        until = settings.get("until") or []
        stop = (until,) if isinstance(until, str) else tuple(until)
        most = int(settings.get("max_gen_toks") or self._max_tokens)
        room = self._weights.context - len(prompt)
        return Request(prompt, min(most, room), stop=stop, adapter=self._adapter)

    def _check_length(self, tokens: int) -> None:
        if tokens > self._weights.context:
            raise BadPrompt(
                f"a request of the task has {tokens} tokens but the model's context holds "
                f"{self._weights.context}; shorten its documents, or lower `num_fewshot`"
            )


@contextmanager
def _sandboxed() -> Iterator[None]:
    """Within it, templates of tasks see their document and nothing else."""
    usual = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    sandbox.filters["regex_replace"] = usual.filters["regex_replace"]
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = usual


#: What the harness raises for settings and documents that do not fit each other.
_THEIR_ERRORS: tuple[type[Exception], ...] = (
    *(jinja2.TemplateError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(AssertionError, NotImplementedError),
)


@contextmanager
def _telling() -> Iterator[None]:
    """Within it, what the harness can not make sense of is the task's fault, and said so."""
    try:
        yield
    except (BadPrompt, BrokenModel, TableError):
        raise
    except _THEIR_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise TableError(
            f"lm-eval can not run this task on these documents: {type(error).__name__}: {reason}"
        ) from error
