"""The engine of `generate` and `choose`: from actions to tokens, and back to results.

One engine serves both operators of one model and all adapters of it, so a process that is
asked for many loads the base once; rows of different adapters share a batch. A task that
can not be done fails alone; the others go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmesh.runtimes.adapters import AdapterRefused, load_adapter
from flowmesh.runtimes.base import Blobs, Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.choosing import Choice, choose
from flowmesh.runtimes.decoding import Decoder, Request
from flowmesh.runtimes.low_rank import Adapter
from flowmesh.runtimes.refusal import Refusal
from flowmesh.runtimes.sampling import GREEDY, Sampling, stream_key
from flowmesh.runtimes.weights import (
    BadPrompt,
    BrokenModel,
    ModelRefused,
    Weights,
    load_weights,
)
from flowmesh.spec.action import Result, Usage


def open_language_model(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
    """Open the model of the port `model`; `engine` is `transformers/<dtype>`.

    A model that can not be run gives an engine that fails every task with the reason.
    """
    try:
        weights = load_weights(blobs.tree(inputs["model"].address), engine.rpartition("/")[2])
    except ModelRefused as refused:
        return Refusal(str(refused))
    return LanguageModel(weights, blobs)


class LanguageModel:
    """An `Engine` for actions of `generate` and `choose`."""

    def __init__(self, weights: Weights, blobs: Blobs) -> None:
        self.weights, self.blobs = weights, blobs
        self.decoder = Decoder(weights)

    @property
    def steps(self) -> int:
        return self.decoder.counts.steps

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        writing: list[tuple[Work, Request]] = []
        for work in batch:
            try:
                if work.action.op == "choose":
                    yield self._choose(work)
                else:
                    writing.append((work, self._request(work)))
            except (BadPrompt, BrokenModel, AdapterRefused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
        yield from self._generate(writing)

    def _generate(self, writing: Sequence[tuple[Work, Request]]) -> Iterator[Outcome]:
        left = {work.task for work, _ in writing}
        try:
            for index, answer in self.decoder.generate([request for _, request in writing]):
                work, request = writing[index]
                row: dict[str, Any] = {"text": answer.text, "finish_reason": answer.finish_reason}
                if answer.logprobs is not None:
                    names = [self.weights.text([token], special=True) for token in answer.tokens]
                    row["logprobs"] = {"tokens": names, "logprobs": answer.logprobs}
                if work.action.params.get("tokens"):
                    row["prompt_tokens"] = list(request.prompt)
                    row["completion_tokens"] = list(answer.tokens)
                left.remove(work.task)
                written = len(answer.tokens)
                yield self._done(work, row, len(request.prompt), written, answer.cached_tokens)
        except BrokenModel as error:
            for work, _ in writing:
                if work.task in left:
                    yield Failed(work.task, FailureKind.INPUT, str(error))

    def _request(self, work: Work) -> Request:
        params = work.action.params
        prompt = self.weights.prompt_tokens(params)
        sampling = GREEDY
        if params["temperature"] > 0:
            # Without a seed the task's id stands in: it is salted with the run, so that
            # runs draw apart, while a retry of the task draws the same.
            seed = work.task if params["seed"] is None else params["seed"]
            key = stream_key(seed, params["sample"], prompt)
            sampling = Sampling(params["temperature"], params["top_p"], params["top_k"], key)
        room = self.weights.context - len(prompt)
        return Request(
            prompt,
            min(params["max_tokens"], room),
            sampling,
            tuple(params["stop"]),
            params["logprobs"],
            self._adapter(work),
        )

    def _choose(self, work: Work) -> Outcome:
        params = work.action.params
        prompt = self.weights.prompt_tokens(params)
        by_length = params["normalise"] == "length"
        with self.weights.adapted([self._adapter(work)]):
            choice: Choice = choose(self.weights, prompt, params["choices"], by_length=by_length)
        row = {
            "choice": choice.text,
            "probability": choice.probabilities[choice.text],
            "probabilities": choice.probabilities,
        }
        return self._done(work, row, len(prompt) + choice.read_tokens, 0, choice.cached_tokens)

    def _adapter(self, work: Work) -> Adapter | None:
        inputs: Mapping[str, Any] = work.action.inputs
        if "adapter" not in inputs:
            return None
        return load_adapter(self.weights, self.blobs, inputs["adapter"], inputs["model"])

    def _done(
        self, work: Work, row: dict[str, Any], prompt: int, generated: int, cached: int
    ) -> Done:
        usage = Usage(prompt_tokens=prompt, generated_tokens=generated, cached_tokens=cached)
        result = Result(rows=[row], numerics="exact" if self.weights.exact else "near", usage=usage)
        return Done(work.task, result)
