"""The engine of `harness`: reads a task's file, runs it by lm-evaluation-harness, keeps tables.

A task is data from a tenant. Only settings that are understood are taken: no functions, no
data sets or metrics from elsewhere, and its templates run in a sandbox.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flowmesh.base.nearest import nearest
from flowmesh.operators.harness import SUMMARY_COLUMNS, HarnessParams
from flowmesh.operators.statistics import mean, rounded
from flowmesh.runtimes.adapters import load_adapter
from flowmesh.runtimes.base import Blobs, Done, Engine, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.refusal import Refusal
from flowmesh.runtimes.rows import Row, TableError, read_table, store_table
from flowmesh.runtimes.weights import BadPrompt, BrokenModel, ModelRefused, Weights, load_weights
from flowmesh.spec.action import Action, Artifact, Result
from flowmesh.spec.table import columns_of

#: What a task's file may say, and what of it is ignored: the data come from ports.
_TAKEN = frozenset(
    {
        *("task", "task_alias", "output_type", "description", "doc_to_text", "doc_to_target"),
        *("doc_to_choice", "target_delimiter", "fewshot_delimiter", "gen_prefix"),
        *("generation_kwargs", "metric_list", "filter_list", "repeats", "metadata"),
    }
)
_IGNORED = frozenset(
    {
        *("tag", "group", "dataset_path", "dataset_name", "dataset_kwargs", "training_split"),
        *("validation_split", "test_split", "fewshot_split", "num_fewshot"),
        *("should_decontaminate", "doc_to_decontamination_query"),
    }
)
_OF_A_METRIC = frozenset({"metric", "aggregation", "higher_is_better", "ignore_case"}) | {
    "ignore_punctuation",
    "ignore_numbers",
    "regexes_to_ignore",
}
_OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "generate_until", "multiple_choice")


def open_harness(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Engine:
    """Open the model of the port `model`; `engine` is `transformers/<dtype>`."""
    try:
        weights = load_weights(blobs.tree(inputs["model"].address), engine.rpartition("/")[2])
    except ModelRefused as refused:
        return Refusal(str(refused))
    return HarnessEngine(weights, blobs)


class HarnessEngine:
    """An `Engine` for actions of `harness`."""

    def __init__(self, weights: Weights, blobs: Blobs) -> None:
        self._weights, self._blobs = weights, blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            try:
                yield Done(work.task, self._evaluate(work.action))
            except (TableError, BadPrompt, BrokenModel, ModelRefused) as error:
                yield Failed(work.task, FailureKind.INPUT, str(error))

    def _evaluate(self, action: Action) -> Result:
        from flowmesh.runtimes.harness_model import evaluate_task  # needs lm-eval, as few do

        params = HarnessParams.model_validate(action.params)
        adapter, model = action.inputs.get("adapter"), action.inputs["model"]
        assert isinstance(model, Artifact), model
        loaded = None
        if adapter is not None:
            assert isinstance(adapter, Artifact), adapter
            loaded = load_adapter(self._weights, self._blobs, adapter, model)
        config = read_task(self._blobs.path(self._artifact(action, "task").address))
        documents = read_table(self._blobs, self._artifact(action, "data")).rows
        if not documents:
            raise TableError("`data` has no rows, so there is nothing to measure")
        examples: list[Row] = []
        if "fewshot" in action.inputs:
            examples = read_table(self._blobs, self._artifact(action, "fewshot")).rows
        if len(examples) < (params.num_fewshot or 0):
            raise TableError(
                f"`num_fewshot` is {params.num_fewshot} and `fewshot` has {len(examples)} rows"
            )
        found = evaluate_task(self._weights, loaded, config, documents, examples, params)
        rows, summary = _rows(found), _summary(found)
        return Result(
            outputs={
                "rows": store_table(self._blobs, rows, columns_of(rows)),
                "summary": store_table(self._blobs, summary, SUMMARY_COLUMNS),
            },
            numerics="exact" if self._weights.exact else "near",
            usage=found.usage,
        )

    def _artifact(self, action: Action, port: str) -> Artifact:
        bound = action.inputs[port]
        assert isinstance(bound, Artifact), bound
        return bound


def read_task(path: Path) -> dict[str, Any]:
    """The settings of a task. Raises TableError for what is not understood here."""
    try:
        found = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TableError(
            f"`task` can not be read: {reason}; functions (`!function`) are never run"
        ) from None
    if not isinstance(found, dict):
        raise TableError("`task` is no YAML mapping, as a task of lm-evaluation-harness is")
    for key in sorted(map(str, set(found) - _TAKEN - _IGNORED)):
        raise TableError(f"`task`: `{key:.80}` is not supported here{nearest(key, _TAKEN)}")
    if found.get("output_type", "generate_until") not in _OUTPUT_TYPES:
        raise TableError(f"`task`: `output_type` is none of {list(_OUTPUT_TYPES)}")
    if "task" not in found or "doc_to_text" not in found:
        raise TableError("`task` needs `task`, its name, and `doc_to_text`")
    _check_metrics(found.get("metric_list") or [])
    drawing = found.get("generation_kwargs") or {}
    if not isinstance(drawing, dict) or drawing.get("do_sample") or drawing.get("temperature"):
        raise TableError("`task`: `generation_kwargs` draw at random; answers here are greedy")
    return {key: value for key, value in found.items() if key in _TAKEN}


def _check_metrics(metrics: Any) -> None:
    for metric in metrics if isinstance(metrics, list) else [None]:
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str):
            raise TableError("`task`: `metric_list` is no list of mappings with a key `metric`")
        for key in sorted(map(str, set(metric) - _OF_A_METRIC)):
            raise TableError(f"`task`: `{key:.80}` of a metric is not supported here")


def _rows(found: Any) -> list[Row]:
    """One row for each document and filter, in the order of the documents."""
    rows = []
    for sample in sorted(found.samples, key=lambda one: (one["doc_id"], one["filter"])):
        row = {"doc_id": sample["doc_id"], "filter": sample["filter"], "doc": sample["doc"]}
        row |= {"target": sample["target"], "responses": _plain(sample["filtered_resps"])}
        rows.append(row | {name: _plain(sample[name]) for name in sample["metrics"]})
    return rows


def _summary(found: Any) -> list[Row]:
    """One row for each metric and filter; an interval where the value is a mean over rows."""
    summary = []
    for key, value in sorted(found.results.items()):
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        told = [
            sample[metric]
            for sample in found.samples
            if sample["filter"] == filtered and isinstance(sample.get(metric), int | float)
        ]
        over = mean([float(one) for one in told])
        is_mean = over.value is not None and abs(over.value - float(value)) < 1e-5
        values = (found.task, metric, filtered, over.n, rounded(float(value)))
        interval = (over.low, over.high, over.method) if is_mean else (None, None, "")
        summary.append(dict(zip(SUMMARY_COLUMNS, (*values, *interval), strict=True)))
    return summary


def _plain(value: Any) -> Any:
    """As JSON holds it: numpy's numbers as Python's, numbers rounded."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return rounded(value) if isinstance(value, float) else value
