"""A language model in memory: load it once, read tokens, turn prompts into tokens and back.

Loads nothing but safetensors and runs no code from a model's directory. Needs no network.
"""

import inspect
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Deterministic matrix products on a GPU need this before the first of them.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import jinja2
import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from flowmesh.runtimes.low_rank import Adapter, AdapterCache, Adapting
from flowmesh.runtimes.prefixes import Prefixes, Prompt

#: Chat templates that print the date get this one, or a result would depend on its day.
TEMPLATE_DAY = datetime(2025, 1, 1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelRefused(Exception):
    """The directory holds no model that can be run here; the message says what is wrong."""


class BadPrompt(Exception):
    """A prompt can not be given to this model; the message says why and what to do."""


class BrokenModel(Exception):
    """The model's output is no number, so nothing can be decided by it."""

    def __init__(self) -> None:
        super().__init__(
            "the model's output is not a number (NaN): its weights, or its adapter's, are damaged"
        )


class Weights:
    """A causal language model with its tokenizer.

    Attributes:
        context: most tokens of prompt and answer together.
        end_tokens: tokens that end an answer.
        exact: whether the numeric format allows results that are free of the batch.
        adapter_cache: the adapters of this model that are in memory.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        set_up_torch()
        check_folder(folder)
        check_writes(folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.exact = dtype == "float32"
        with refusing_model():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
            self.model, found = transformers.AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        check_complete(self.model, found["missing_keys"])
        self.model.eval().to(self.device)
        self._check_kind()
        self.adapter_cache = AdapterCache()
        self._adapting = Adapting(self.model)
        config = self.model.config.get_text_config(decoder=True)
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self.end_tokens = frozenset(
            _ids(self.model.generation_config.eos_token_id) | _ids(self.tokenizer.eos_token_id)
        )
        self._prefixes = Prefixes(self.end_tokens)
        #: What a pass over one row is adapted by.
        self._adapter = ""

    def _check_kind(self) -> None:
        accepted = inspect.signature(self.model.forward).parameters
        missing = {"position_ids", "past_key_values", "logits_to_keep"} - set(accepted)
        kinds = {type(layer) for layer in DynamicCache(config=self.model.config).layers}
        if missing or not all(issubclass(kind, DynamicLayer) for kind in kinds):
            raise ModelRefused(
                f"{type(self.model).__name__} does not keep a plain attention cache, which this "
                "runtime needs; decoder-only transformers such as Llama, Qwen or Gemma do"
            )

    @contextmanager
    def adapted(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Within it, row i of every pass is adapted by `adapters[i]`, or not if that is None.

        A single entry serves any number of rows. Adapters come from `adapters.load_adapter`.
        Raises MemoryError.
        """
        before, first = self._adapter, adapters[0] if adapters else None
        self._adapter = first.name if first else ""
        try:
            with memory_errors(), self._adapting.on(adapters):
                yield
        finally:
            self._adapter = before

    def read(self, tokens: Sequence[int]) -> Prompt:
        """Read a prompt by itself, under no adapter or one. Raises MemoryError."""

        def extend(part: Sequence[int], cache: DynamicCache) -> torch.Tensor:
            return self.extend(part, cache, keep=1)

        return self._prefixes.read(tokens, self._adapter, extend)

    def extend(self, tokens: Sequence[int], cache: DynamicCache, *, keep: int) -> torch.Tensor:
        """Read more tokens of one row alone; logits `[keep, vocabulary]` behind the last ones."""
        start = int(cache.get_seq_length())
        positions = list(range(start, start + len(tokens)))
        return self.forward([tokens], cache, positions=[positions], keep=keep)[0]

    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        cache: Cache,
        *,
        positions: Sequence[Sequence[int]],
        mask: torch.Tensor | None = None,
        keep: int = 1,
    ) -> torch.Tensor:
        """Read `[rows, tokens]` behind a cache, which grows; logits `[rows, keep, vocabulary]`.

        Raises MemoryError.
        """
        with torch.inference_mode(), memory_errors():
            logits: torch.Tensor = self.model(
                input_ids=torch.tensor(tokens, device=self.device),
                position_ids=torch.tensor(positions, device=self.device),
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
            return logits

    def prompt_tokens(self, params: Mapping[str, Any]) -> tuple[int, ...]:
        """The tokens of a task's `messages` or `prompt`. Raises BadPrompt."""
        if "messages" in params:
            tokens = self._chat_tokens(params["messages"])
        else:
            tokens = self.tokenizer(params["prompt"])["input_ids"]
        if not tokens:
            raise BadPrompt("the prompt is empty; give the model something to continue")
        if len(tokens) >= self.context:
            raise BadPrompt(
                f"the prompt has {len(tokens)} tokens but the model's context holds "
                f"{self.context}, answer included; shorten the prompt"
            )
        return tuple(tokens)

    def _chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise BadPrompt(
                "this model has no chat template; set `chat: false` to continue plain text"
            )
        try:
            tokens: list[int] = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                return_dict=True,
                strftime_now=TEMPLATE_DAY.strftime,
            )["input_ids"]
        except jinja2.TemplateError as error:
            raise BadPrompt(f"the model's chat template refuses the messages: {error}") from error
        return tokens

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that continues another."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        return str(
            self.tokenizer.decode(
                tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )


