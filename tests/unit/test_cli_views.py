"""How runs and lineage are told: as lines, as a summary, as a tree, as one document."""

import json

import pytest

from flowmesh.cli import progress
from flowmesh.cli.progress import Bars, Lines, progress_in_words
from flowmesh.cli.summary import run_document, show_summary
from flowmesh.cli.tree import drawn
from flowmesh.wire import (
    ArtifactView,
    LineageNode,
    ProgressView,
    RowFailure,
    RunView,
    StepView,
    TaskCounts,
)

TABLE = ArtifactView(kind="table", digest=f"sha256:{'ab' * 32}/10", rows=2, columns=("q",))


def view(status: str = "running", **settings: object) -> RunView:
    return RunView.model_validate(
        {"run": "r-1", "tenant": "alice", "name": "demo", "status": status, **settings}
    )


def step(status: str, **settings: object) -> StepView:
    return StepView.model_validate({"step": "one", "op": "render", "status": status, **settings})


HISTORY = [
    view(steps=[step("waiting")]),
    view(steps=[step("expanding")]),
    view(steps=[step("running", items=3)]),
    view(steps=[step("running", items=3, done=1)]),
    view("succeeded", steps=[step("succeeded", items=3, done=3, tasks=TaskCounts(executed=2))]),
]


def test_one_line_for_each_state_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as lines:
        for one in [*HISTORY, HISTORY[-1]]:
            lines.update(one)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run r-1 of tenant alice: demo",
        "one: running, 3 items",
        "one: succeeded (2 executed)",
    ]


def test_how_far_a_long_task_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"loss": 0.6134, "tokens_per_s": 410.2, "left_s": 64.0}
    at = ProgressView(step=12, steps=40, facts=facts)
    later = ProgressView(step=20, steps=40, message="a checkpoint could not be stored: full")
    history = [step("running", items=1), step("running", items=1, progress=at)]
    history += [step("running", items=1, progress=later)] * 2
    history += [step("running", items=1, waits_for="waits for a worker")]
    monkeypatch.setattr(progress, "LINE_GAP_S", 0.0)
    with Lines() as lines:
        for one in history:
            lines.update(view(steps=[one]))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "one: running, 1 item",
        "one: running, step 12/40  loss 0.613  410 tokens/s  1 min left",
        "one: running, step 20/40  a checkpoint could not be stored: full",
        "one: running, 1 item  waits for a worker",
    ]
    show_summary(view(steps=[history[1]]))
    assert "one  running, step 12/40  loss 0.613" in capsys.readouterr().out
    with Bars() as bars:
        for one in history:
            bars.update(view(steps=[one]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("left_s", 0.4, "0 s left"),
        ("left_s", 59.0, "59 s left"),
        ("left_s", 3599.0, "60 min left"),
        ("left_s", 7300.0, "2 h left"),
        ("rows_per_s", 1.234, "1.23 rows/s"),
        ("tokens_per_s", 12345.6, "12346 tokens/s"),
        ("grad_norm", 0.000123, "grad norm 0.000123"),
    ],
)
def test_facts_read_as_what_they_are(name: str, value: float, words: str) -> None:
    told = progress_in_words(ProgressView(step=3, steps=0, facts={name: value}))
    assert told == f"step 3  {words}"


def test_bars_write_nothing_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        for one in HISTORY:
            bars.update(one)
    assert capsys.readouterr().out == ""


def test_a_summary_says_what_was_shared_and_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = TaskCounts(total=6, executed=2, reused=2, joined=1, failed=1)
    failure = RowFailure(step="one", row=4, sample=1, kind="input", message="no \x1b[31mnumber")
    show_summary(
        view(
            "failed",
            message="step one: no number",
            steps=[step("failed", items=7, tasks=tasks)],
            tasks=tasks,
            batches=3,
            seconds=1.26,
            cost_usd=0.00123,
            failures=[failure] * 11,
        )
    )
    told = capsys.readouterr().out
    assert "\x1b" not in told
    for words in (
        "run r-1 (demo): failed after 1.3 s",
        "one    render    failed      7         2       2       1       1",
        "6 distinct tasks in 3 batches; 3 were not executed again",
        "cost $0.0012, saved $0",
        "  one, row 4, sample 1: no \\x1b[31mnumber (input)",
        "  and more: flowmesh show r-1 --json",
    ):
        assert words in told.splitlines(), told
    assert told.count("sample 1") == 10


