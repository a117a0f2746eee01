"""A user's function in a real child process: what it returns, breaks, and exceeds."""

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.python import open_python
from flowmesh.runtimes.python_process import FunctionProcess, TookTooLong
from flowmesh.spec.action import Action
from support.blobs import DirBlobs

Row = dict[str, Any]

FUNCTIONS = """
import random, os, sys, time, subprocess

CALLS = 0

def add(row, by=1):
    print("looking at", row)
    return {"sum": row["x"] + by}

def several(row):
    return [{"n": n} for n in range(row["x"])]

def lazy(row):
    yield {"n": 1}
    yield {"n": 2}

def drop(row):
    return None

def wrong(row):
    return {"set": 5, "row": "text", "keys": {1: 2}, "value": {"v": {1, 2}}, "nan": {"v": 0.1},
            "list": [3]}[row["x"]] if row["x"] != "nan" else {"v": float("nan")}

def divide(row):
    print("about to divide")
    return helper(row)

def helper(row):
    return {"q": 1 / row["x"]}

def loop(row):
    while row["x"]:
        pass
    return {"fine": True}

def sleeper(row):
    if row["x"]:
        child = subprocess.Popen(["sleep", "60"])
        with open(row["file"], "w") as file:
            file.write(str(child.pid))
        time.sleep(60)
    return {"fine": True}

def greedy(row):
    return {"n": len(bytearray(row["x"]))}

HOARD = []

def hoard(row):
    HOARD.append(bytearray(row["x"]))
    return {"n": len(HOARD)}

def dies(row):
    if row["x"]:
        os._exit(3)
    return {"fine": True}

class Mute(Exception):
    def __str__(self):
        raise ValueError("not even this")

def mute(row):
    raise Mute

def talks(row):
    raise ValueError("one\\ntwo " + "x" * 5_000_000)

def leaves(row):
    sys.exit("enough")

def chance(row):
    return {"r": random.random(), "h": list({"a", "b", "c", "d"})}

def surroundings(row):
    return {"names": sorted(os.environ), "stdin": sys.stdin.read(), "cwd": os.getcwd()}

def total(rows, key):
    return [{"total": sum(row[key] for row in rows), "rows": len(rows)}]

def shout(row):
    print("x" * 1_000_000)
    os.write(1, b'{"rows": "forged"}\\n')
    return {"fine": True}
"""


@pytest.fixture
def blobs(tmp_path: Path) -> DirBlobs:
    return DirBlobs(tmp_path)


def works(
    blobs: DirBlobs, rows: Iterable[Row], *, source: str = FUNCTIONS, **params: Any
) -> list[Work]:
    operator = catalog()["python"]
    checked = operator.params.model_validate(params)
    inputs = {"file": blobs.put_file(source)}
    return [
        Work(
            f"task-{n}",
            Action("python", 1, operator.task(checked, {}, 0) | {"row": json.dumps(row)}, inputs),
        )
        for n, row in enumerate(rows)
    ]


def call(blobs: DirBlobs, rows: Iterable[Row], **params: Any) -> list[Outcome]:
    return list(open_python(blobs, {}, "").run(works(blobs, rows, **params)))


def results(outcomes: Iterable[Outcome]) -> list[list[Row] | None]:
    found = []
    for outcome in outcomes:
        assert isinstance(outcome, Done), outcome
        found.append(outcome.result.rows)
    return found


def refusal(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind is FailureKind.INPUT, outcome
    assert "\n" not in outcome.message
    return outcome


def test_a_function_adds_columns_to_each_row(blobs: DirBlobs) -> None:
    rows = [{"x": 1}, {"x": 2.5}]
    assert results(call(blobs, rows, function="add")) == [[{"sum": 2}], [{"sum": 3.5}]]
    added = call(blobs, rows, function="add", args={"by": 10})
    assert results(added) == [[{"sum": 11}], [{"sum": 12.5}]]


def test_a_function_makes_several_rows_or_none(blobs: DirBlobs) -> None:
    assert results(call(blobs, [{"x": 2}, {"x": 0}], function="several")) == [
        [{"n": 0}, {"n": 1}],
        [],
    ]
    assert results(call(blobs, [{}], function="lazy")) == [[{"n": 1}, {"n": 2}]]
    assert results(call(blobs, [{}], function="drop")) == [[]]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("set", "wrong() returned an int; expected a dict of new columns, a list of such dicts"),
        ("row", "wrong() returned a str"),
        ("list", "wrong() returned a list with an int at 0"),
        ("keys", "wrong() returned a row with the key 1"),
        ("value", "in column 'v': Object of type set is not JSON serializable"),
        ("nan", "in column 'v': Out of range float values are not JSON compliant"),
    ],
)
def test_a_wrong_result_is_named(blobs: DirBlobs, case: str, message: str) -> None:
    (outcome,) = call(blobs, [{"x": case}], function="wrong")
    assert message in refusal(outcome).message


