"""Answers are judged, rewarded, measured and compared by a server and its workers."""

from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.errors import FlowMeshError
from flowmesh.sdk.runs import Run
from support.fabric import Fabric

ROWS = [
    {"id": n, "question": f"What is {n}?", "answer": f"the river {n}", "other": "a stone"}
    for n in range(5)
]
SCORED = {"op": "evaluate", "rows": "${inputs.rows}", "metric": "perplexity"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    from support.tiny_model import make_tiny

    folder = make_tiny(tmp_path_factory.mktemp("classifier") / "model")
    auto = transformers.AutoModelForSequenceClassification
    auto.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return folder


def submit(
    trainers: Fabric,
    models: dict[str, Path],
    steps: dict[str, Any],
    outputs: list[str],
    rows: list[dict[str, Any]] = ROWS,
) -> Run:
    document = {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table", "columns": list(ROWS[0])}},
        "models": {name: {"path": str(path)} for name, path in models.items()},
        "steps": steps,
        "outputs": {name.replace(".", "_"): f"${{steps.{name}}}" for name in outputs},
    }
    return trainers.client("scoring").submit(document, inputs={"rows": rows})


def judge(**more: Any) -> dict[str, Any]:
    return {"op": "judge", "rows": "${inputs.rows}", "model": "${models.chat}"} | more


def test_steps_that_score_tell_of_each_row_and_of_all(
    trainers: Fabric, tiny_model: Path, classifier: Path
) -> None:
    steps = {
        "pairs": judge(
            mode="pairwise",
            question="{{ question }}",
            first="{{ answer }}",
            second="{{ other }}",
        ),
        "grades": judge(mode="rubric", answer="{{ answer }}", scale="yes/no", into="grade"),
        "rewards": {
            "op": "reward",
            "rows": "${inputs.rows}",
            "model": "${models.scorer}",
            "prompt": "{{ question }}",
            "completion": "{{ answer }}",
        },
        "one": SCORED | {"model": "${models.chat}", "text": "{{ question }} {{ answer }}"},
        "two": SCORED | {"model": "${models.chat}", "text": "{{ question }} {{ other }}"},
        "compared": {
            "op": "compare",
            "first": "${steps.one}",
            "second": "${steps.two}",
            "by": ["id"],
        },
    }
    names = [f"{step}.{port}" for step in steps for port in ("rows", "summary")]
    run = submit(trainers, {"chat": tiny_model, "scorer": classifier}, steps, names)
    assert run.wait().status == "succeeded", run.view()
    found = {name: run.output(name.replace(".", "_")).rows() for name in names}
    for step in ("pairs", "grades", "rewards", "one"):
        assert [row["id"] for row in found[f"{step}.rows"]] == list(range(5))
        (told,) = found[f"{step}.summary"]
        assert told["n"] == 5
    winners = [row["winner"] for row in found["pairs.rows"]]
    share = (winners.count("first") + winners.count("tie") / 2) / 5
    assert found["pairs.summary"][0]["win_rate"] == pytest.approx(share)
    assert all(0 <= row["grade_score"] <= 1 for row in found["grades.rows"])
    assert len({row["reward"] for row in found["rewards.rows"]}) == 5
    (told,) = found["compared.summary"]
    gaps = [row["difference"] for row in found["compared.rows"]]
    assert told["n"] == 5 and told["difference"] == pytest.approx(sum(gaps) / 5, abs=1e-5)
    again = submit(trainers, {"chat": tiny_model, "scorer": classifier}, steps, names)
    assert again.wait().tasks.executed == 0


def test_a_column_that_is_not_there_is_refused_before_the_run(
    trainers: Fabric, tiny_model: Path
) -> None:
    steps = {"grades": judge(mode="rubric", answer="{{ anser }}")}
    with pytest.raises(FlowMeshError, match="did you mean 'answer'"):
        submit(trainers, {"chat": tiny_model}, steps, ["grades.rows"])