@lru_cache(maxsize=1)
def load_weights(folder: Path, dtype: str) -> Weights:
    """The model of a folder; engines that open it again in this process share it.

    Raises ModelRefused, MemoryError.
    """
    return Weights(folder, dtype)


def set_up_torch() -> None:
    """Make torch quiet, deterministic, and content with the threads it was given."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.use_deterministic_algorithms(True)
    # Filling memory that is about to be written finds bugs in kernels, at 5 % of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def check_folder(folder: Path) -> None:
    """Refuse what is no model directory with safetensors weights. Raises ModelRefused."""
    if not (folder / "config.json").is_file():
        raise ModelRefused("this is not a model directory: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelRefused(
            "the model has no *.safetensors weights; other formats may carry code and are never "
            "loaded: save it with safe serialization, or import it by `flowmesh models add`"
        )


def check_writes(folder: Path) -> None:
    """Refuse a model whose head scores: with its tied embeddings, it would still write something.

    Raises ModelRefused.
    """
    with refusing_model():
        config = json.loads((folder / "config.json").read_bytes())
        named = str((config.get("architectures") or [""])[0])
    if named.endswith("ForSequenceClassification"):
        raise ModelRefused(
            f"this is a {named:.80}, which scores and does not write; `reward` runs it, and to "
            "write, give a causal language model"
        )


def check_complete(model: Any, missing: Collection[str], *, head: str = "") -> None:
    """Refuse a model that lacks weights: the loader has made them up by chance.

    Args:
        missing: what the loader did not find in the files.
        head: a layer that may be among them, as the caller sees to it.

    Raises ModelRefused.
    """
    lacking = sorted(name for name in missing if not head or not name.startswith(f"{head}."))
    if lacking:
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ModelRefused(
            f"the model's files lack {lacking[0]}{others}, which a {type(model).__name__} has: "
            "give the whole directory, or a model of that kind"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Within it, running out of memory is a MemoryError, however torch puts it."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU it is a plain one
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise


@contextmanager
def refusing_model() -> Iterator[None]:
    """Within it, what transformers can not load is a ModelRefused."""
    try:
        with memory_errors():
            yield
    except (MemoryError, ImportError):
        raise
    except OSError as error:
        if error.errno is not None:  # of the machine: a full disk, too many files
            raise
        raise _refused(error) from error
    except Exception as error:
        # Loaders raise whatever the damage leads to; all of it is the model's fault.
        raise _refused(error) from error


def _refused(error: Exception) -> ModelRefused:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelRefused(f"the model can not be loaded: {reason}")


def _ids(value: int | Iterable[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)
