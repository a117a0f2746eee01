"""The engine of `judge` and `evaluate`: passes over single tasks, and answers written in batch.

It opens the weights that `generate` and `choose` open, so that a process which serves them
all holds one copy. A task that can not be done fails alone; the others go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowmesh.runtimes.adapters import load_adapter
from flowmesh.runtimes.base import Blobs, Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.decoding import Answer, Decoder, Request
from flowmesh.runtimes.evaluating import choice_accuracy, matched, perplexity
from flowmesh.runtimes.judging import prompts, read_written, weigh
from flowmesh.runtimes.low_rank import Adapter
from flowmesh.runtimes.refusal import Refusal
from flowmesh.runtimes.weights import BadPrompt, BrokenModel, ModelRefused, Weights, load_weights
from flowmesh.spec.action import Action, Artifact, Result, Usage

Row = dict[str, Any]

#: From a task's parameters to its columns and what was read for them.
_BY_PASSES: Mapping[str, Callable[[Weights, Mapping[str, Any]], tuple[Row, Usage]]] = {
    "pairwise": weigh,
    "rubric": weigh,
    "perplexity": perplexity,
    "choice_accuracy": choice_accuracy,
}


def open_scorer(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
    """Open the model of the port `model`; `engine` is `transformers/<dtype>`.

    A model that can not be run gives an engine that fails every task with the reason.
    """
    try:
        weights = load_weights(blobs.tree(inputs["model"].address), engine.rpartition("/")[2])
    except ModelRefused as refused:
        return Refusal(str(refused))
    return Scorer(weights, blobs)


@dataclass(slots=True)
class _Writing:
    """A task whose columns follow from texts: as many as it has requests."""

    work: Work
    requests: list[Request]
    answers: dict[int, Answer] = field(default_factory=dict)


class Scorer:
    """An `Engine` for actions of `judge` and `evaluate`."""

    def __init__(self, weights: Weights, blobs: Blobs) -> None:
        self.weights = weights
        self.decoder = Decoder(weights)
        self._blobs = blobs

    @property
    def steps(self) -> int:
        return self.decoder.counts.steps

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        writing: list[_Writing] = []
        for work in batch:
            params = work.action.params
            try:
                adapter = self._adapter(work.action)
                if _is_written(params):
                    writing.append(_Writing(work, self._requests(params, adapter)))
                    continue
                with self.weights.adapted([adapter]):
                    row, usage = _BY_PASSES[params["kind"]](self.weights, params)
                yield self._done(work, row, usage)
            except (BadPrompt, BrokenModel, ModelRefused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))
        yield from self._write(writing)

    def _adapter(self, action: Action) -> Adapter | None:
        adapter, model = action.inputs.get("adapter"), action.inputs["model"]
        if adapter is None:
            return None
        assert isinstance(adapter, Artifact) and isinstance(model, Artifact), action.inputs
        return load_adapter(self.weights, self._blobs, adapter, model)

    def _requests(self, params: Mapping[str, Any], adapter: Adapter | None) -> list[Request]:
        made = []
        for asked in [params] if params["kind"] == "exact_match" else prompts(params):
            prompt = self.weights.prompt_tokens(asked)
            room = self.weights.context - len(prompt)
            stop = tuple(params.get("stop", ()))
            made.append(
                Request(prompt, min(params["max_tokens"], room), stop=stop, adapter=adapter)
            )
        return made

    def _write(self, writing: Sequence[_Writing]) -> Iterator[Outcome]:
        """Write all texts together; a task is done with the last of its own."""
        places = [(one, number) for one in writing for number in range(len(one.requests))]
        left = {one.work.task for one in writing}
        try:
            requests = [one.requests[number] for one, number in places]
            for index, answer in self.decoder.generate(requests):
                one, number = places[index]
                one.answers[number] = answer
                if len(one.answers) == len(one.requests):
                    left.remove(one.work.task)
                    yield self._read(one)
        except BrokenModel as error:
            for task in sorted(left):
                yield Failed(task, FailureKind.INPUT, str(error))

    def _read(self, one: _Writing) -> Outcome:
        params = one.work.action.params
        texts = [one.answers[number].text for number in range(len(one.requests))]
        try:
            if params["kind"] == "exact_match":
                row = matched(params, texts[0])
            else:
                row = read_written(params, texts)
        except BadPrompt as error:
            return Failed(one.work.task, FailureKind.INPUT, str(error))
        read = sum(len(request.prompt) for request in one.requests)
        written = sum(len(answer.tokens) for answer in one.answers.values())
        cached = sum(answer.cached_tokens for answer in one.answers.values())
        usage = Usage(prompt_tokens=read, generated_tokens=written, cached_tokens=cached)
        return self._done(one.work, row, usage)

    def _done(self, work: Work, row: Row, usage: Usage) -> Done:
        result = Result(rows=[row], numerics="exact" if self.weights.exact else "near", usage=usage)
        return Done(work.task, result)


def _is_written(params: Mapping[str, Any]) -> bool:
    return params["kind"] == "exact_match" or params.get("method") == "generate"
