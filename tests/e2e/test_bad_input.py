"""What people get wrong, and what they are told, from the command line as they use it.

A wrong document, table or setting is one clear message and exit status 2, before anything is
stored or started. What goes wrong in a run is told with its step, its row and its cause.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowmesh.cli.main import main
from flowmesh.sdk import transport

FLOW = """\
flowmesh: 1
inputs:
  rows: {type: table, file: rows.jsonl}
  limit: {type: int, default: 8, min: 1, max: 9}
models:
  chat: {path: model}
steps:
  asked:
    op: render
    rows: ${inputs.rows}
    template: "{{ question }}?"
    into: asked
  answers:
    op: generate
    rows: ${steps.asked}
    model: ${models.chat}
    prompt: "{{ asked }}"
    seed: 7
    max_tokens: 16
  kept:
    op: transform
    tables: {t: "${steps.answers}"}
    sql: SELECT question FROM t
outputs:
  kept: ${steps.kept}
"""
ROWS = "".join(f'{{"question": "q{n}", "n": {n}}}\n' for n in range(20))
CODE = """
import os, signal

def call(row, act):
    if row["n"] == 3:
        return globals()[act]()
    return {"y": row["n"]}

def fail():
    raise ValueError("three is wrong")

def loop():
    while True:
        pass

def gobble():
    return {"y": len(bytearray(10**9))}

def leave():
    os._exit(4)

def poison():
    os.kill(os.getppid(), signal.SIGKILL)

def chat():
    for _ in range(500):
        print("x" * 10_000)
    return {"y": object()}

def steer():
    raise ValueError("\\x1b[31mred")
"""


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    def checked(self) -> "Said":
        """It never shows a traceback or steers a pipe."""
        assert "Traceback" not in self.err, self.err
        assert "\x1b" not in self.out + self.err, self
        return self


def flowmesh(folder: Path, *arguments: str) -> Said:
    """A command as people and scripts run it."""
    command = [sys.executable, "-m", "flowmesh", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr).checked()


def flowmesh_here(capfd: pytest.CaptureFixture[str], *arguments: str) -> Said:
    """The same in this process: half a second less for each of many cases."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert isinstance(left.value.code, int)
    return Said(left.value.code, *capfd.readouterr()).checked()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where we are, and nothing of the machine's own settings."""
    for name in [name for name in os.environ if "FLOWMESH" in name]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


def replaced(old: str, new: str) -> str:
    assert old in FLOW, old
    return FLOW.replace(old, new, 1)


