"""`harness`: what a task's file may say, and (where lm-eval is installed) what comes of it."""

from pathlib import Path
from typing import Any

import pytest

from flowmesh.operators.harness import HARNESS
from flowmesh.runtimes.base import Done, Work
from flowmesh.runtimes.harness import open_harness, read_task
from flowmesh.runtimes.rows import TableError
from flowmesh.spec.action import Action, Artifact
from support.blobs import DirBlobs
from support.scoring import ENGINE, refusal, row, run, tree, work
from support.tiny_model import make_tiny

CHOICE = """
task: colours
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """
task: writing
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
DOCUMENTS = [
    {"question": f"What is {n}?", "choices": ["blue", "a river", "why"], "answer": n % 3}
    for n in range(6)
]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("answer", "!function code.run", "functions"),
        ("task: colours", "task: [", "can not be read"),
        ("task: colours", "name: colours", "`name`"),
        ("doc_to_text", "doc_to_txt", "did you mean 'doc_to_text'"),
        ("dataset_path: json", "process_docs: x", "`process_docs`"),
        ("multiple_choice", "magic", "output_type"),
        ("{metric: acc}", "{metric: acc, hf_evaluate: true}", "hf_evaluate"),
        ("[{metric: acc}, {metric: acc_norm}]", "acc", "metric_list"),
        ("test_split: test", "generation_kwargs: {do_sample: true}", "greedy"),
    ],
)
def test_a_task_that_is_not_understood_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in CHOICE
    (tmp_path / "task.yaml").write_text(CHOICE.replace(old, new))
    with pytest.raises(TableError, match=words):
        read_task(tmp_path / "task.yaml")


def test_where_a_task_looks_for_its_data_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(CHOICE)
    found = read_task(tmp_path / "task.yaml")
    assert found["task"] == "colours" and "dataset_path" not in found


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[DirBlobs, Any, dict[str, Artifact]]:
    pytest.importorskip("lm_eval")
    blobs = DirBlobs(tmp_path_factory.mktemp("store"))
    model = {"model": tree(blobs, make_tiny(tmp_path_factory.mktemp("model") / "tiny"))}
    return blobs, open_harness(blobs, model, ENGINE), model


def harness(opened: Any, text: str, documents: list[dict[str, Any]], **given: Any) -> Any:
    blobs, engine, model = opened
    ports = model | {"task": blobs.put_file(text), "data": blobs.put_table(documents)}
    if "num_fewshot" in given:
        ports["fewshot"] = blobs.put_table(DOCUMENTS[:2])
    params = HARNESS.params.model_validate(given).model_dump(mode="json")
    (outcome,) = engine.run([Work("t", Action("harness", 1, params, ports, ENGINE))])
    return outcome


def test_choices_agree_with_choice_accuracy(opened: Any) -> None:
    from flowmesh.runtimes.scorer import open_scorer

    blobs, _, model = opened
    outcome = harness(opened, CHOICE, DOCUMENTS)
    assert isinstance(outcome, Done), outcome
    summary = blobs.rows(outcome.result.outputs["summary"])
    assert [one["metric"] for one in summary] == ["acc", "acc_norm"]
    assert all(one["n"] == 6 and one["ci_low"] <= one["value"] for one in summary)
    scorer = open_scorer(blobs, model, ENGINE)
    right = []
    for number, document in enumerate(DOCUMENTS):
        choices = [f" {choice}" for choice in document["choices"]]
        given = {"choices": choices, "answer": choices[document["answer"]], "chat": False}
        prompt = f"Q: {document['question']}\nA:"
        asked = work("t", "evaluate", model, metric="choice_accuracy", prompt=prompt, **given)
        right.append(row(run(scorer, asked)["t"])["score"])
        assert blobs.rows(outcome.result.outputs["rows"])[number]["acc"] == right[-1]
    assert summary[0]["value"] == pytest.approx(sum(right) / 6, abs=1e-6)


def test_answers_are_written_and_few_shots_are_shown(opened: Any) -> None:
    blobs = opened[0]
    found = [harness(opened, WRITTEN, DOCUMENTS, **more) for more in ({}, {"num_fewshot": 2})]
    for outcome in found:
        assert isinstance(outcome, Done), outcome
        (told,) = blobs.rows(outcome.result.outputs["summary"])
        assert (told["metric"], told["n"]) == ("exact_match", 6)
    assert found[0].result.usage.prompt_tokens < found[1].result.usage.prompt_tokens
    assert harness(opened, WRITTEN, DOCUMENTS).result == found[0].result


def test_a_chat_template_that_prints_the_date_gets_a_fixed_one(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from flowmesh.runtimes.harness_model import _Model
    from flowmesh.runtimes.weights import Weights

    folder = make_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }}")
    model = _Model(Weights(folder, "float32"), None, 8)
    assert model.apply_chat_template([{"role": "user", "content": "a"}]) == "01 January 2025"


def test_what_can_not_be_run_is_said(opened: Any) -> None:
    secret = CHOICE.replace("{{question}}", "{{ ''.__class__.__mro__ }}")
    assert "unsafe" in refusal(harness(opened, secret, DOCUMENTS))
    assert "'asked'" in refusal(
        harness(opened, CHOICE.replace("{{question}}", "{{asked}}"), DOCUMENTS)
    )
    metric = CHOICE.replace("{metric: acc}", "{metric: bertscore_of_a_kind}")
    assert "no metric" in refusal(harness(opened, metric, DOCUMENTS))
    long = [DOCUMENTS[0] | {"question": "river " * 600}]
    assert "context" in refusal(harness(opened, CHOICE, long))
    assert "num_fewshot" in refusal(harness(opened, CHOICE, DOCUMENTS, num_fewshot=3))
    assert "no rows" in refusal(harness(opened, CHOICE, []))
