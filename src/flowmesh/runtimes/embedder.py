"""The engine of `embed`: texts to vectors, by an encoder and the pooling that its folder states.

In float32 each text is read alone, so that its vector is the same in any company; in
bfloat16 texts of like length are read together, which is several times faster.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from flowmesh.runtimes.base import Blobs, Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.refusal import Refusal
from flowmesh.runtimes.weights import (
    DTYPES,
    BadPrompt,
    ModelRefused,
    check_folder,
    memory_errors,
    refusing_model,
    set_up_torch,
)
from flowmesh.spec.action import Result, Usage

#: Texts read together in bfloat16.
_BATCH_TEXTS = 32
#: Decimal places of vectors of length 1: no less exact than float32 arithmetic makes them, and
#: 384 numbers then fit into a result that is kept inline.
_UNIT_PLACES = 6
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS = ("mean", "cls", "lasttoken")


def open_embedder(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
    """Open the encoder of the port `model`; `engine` is `transformers/<dtype>`.

    A model that can not be run gives an engine that fails every task with the reason.
    """
    try:
        return load_embedder(blobs.tree(inputs["model"].address), engine.rpartition("/")[2])
    except ModelRefused as refused:
        return Refusal(str(refused))


class Embedder:
    """An `Engine` for actions of `embed`."""

    def __init__(self, folder: Path, dtype: str) -> None:
        set_up_torch()
        check_folder(folder)
        self.pooling = _pooling(folder)
        self.exact = dtype == "float32"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        place = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
        with refusing_model():
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                **place, trust_remote_code=False
            )
            self.model = transformers.AutoModel.from_pretrained(
                **place, trust_remote_code=False, use_safetensors=True, dtype=DTYPES[dtype]
            )
        self.model.eval().to(self.device)
        stated = _read(folder / "sentence_bert_config.json").get("max_seq_length")
        limits = (stated, getattr(self.model.config, "max_position_embeddings", None))
        self.longest = min((int(limit) for limit in limits if limit), default=2**31)

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        ready: list[tuple[Work, list[int]]] = []
        for work in batch:
            try:
                ready.append((work, self._tokens(work.action.params)))
            except BadPrompt as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
        ready.sort(key=lambda one: len(one[1]))
        together = 1 if self.exact else _BATCH_TEXTS
        for start in range(0, len(ready), together):
            group = ready[start : start + together]
            vectors = self.vectors([tokens for _, tokens in group])
            for (work, tokens), vector in zip(group, vectors, strict=True):
                yield self._outcome(work, vector, len(tokens))

    def vectors(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """`[texts, width]`, not normalised. Raises MemoryError."""
        longest = max(map(len, texts))
        ids = torch.zeros((len(texts), longest), dtype=torch.long, device=self.device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.inference_mode(), memory_errors():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            pooled = self._pooled(hidden, mask)
        return np.asarray(pooled.cpu().numpy(), dtype=np.float32)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "lasttoken":
            return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
        weights = mask.unsqueeze(-1).float()
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def _tokens(self, params: Mapping[str, Any]) -> list[int]:
        tokens = list(self.tokenizer(params["text"])["input_ids"])
        if len(tokens) > self.longest:
            if not params["truncate"]:
                raise BadPrompt(
                    f"the text has {len(tokens)} tokens but the model reads {self.longest}; "
                    "split it, or cut it by `truncate: true`"
                )
            cut = self.tokenizer(params["text"], truncation=True, max_length=self.longest)
            tokens = list(cut["input_ids"])
        if not tokens:
            raise BadPrompt("the text is empty and this model has no vector for nothing")
        return tokens

    def _outcome(self, work: Work, vector: NDArray[np.float32], tokens: int) -> Outcome:
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length):
            return Failed(work.task, FailureKind.INPUT, "the model's vector is not a number (NaN)")
        if work.action.params["normalize"] and length > 0:
            numbers = [round(float(number) / length, _UNIT_PLACES) for number in vector]
        else:
            # The text of a float32 is the shortest that reads back to it, half that of a double.
            numbers = [float(str(number)) for number in vector]
        row = {"embedding": numbers}
        result = Result(
            rows=[row],
            numerics="exact" if self.exact else "near",
            usage=Usage(prompt_tokens=tokens),
        )
        return Done(work.task, result)


@lru_cache(maxsize=1)
def load_embedder(folder: Path, dtype: str) -> Embedder:
    """The encoder of a folder, loaded once in a process. Raises ModelRefused, MemoryError."""
    return Embedder(folder, dtype)


def _pooling(folder: Path) -> str:
    """How the folder says that token vectors become one. Raises ModelRefused."""
    modules = _read(folder / "modules.json")
    if not modules:
        raise ModelRefused(
            "this is no embedding model: it has no modules.json that says how to pool its tokens"
        )
    for module in modules:
        if module["type"].rpartition(".")[2] not in _MODULES:
            raise ModelRefused(
                f"the embedding model has a part that is not known: {module['type']}"
            )
    places = [m["path"] for m in modules if m["type"].endswith(".Pooling")]
    config = _read(folder / places[0] / "config.json") if places else {}
    mode = config.get("pooling_mode")
    modes = [mode] if mode else [key for key in config if key.startswith("pooling_mode_")]
    names = [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name in modes
        if mode or config[name]
    ]
    if len(names) != 1 or names[0] not in _POOLINGS:
        raise ModelRefused(f"pooling by {names} is not known; expected one of {list(_POOLINGS)}")
    return str(names[0])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelRefused(f"{path.name} of the model is not JSON: {error}") from None