DOCUMENTS = {
    "malformed": ("flowmesh: 1\nsteps:\n  a: [1, 2\n  b: 3\n", ":4:4:", "malformed YAML"),
    "tab": ("flowmesh: 1\nsteps:\n\ta: 1\n", ":3:1:", "with spaces, not with tabs"),
    "not UTF-8": ("flowmesh: 1\nname: \udcff\n", ":2:", "save the file as UTF-8"),
    "empty": ("", "flow.yaml:", "the file is empty"),
    "unknown key": (replaced("models:", "modles:"), ":5:1:", "did you mean 'models'?"),
    "unknown operator": (replaced("op: render", "op: rendr"), ":9:5:", "did you mean 'render'?"),
    "unknown parameter": (
        replaced("max_tokens", "max_token"),
        ":19:5:",
        "unknown parameter 'max_token' of generate; did you mean 'max_tokens'?",
    ),
    "wrong type": (
        replaced("max_tokens: 16", "max_tokens: many"),
        ":19:5:",
        'expected a whole number, found "many"',
    ),
    "true for a number": (
        replaced("max_tokens: 16", "max_tokens: true"),
        ":19:5:",
        "expected a whole number, found true",
    ),
    "text for a number": (
        replaced("max_tokens: 16", 'max_tokens: "16"'),
        ":19:5:",
        'expected a whole number, found "16"',
    ),
    "wrong type on a port": (replaced("${inputs.rows}", "7"), ":10:5:", "expected a table"),
    "reference to no input": (replaced("inputs.rows", "inputs.rws"), ":10:5:", "mean 'rows'?"),
    "reference to no step": (replaced("steps.asked", "steps.aske"), ":15:5:", "mean 'asked'?"),
    "reference to no output": (
        replaced("${steps.kept}", "${steps.kept.row}"),
        ":25:3:",
        "${steps.kept.row} names no output of step 'kept'; did you mean 'rows'?",
    ),
    "reference to no model": (replaced("models.chat", "models.cat"), ":16:5:", "mean 'chat'?"),
    "cycle": (
        replaced("${inputs.rows}", "${steps.kept}"),
        ":8:3:",
        "the steps form a cycle: asked -> answers -> kept -> asked",
    ),
    "missing column": (replaced("{{ question }}", "{{ qestion }}"), ":11:5:", "mean 'question'?"),
    "missing column of a step": (replaced("{{ asked }}", "{{ asket }}"), ":17:5:", "mean 'asked'?"),
    "missing column of a query": (replaced("SELECT question", "SELECT qestion"), ":23:5:", "qest"),
    "missing table of a query": (replaced("FROM t", "FROM tt"), ":23:5:", "did you mean 't'?"),
    "query that reads files": (
        replaced("FROM t", "FROM read_text('/etc/hostname')"),
        ":23:5:",
        "file system operations are disabled",
    ),
    "query that writes": (
        replaced("SELECT question FROM t", "COPY t TO 'out.csv'"),
        ":23:5:",
        "expected one SELECT statement, found copy",
    ),
    "query that loads": (
        replaced("SELECT question FROM t", "INSTALL httpfs"),
        ":23:5:",
        "expected one SELECT statement",
    ),
    "template that reads files": (
        replaced("{{ question }}?", "{% include '/etc/hostname' %}"),
        ":11:5:",
        "a template cannot load another one",
    ),
    "missing input file": (replaced("rows.jsonl", "row.jsonl"), ":3:", "mean 'rows.jsonl'?"),
    "no model at a path": (FLOW, ":6:10:", "there is no model at 'model'"),
    "no model in a package": (
        replaced("path: model", "package: click"),
        ":6:10:",
        "package 'click' holds no model",
    ),
    "no such package": (replaced("path: model", "package: nope-model"), ":6:10:", "not installed"),
    "no model of a name": (
        replaced("models:\n  chat: {path: model}\n", "").replace("${models.chat}", "chatty"),
        ":14:5:",
        "no model is called 'chatty'",
    ),
    "negative seed": (replaced("seed: 7", "seed: -1"), ":18:5:", "at least 0, found -1"),
    "seed too large": (replaced("seed: 7", f"seed: {2**63}"), ":18:5:", f"at most {2**63 - 1}"),
    "no tokens": (replaced("tokens: 16", "tokens: 0"), ":19:5:", "at least 1, found 0"),
    "too many tokens": (replaced("tokens: 16", "tokens: 99999"), ":19:5:", "at most 32768"),
    "10 MB": (f"{FLOW}# {'x' * 10_000_000}\n", "flow.yaml:", "the limit is 1,000,000"),
    "deep nesting": ("flowmesh: 1\nsteps: " + "[" * 90_000, ":2:39:", "limit of 32 levels"),
    "many aliases": (
        "flowmesh: 1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "flow.yaml:",
        "more values than the limit of 100,000",
    ),
    "duplicate key": (
        replaced("    seed: 7\n", "    seed: 7\n    seed: 8\n"),
        ":19:5:",
        "key 'seed' is written twice, first on line 18",
    ),
    "output name used twice": (
        f"{FLOW}  kept: ${{steps.answers}}\n",
        ":26:3:",
        "key 'kept' is written twice, first on line 25",
    ),
    "tag": ("flowmesh: 1\nsteps: !!python/name:os.system x\n", ":2:8:", "is not part of the lang"),
    "control characters": (replaced("op: render", 'op: "\\e[31m"'), ":9:5:", "unknown operator"),
}

TABLES = {
    "empty": (b"", "rows.jsonl: the file is empty"),
    "no rows": (b"\n\n", "the table has no rows"),
    "line 17": (ROWS.encode().replace(b'"n": 16', b'"n": oops'), "rows.jsonl:17:26: line 17"),
    "no object": (b'{"question": "a"}\n[1]\n', "rows.jsonl:2: line 2 is a list"),
    "mixed types": (
        b'{"question": "a", "n": 1}\n{"question": "b", "n": "two"}\n',
        "rows.jsonl:2: column 'n' mixes types: row 2 holds text, row 1 a number",
    ),
    "NaN": (b'{"question": "a", "n": NaN}\n', "rows.jsonl:1: line 1 is not JSON: NaN"),
    "duplicate key": (b'{"question": "a", "question": "b"}\n', "'question' is written twice"),
    "not UTF-8": ('{"question": "a"}\n'.encode("utf-16"), "rows.jsonl:1: line 1 is not JSON"),
    "deep nesting": (b'{"question": ' + b"[" * 50_000, "nested too deep"),
}

ARGUMENTS = {
    "unknown parameter": (["--set", "limt=3"], "no plain input is called 'limt'; did you mean"),
    "wrong type": (["--set", "limit=many"], 'expected a whole number, found "many"'),
    "out of range": (["--set", "limit=10"], "must be at most 9, found 10"),
    "not a pair": (["--set", "limit"], "--set takes name=value"),
    "unknown input": (["--input", "row=rows.jsonl"], "did you mean 'rows'?"),
    "no such file": (["--input", "rows=row.jsonl"], "did you mean 'rows.jsonl'?"),
    "no such option": (["--jsn"], "No such option '--jsn'"),
    "name of a tenant": (["--tenant", "../x"], "'../x' is no name for a tenant"),
    "home that is a file": (["--home", "rows.jsonl"], "'rows.jsonl' is a file"),
}