def test_an_exception_that_says_nothing_or_too_much(blobs: DirBlobs) -> None:
    (mute,) = call(blobs, [{}], function="mute")
    assert "mute() raised Mute: (its text cannot be had: ValueError)" in refusal(mute).message
    (talks,) = call(blobs, [{}], function="talks")
    assert "raised ValueError: one two xxx" in refusal(talks).message
    assert len(refusal(talks).message) < 3_000
    assert len(refusal(talks).detail) <= 20_000


def test_an_exception_names_the_line_and_keeps_the_trace(blobs: DirBlobs) -> None:
    bad, good = call(blobs, [{"x": 0}, {"x": 2}], function="divide")
    line = FUNCTIONS.splitlines().index('    return {"q": 1 / row["x"]}') + 1
    failed = refusal(bad)
    assert failed.message == (
        f"divide() raised ZeroDivisionError: division by zero (line {line} of the file)"
    )
    assert 'return {"q": 1 / row["x"]}' in failed.detail
    assert "python_child" not in failed.detail
    assert "about to divide" in failed.detail
    assert results([good]) == [[{"q": 0.5}]]


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        (FUNCTIONS, "ad", "the file has no function 'ad'; did you mean 'add'?"),
        ("x = 1\ndef f(row) return", "f", "raised SyntaxError: expected ':' (line 2 of the file)"),
        ("\nimport nowhere_at_all", "f", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def f(): pass", "f", "f() raised TypeError: f() takes 0 positional arguments but 1"),
        ("while True: pass", "f", "loading the file was killed at its limit of 0.5 s"),
        ("import os; os._exit(1)", "f", "loading the file ended its process with status 1"),
        ("x = bytearray(10**9)", "f", "loading the file needs more than `memory_mb`: 200 MB"),
    ],
)
def test_a_file_that_can_not_be_used(
    blobs: DirBlobs, source: str, function: str, message: str
) -> None:
    started = time.monotonic()
    outcomes = call(blobs, [{}] * 8, source=source, function=function, timeout_s=0.5, memory_mb=200)
    assert all(message in refusal(outcome).message for outcome in outcomes)
    assert time.monotonic() - started < 8 * 0.5  # not tried anew for every row


def test_an_endless_loop_costs_only_its_own_row(blobs: DirBlobs) -> None:
    rows = [{"x": 0}, {"x": 1}, {"x": 0}]
    before, looped, after = call(blobs, rows, function="loop", timeout_s=0.3)
    assert refusal(looped).message == "loop() was killed at its limit of 0.3 s"
    assert results([before, after]) == [[{"fine": True}]] * 2