def test_a_whole_step_that_failed_is_told_once_and_has_no_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = TaskCounts(total=1, failed=1)
    said = RowFailure(step="t", row=0, kind="input", message="column 'a' is\nmissing", whole=True)
    other = said.model_copy(update={"step": "u", "message": "too long"})
    settings = {"message": f"step t: {said.message}", "tasks": tasks, "batches": 1}
    show_summary(view("failed", failures=[said], **settings))
    told = capsys.readouterr().out
    assert told.count("missing") == 1
    assert "row" not in told
    assert "1 distinct task in 1 batch; 0 were not executed again" in told.splitlines()
    show_summary(view("failed", failures=[said, other], **settings))
    told = capsys.readouterr().out
    assert "failed:\n  u: too long (input)\n" in told
    assert told.count("missing") == 1


@pytest.mark.parametrize(
    ("saved_step", "words"),
    [
        (12, "cancelled; a checkpoint of step 12 of 40 is left: asked for again, it goes on"),
        (0, "cancelled; no checkpoint is left: asked for again, it begins anew"),
    ],
)
def test_a_cancelled_training_says_what_is_left(
    capsys: pytest.CaptureFixture[str], saved_step: int, words: str
) -> None:
    at = ProgressView(step=14, steps=40, saved_step=saved_step)
    show_summary(view("cancelled", steps=[step("cancelled", items=1, progress=at)]))
    assert f"one  {words}" in capsys.readouterr().out.splitlines()


def test_a_summary_ends_with_what_can_be_typed_next(capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(view("succeeded", outputs={"pairs": TABLE}))
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [
        "rows:     flowmesh outputs r-1 --name pairs",
        "lineage:  flowmesh lineage r-1:pairs",
    ]
    assert f"pairs   table     2  {TABLE.digest}" in told


def test_of_weights_other_things_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = TABLE.model_copy(update={"kind": "tree", "rows": -1})
    curve = adapter.model_copy(update={"kind": "file"})
    made = {"adapter": adapter, "curve": curve, "summary": TABLE, "metrics": TABLE}
    show_summary(view("succeeded", outputs=made))
    told = capsys.readouterr().out.splitlines()
    assert told[-6:] == [
        "rows:     flowmesh outputs r-1 --name summary",
        "file:     flowmesh outputs r-1 --name curve --to DIRECTORY",
        "weights:  flowmesh models show r-1:adapter",
        "a name:   flowmesh models tag r-1:adapter NAME",
        "files:    flowmesh outputs r-1 --name adapter --to DIRECTORY",
        "lineage:  flowmesh lineage r-1:adapter",
    ]


def test_the_document_for_scripts() -> None:
    document = json.loads(json.dumps(run_document(view("succeeded", outputs={"pairs": TABLE}))))
    assert document["outputs"] == {"pairs": TABLE.digest}
    assert document["tasks"] == dict.fromkeys(
        ("total", "executed", "reused", "joined", "failed"), 0
    )
    promised = {"run", "status", "tasks", "batches", "seconds", "cost_usd", "saved_usd", "outputs"}
    assert promised <= set(document)


def test_lineage_as_a_tree() -> None:
    prompts = LineageNode(label="input prompts", kind="input", digest=TABLE.digest)
    facts = {"operator": "generate@1", "seconds": 0.12345, "cost_usd": 0.0, "worker": "w"}
    answers = LineageNode(
        label="answers.rows row 3", kind="row", task="12" * 32, facts=facts, children=[prompts]
    )
    model = LineageNode(label="model chat", kind="model", cut=True)
    root = LineageNode(
        label="pairs.rows", kind="artifact", children=[answers, model, answers.model_copy()]
    )
    assert drawn(root).splitlines() == [
        "pairs.rows (artifact)",
        "├─ answers.rows row 3  by generate@1  on w  0.123 s  task 121212121212",
        "│  └─ input prompts  sha256:abababababab",
        "├─ model chat  (cut here)",
        "└─ answers.rows row 3  by generate@1  on w  0.123 s  task 121212121212 (as above)",
    ]