RUN = ("run", "flow.yaml", "--json", "--home", "home")


def refused(folder: Path, command: Callable[[], Said], *fragments: str) -> None:
    """`flowmesh run` says all of this, leaves with 2, and leaves nothing behind."""
    before = sorted(folder.iterdir())
    said = command()
    assert said.status == 2, said
    error = said.document["error"]
    for fragment in fragments:
        assert fragment in error["message"]
        assert fragment in said.err
    assert sorted(folder.iterdir()) == before, "a refused request leaves nothing behind"


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_bad_document_is_refused_and_touches_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    document, *fragments = DOCUMENTS[case]
    (folder / "flow.yaml").write_bytes(document.encode(errors="surrogateescape"))
    refused(folder, lambda: flowmesh_here(capfd, *RUN), "flow.yaml:", *fragments)


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_refused_and_touches_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    data, fragment = TABLES[case]
    (folder / "flow.yaml").write_text(FLOW)
    (folder / "rows.jsonl").write_bytes(data)
    refused(folder, lambda: flowmesh_here(capfd, *RUN), fragment, "flow.yaml:3")


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_arguments_are_refused_and_touch_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, fragment = ARGUMENTS[case]
    (folder / "flow.yaml").write_text(FLOW.replace("{path: model}", "{name: chat}"))
    refused(folder, lambda: flowmesh_here(capfd, *RUN, *arguments), fragment)


def test_a_pipe_is_no_document(folder: Path) -> None:
    os.mkfifo(folder / "flow.yaml")
    expected = "flow.yaml: is a device or a pipe; expected a file"
    refused(folder, lambda: flowmesh(folder, *RUN), expected)


def test_pickled_weights_are_no_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "flow.yaml").write_text(FLOW)
    expected = ("flow.yaml:6:10:", "'model' holds no *.safetensors weights")
    refused(folder, lambda: flowmesh(folder, *RUN), *expected)


def test_a_server_that_does_not_answer_is_exit_status_3(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FIRST_CONTACT_S", 0.5)
    said = flowmesh_here(capfd, "runs", "--json", "--server", "http://127.0.0.1:1")
    assert said.status == 3
    assert "does not answer" in said.document["error"]["message"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One embedded server for the runs of this module, told to leave at the end."""
    home = tmp_path_factory.mktemp("home")
    yield home
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(json.loads((home / "server.json").read_text())["pid"], signal.SIGTERM)


def called(folder: Path, home: Path, act: str, on_error: str = "fail") -> Said:
    """A run in which a function is called with each row, and does `act` on the one of n = 3."""
    rows = "".join(f'{{"n": {n}}}\n' for n in range(6))
    (folder / "rows.jsonl").write_text(rows)
    step = {"op": "python", "rows": "${inputs.rows}", "file": "code.py", "function": "call"}
    step |= {"timeout_s": 1, "memory_mb": 300, "args": {"act": act}, "on_error": on_error}
    document = {
        "flowmesh": 1,
        "inputs": {"rows": {"type": "table", "file": "rows.jsonl"}},
        "steps": {"acts": step},
        "outputs": {"made": "${steps.acts}"},
    }
    (folder / "flow.json").write_text(json.dumps(document))
    return flowmesh(folder, "run", "flow.json", "--json", "--home", str(home))


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        ("fail", "call() raised ValueError: three is wrong (line 10 of the file)"),
        ("loop", "call() was killed at its limit of 1 s"),
        ("gobble", "call() needs more than `memory_mb`: 300 MB; raise it"),
        ("leave", "call() ended its process with status 4"),
        ("poison", "the process that ran this task was killed by signal 9 (SIGKILL)"),
        ("chat", "returned what JSON can not hold in column 'y'"),
        ("steer", "\x1b[31mred"),
    ],
)
def test_a_row_that_fails_is_told_with_step_row_and_cause(
    folder: Path, home: Path, act: str, cause: str
) -> None:
    said = called(folder, home, act)
    assert said.status == 1
    view = said.document
    assert view["status"] == "failed"
    (failure,) = view["failures"]
    assert (failure["step"], failure["row"]) == ("acts", 3)
    assert cause in failure["message"]
    assert "acts: failed" in said.err


def test_rows_beside_a_poison_task_are_done(folder: Path, home: Path) -> None:
    said = called(folder, home, "poison", on_error="skip")
    assert said.status == 0
    assert said.document["tasks"]["failed"] == 1
    made = flowmesh(folder, "outputs", said.document["run"], "--name", "made", "--home", str(home))
    rows = [json.loads(line) for line in made.out.splitlines()]
    assert [row["n"] for row in rows] == [0, 1, 2, 4, 5]