def test_what_a_function_started_is_killed_with_it(blobs: DirBlobs, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    (outcome,) = call(blobs, [{"x": 1, "file": str(note)}], function="sleeper", timeout_s=1.0)
    assert "killed at its limit" in refusal(outcome).message
    stat = Path(f"/proc/{note.read_text()}/stat")
    # Killed; on a busy machine it takes a moment to die, and somebody else may have to collect it.
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


def test_too_much_memory_costs_only_its_own_row(blobs: DirBlobs) -> None:
    rows = [{"x": 10}, {"x": 10**9}, {"x": 20}]
    before, over, after = call(blobs, rows, function="greedy", memory_mb=200)
    assert refusal(over).message == "greedy() needs more than `memory_mb`: 200 MB; raise it"
    assert results([before, after]) == [[{"n": 10}], [{"n": 20}]]


def test_what_earlier_rows_left_behind_fails_no_row(blobs: DirBlobs) -> None:
    rows = [{"x": 60_000_000}] * 5
    outcomes = call(blobs, rows, function="hoard", memory_mb=200)
    assert all(isinstance(outcome, Done) for outcome in outcomes)


def test_a_dead_process_costs_only_its_own_row(blobs: DirBlobs) -> None:
    before, died, after = call(blobs, [{"x": 0}, {"x": 1}, {"x": 0}], function="dies")
    assert refusal(died).message == "dies() ended its process with status 3"
    assert results([before, after]) == [[{"fine": True}]] * 2


def test_leaving_is_an_error_like_any_other(blobs: DirBlobs) -> None:
    (outcome,) = call(blobs, [{}], function="leaves")
    assert "leaves() raised SystemExit: enough" in refusal(outcome).message


def test_equal_tasks_draw_equal_numbers_in_any_batch(blobs: DirBlobs) -> None:
    alone = works(blobs, [{}, {}, {}], function="chance")
    engine = open_python(blobs, {}, "")
    together = results(engine.run(alone))
    assert together == results(outcome for work in alone for outcome in engine.run([work]))
    assert together[0] != together[1]


def test_a_function_sees_nothing_of_the_worker(
    blobs: DirBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWMESH_TOKEN", "secret")
    ((row,),) = results(call(blobs, [{}], function="surroundings"))
    assert row is not None
    assert "FLOWMESH_TOKEN" not in row["names"]
    assert row["stdin"] == ""
    assert row["cwd"] != os.getcwd()


def test_printing_is_never_an_answer(blobs: DirBlobs) -> None:
    assert results(call(blobs, [{}, {}], function="shout")) == [[{"fine": True}]] * 2


def test_a_batch_may_mix_functions(blobs: DirBlobs) -> None:
    first = works(blobs, [{"x": 1}], function="add")
    second = works(blobs, [{"x": 1}], source="def add(row): return {'two': 2}", function="add")
    both = [first[0], Work("other", second[0].action)]
    found = {outcome.task: outcome for outcome in open_python(blobs, {}, "").run(both)}
    assert results([found["task-0"], found["other"]]) == [[{"sum": 2}], [{"two": 2}]]


def table_call(blobs: DirBlobs, rows: list[Row], **params: Any) -> Outcome:
    operator = catalog()["python_table"]
    filled = operator.task(operator.params.model_validate(params), {}, 0)
    inputs = {"file": blobs.put_file(FUNCTIONS), "rows": blobs.put_table(rows)}
    action = Action.of(json.loads(json.dumps(Action("python_table", 1, filled, inputs).document())))
    (outcome,) = open_python(blobs, {}, "").run([Work("task", action)])
    return outcome


def test_a_function_of_a_table(blobs: DirBlobs) -> None:
    rows = [{"x": n, "text": "é\u2028"} for n in range(1000)]
    outcome = table_call(blobs, rows, function="total", args={"key": "x"})
    assert isinstance(outcome, Done), outcome
    made = outcome.result.outputs["rows"]
    assert blobs.rows(made) == [{"total": 499_500, "rows": 1000}]
    assert (made.rows, made.columns) == (1, ("total", "rows"))


def test_a_function_of_a_table_returns_a_list(blobs: DirBlobs) -> None:
    said = refusal(table_call(blobs, [{"x": 1}], function="drop")).message
    assert said == "drop() returned None; expected a list of dicts, the rows of the new table"


@pytest.mark.parametrize(("effect", "calls"), [("pure", 3), ("act", 2)])
def test_what_acts_on_the_world_is_called_once_though_its_process_dies(
    blobs: DirBlobs, tmp_path: Path, effect: str, calls: int
) -> None:
    source = """
import os
def act(row, log):
    with open(log, "a") as file:
        file.write(f"{row['n']}\\n")
    if row["n"] == 1:
        os._exit(3)
    return {}
"""
    log = tmp_path / "log"
    params = {"source": source, "function": "act", "args": {"log": str(log)}, "effect": effect}
    first, second = call(blobs, [{"n": 0}, {"n": 1}], **params)
    assert isinstance(first, Done) and isinstance(second, Failed)
    assert len(log.read_text().split()) == calls


def test_a_process_that_does_not_even_read_is_over_its_time(tmp_path: Path) -> None:
    process = FunctionProcess(tmp_path)
    os.kill(process._process.pid, signal.SIGSTOP)
    with pytest.raises(TookTooLong):
        process.ask({"row": "x" * 1_000_000}, timeout_s=0.2)
    process.close()
