"""`judge`: what is refused, both orders, strict verdicts, and the aggregate."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.operators.evaluate import EVALUATE
from flowmesh.operators.generate import GENERATE
from flowmesh.operators.judge import JUDGE, JudgeParams, scale_of
from flowmesh.runtimes.base import Engine, Work
from flowmesh.runtimes.judging import prompts, read_verdict, read_written
from flowmesh.runtimes.language_model import open_language_model
from flowmesh.runtimes.scorer import open_scorer
from flowmesh.runtimes.weights import BadPrompt
from flowmesh.spec.action import Artifact
from flowmesh.spec.operator import ParamError
from support.blobs import DirBlobs
from support.scoring import ENGINE, refusal, row, run, task_of, tree, work
from support.tiny_model import make_tiny

PAIR = {"mode": "pairwise", "question": "Why?", "first": "the river", "second": "a stone"}
GRADE = {"mode": "rubric", "question": "Why?", "answer": "the river"}


def refused(**given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        JudgeParams.model_validate(given)
    error = caught.value.errors()[0]
    cause = error.get("ctx", {}).get("error")
    return cause.field if isinstance(cause, ParamError) else str(error["loc"][0])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"mode": "pairwise", "first": "a"}, "second"),
        (PAIR | {"answer": "x"}, "answer"),
        (PAIR | {"scale": "1-5"}, "scale"),
        ({"mode": "rubric"}, "answer"),
        (GRADE | {"first": "x"}, "first"),
        (GRADE | {"labels": ["1", "2"]}, "labels"),
        (GRADE | {"scale": "1-1"}, "scale"),
        (GRADE | {"scale": "0-99"}, "scale"),
        (GRADE | {"scale": "yes"}, "scale"),
        (GRADE | {"scale": "yes/"}, "scale"),
        (GRADE | {"scale": "yes/YES"}, "scale"),
        (GRADE | {"scale": "1-10"}, "scale"),
        (PAIR | {"labels": ["A", "A"]}, "labels"),
        (PAIR | {"labels": ["A", "Answer"]}, "labels"),
        (PAIR | {"layout": "{{ first }}"}, "layout"),
        (PAIR | {"layout": "{{ first }} {{ second }} {{ answer }}"}, "layout"),
        (PAIR | {"layout": "{{ first }"}, "layout"),
        (GRADE | {"layout": "{{ question }}"}, "layout"),
        (GRADE | {"system": "s", "chat": False}, "system"),
        (GRADE | {"into": "two words"}, "into"),
        (GRADE | {"max_tokens": 9}, "max_tokens"),
        (PAIR | {"invalid": "null"}, "invalid"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(given: dict[str, Any], field: str) -> None:
    assert refused(**given) == field


def test_scales() -> None:
    assert scale_of("1-3") == [("1", 1.0), ("2", 2.0), ("3", 3.0)]
    assert scale_of("yes/no") == [("yes", 1.0), ("no", 0.0)]
    assert scale_of("good / fair / bad") == [("good", 1.0), ("fair", 0.5), ("bad", 0.0)]
    assert scale_of({"Poor": 0, "Great": 10}) == [("Poor", 0.0), ("Great", 10.0)]
    JudgeParams.model_validate(GRADE | {"scale": "1-10", "method": "generate"})


def test_a_task_holds_what_may_change_the_verdict_and_nothing_else() -> None:
    base = task_of(JUDGE, PAIR)
    assert base == task_of(JUDGE, PAIR | {"into": "x"})
    for change in (
        {"criterion": "Which is shorter?"},
        {"labels": ["1", "2"]},
        {"method": "generate"},
        {"layout": "{{ first }} or {{ second }}?"},
        {"system": "Be strict."},
        {"first": "a stone", "second": "the river"},
    ):
        assert task_of(JUDGE, PAIR | change) != base
    graded = task_of(JUDGE, GRADE)
    assert graded["rubric"] == task_of(JUDGE, GRADE | {"rubric": graded["rubric"]})["rubric"]
    assert task_of(JUDGE, GRADE | {"scale": "1-5"})["rubric"] != graded["rubric"]


def test_a_pair_is_laid_out_in_both_orders() -> None:
    one, other = (asked["messages"][-1]["content"] for asked in prompts(task_of(JUDGE, PAIR)))
    assert one == (
        "Question: Why?\n\nAnswer A: the river\n\nAnswer B: a stone\n\n"
        "Which answer is more correct and more helpful? Reply with A or B only."
    )
    swapped = one.replace("the river", "#").replace("a stone", "the river").replace("#", "a stone")
    assert other == swapped


def test_a_grade_is_asked_for_in_few_words() -> None:
    (asked,) = prompts(task_of(JUDGE, GRADE))
    assert asked["messages"][-1]["content"] == (
        "You grade answers. You reply with one word.\n\n"
        "Question: Why?\nAnswer: the river\nGrade (Good or Bad):"
    )
    (asked,) = prompts(task_of(JUDGE, GRADE | {"question": None, "scale": "1-3", "chat": False}))
    assert asked["prompt"] == (
        "You grade answers. You reply with one number, the higher the better.\n\n"
        "Answer: the river\nGrade (1, 2 or 3):"
    )


def test_a_layout_that_fails_says_where() -> None:
    layout = "{{ first.name }} {{ second }}"
    with pytest.raises(BadPrompt, match=r"`layout`: .*name"):
        prompts(task_of(JUDGE, PAIR | {"layout": layout}))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It is clear.\nVerdict: A", "A"),
        ("**Verdict:** b.", "b"),
        ("verdict : TIE\n\n", "tie"),
        ('Because.\n{"verdict": "A", "why": "short"}', "A"),
        ('{\n  "verdict": "b"\n}', "b"),
        ("Verdict: A\nbut I am not sure", None),
        ("Verdict: A or B", None),
        ("Verdict: C", None),
        ("A", None),
        ('{"verdict": true}', None),
        ('{"verdict": ["A"]}', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_only_a_clear_verdict_counts(text: str, verdict: str | None) -> None:
    assert read_verdict(text, ["A", "b", "tie"]) == verdict


def test_numbers_are_verdicts_of_a_scale() -> None:
    assert read_verdict('{"verdict": 4}', ["1", "4"]) == "4"
    assert read_verdict("Verdict: 4", ["1", "4"]) == "4"
    assert read_verdict("Verdict: 4/5", ["1", "4"]) is None


@pytest.mark.parametrize(
    ("verdicts", "columns"),
    [
        (("A", "B"), ("first", 1.0, True)),
        (("B", "A"), ("second", 0.0, True)),
        (("A", "A"), ("tie", 0.5, False)),
        (("tie", "tie"), ("tie", 0.5, True)),
        (("A", "tie"), ("first", 0.75, False)),
    ],
)
def test_what_was_written_in_both_orders_is_one_verdict(
    verdicts: tuple[str, str], columns: tuple[str, float, bool]
) -> None:
    params = task_of(JUDGE, PAIR | {"method": "generate"})
    found = read_written(params, [f"So:\nVerdict: {verdict}" for verdict in verdicts])
    assert (found["winner"], found["preference"], found["consistent"]) == columns


def test_what_is_no_verdict_fails_or_is_null() -> None:
    given = GRADE | {"method": "generate", "scale": "1-3"}
    with pytest.raises(BadPrompt) as caught:
        read_written(task_of(JUDGE, given), ["I like rivers"])
    assert "'I like rivers'" in str(caught.value) and "'3'" in str(caught.value)
    assert "`invalid: 'null'`" in str(caught.value)  # a bare null would be refused
    found = read_written(task_of(JUDGE, given | {"invalid": "null"}), ["I like rivers"])
    params = JudgeParams.model_validate(given)
    assert JUDGE.shape(params, [found], 0) == [
        {"score": None, "verdict": None, "reasoning": "I like rivers"}
    ]
    assert read_written(task_of(JUDGE, given), ["Verdict: 2"])["score"] == 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, dict[str, Artifact]]:
    blobs = DirBlobs(tmp_path_factory.mktemp("store"))
    ports = {"model": tree(blobs, make_tiny(tmp_path_factory.mktemp("model") / "tiny"))}
    return open_scorer(blobs, ports, ENGINE), ports


def judge(ports: dict[str, Artifact], name: str, **given: Any) -> Work:
    return work(name, "judge", ports, **given)


def test_the_order_in_which_a_pair_is_given_does_not_matter(model: Any) -> None:
    engine, ports = model
    swapped = PAIR | {"first": PAIR["second"], "second": PAIR["first"]}
    found = run(engine, judge(ports, "one", **PAIR), judge(ports, "other", **swapped))
    one, other = row(found["one"]), row(found["other"])
    assert one["preference"] == pytest.approx(1 - other["preference"], abs=2e-6)
    assert {one["winner"], other["winner"]} == {"first", "second"}
    assert one["consistent"] == other["consistent"]


def test_equal_answers_tie(model: Any) -> None:
    engine, ports = model
    for text in ("the river", "Every question has an answer", "bread " * 20):
        found = row(run(engine, judge(ports, "t", **PAIR | {"first": text, "second": text}))["t"])
        assert (found["winner"], found["preference"]) == ("tie", 0.5)


def test_a_grade_is_the_expected_value(model: Any) -> None:
    engine, ports = model
    found = row(run(engine, judge(ports, "t", **GRADE, scale="1-5"))["t"])
    shares = found["probabilities"]
    assert list(shares) == ["1", "2", "3", "4", "5"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    expected = sum(int(word) * share for word, share in shares.items())
    assert found["score"] == pytest.approx(expected, abs=1e-4)
    assert shares[found["verdict"]] == max(shares.values())


def test_rows_are_judged_alike_alone_and_together(model: Any) -> None:
    engine, ports = model
    batch = [judge(ports, f"p{n}", **PAIR | {"first": "bread " * n}) for n in range(1, 4)]
    batch += [judge(ports, f"r{n}", **GRADE | {"answer": "a mill " * n}) for n in range(1, 4)]
    batch += [
        judge(ports, f"{kind}{n}", **GRADE | more, method="generate", max_tokens=9, invalid="null")
        for n in range(2)
        for kind, more in (("w", {"question": f"{n}?"}), ("v", {"scale": f"{n}-7"}))
    ]
    together = run(engine, *batch)
    assert {one.task: run(engine, one)[one.task] for one in batch} == together


def test_a_bad_row_fails_alone(model: Any) -> None:
    engine, ports = model
    found = run(
        engine,
        judge(ports, "long", **PAIR | {"first": "river " * 600}),
        judge(ports, "mute", **GRADE, method="generate", max_tokens=3),
        judge(ports, "good", **PAIR),
    )
    assert "shorten the prompt" in refusal(found["long"])
    assert "no verdict" in refusal(found["mute"])
    assert row(found["good"])["winner"]


SYSTEM = {"role": "system", "content": "the river " * 40}
CHAT = [SYSTEM, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("judge", PAIR | {"system": SYSTEM["content"]}),
        ("judge", GRADE | {"system": SYSTEM["content"], "method": "generate", "invalid": "null"}),
        ("evaluate", {"metric": "perplexity", "messages": CHAT, "completion": "a stone"}),
        (
            "evaluate",
            {
                "metric": "choice_accuracy", "messages": CHAT, "choices": ["a", "b"], "answer": "a"
            },
        ),
    ],
)  # fmt: skip
def test_usage_tells_what_was_remembered_of_prompts(
    model: Any, op: str, given: dict[str, Any]
) -> None:
    engine, ports = model
    found = [run(engine, work(name, op, ports, **given))[name] for name in ("one", "other")]
    assert row(found[0]) == row(found[1])
    usage = found[1].result.usage
    assert 80 < usage.cached_tokens < usage.prompt_tokens


def test_columns_can_have_a_prefix() -> None:
    params = JudgeParams.model_validate(PAIR | {"into": "quality"})
    made = {"winner": "first", "preference": 0.7, "consistent": True, "score": 1.0}
    (shaped,) = JUDGE.shape(params, [made], 0)
    assert tuple(shaped) == JUDGE.adds(params)
    assert shaped["quality_winner"] == "first"


def test_the_aggregate_of_pairs() -> None:
    params = JudgeParams.model_validate(PAIR)
    assert JUDGE.aggregate is not None
    rows = [
        {"winner": winner, "preference": 0.5, "consistent": agreed}
        for winner, agreed in (("first", True), ("first", False), ("second", True), ("tie", False))
    ]
    rows.append({"winner": None, "preference": None, "consistent": None})
    (found,) = JUDGE.aggregate(params, rows)
    counts = ("n", "win_rate", "wins", "losses", "ties", "invalid", "consistency")
    assert [found[name] for name in counts] == [4, 0.625, 2, 1, 1, 1, 0.5]
    assert 0 < found["ci_low"] < 0.625 < found["ci_high"] < 1
    (empty,) = JUDGE.aggregate(params, [])
    assert tuple(empty) == tuple(found)
    assert empty["n"] == 0 and empty["win_rate"] is None and empty["consistency"] is None


def test_the_aggregate_of_grades() -> None:
    params = JudgeParams.model_validate(GRADE | {"into": "q"})
    assert JUDGE.aggregate is not None
    (found,) = JUDGE.aggregate(params, [{"q_score": score} for score in (1.0, 2.0, 3.0, None)])
    assert (found["n"], found["score"], found["invalid"]) == (3, 2.0, 1)
    assert found["ci_low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    (empty,) = JUDGE.aggregate(params, [])
    assert tuple(empty) == tuple(found) and empty["score"] is None


def test_a_model_that_can_not_be_run_fails_its_tasks(tmp_path: Path) -> None:
    blobs = DirBlobs(tmp_path / "store")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing else")
    ports = {"model": tree(blobs, tmp_path / "empty")}
    found = run(open_scorer(blobs, ports, ENGINE), judge(ports, "t", **PAIR))
    assert "config.json" in refusal(found["t"])


def test_a_judge_and_a_writer_hold_one_copy_of_the_weights(tmp_path: Path) -> None:
    blobs = DirBlobs(tmp_path / "store")
    ports = {"model": tree(blobs, make_tiny(tmp_path / "tiny"))}
    engines = [opened(blobs, ports, ENGINE) for opened in (open_scorer, open_language_model)]
    assert engines[0].weights is engines[1].weights  # type: ignore[attr-defined]
    for operator in (JUDGE, EVALUATE):
        assert (operator.runtime, operator.preload) == (GENERATE.runtime, GENERATE.preload)
