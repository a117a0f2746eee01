"""The command line: one clear message, the right exit status, and nothing else anywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from flowmesh.cli.main import cli, main
from flowmesh.cli.output import emit, plain, table

DIGEST = f'"sha256:{"0" * 64}/1"'
DOCUMENT = f"""\
flowmesh: 1
name: demo
inputs:
  prompts: {{type: table, file: prompts.jsonl}}
models:
  chat: {{digest: {DIGEST}}}
steps:
  unique:
    op: dedupe
    rows: ${{inputs.prompts}}
  answers:
    op: generate
    rows: ${{steps.unique}}
    model: ${{models.chat}}
    prompt: "{{{{ question }}}}"
    seed: 7
    max_tokens: 48
outputs:
  answers: ${{steps.answers}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow where we are, and a home that is not there yet."""
    for name in list(os.environ):
        if name.startswith("FLOWMESH_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLOWMESH_HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    Path("flow.yaml").write_text(DOCUMENT)
    Path("prompts.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n')
    return tmp_path


def flowmesh(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capfd.readouterr()
    assert isinstance(left.value.code, int)
    assert "Traceback" not in out + err
    assert "\x1b" not in out + err
    return left.value.code, out, err


#: What to change in the document, and what is then said: place, and words.
BAD_DOCUMENTS = [
    ("name: demo", "name: [demo", "flow.yaml:3:", "malformed YAML"),
    ("name: demo", "nmae: demo", "flow.yaml:2:1:", "unknown key 'nmae'; did you mean 'name'?"),
    ("op: dedupe", "op: dedup", "flow.yaml:9:5:", "did you mean 'dedupe'?"),
    ("max_tokens: 48", "max_token: 48", "flow.yaml:17:5:", "did you mean 'max_tokens'?"),
    ("max_tokens: 48", "max_tokens: many", "flow.yaml:17:5:", "a whole number"),
    ("max_tokens: 48", "max_tokens: 0", "flow.yaml:17:5:", "0"),
    ("seed: 7", "seed: -1", "flow.yaml:16:5:", "-1"),
    ("${steps.unique}", "${steps.uniqe}", "flow.yaml:13:5:", "did you mean 'unique'?"),
    ("${models.chat}", "${models.chta}", "flow.yaml:14:5:", "did you mean 'chat'?"),
    ("${inputs.prompts}", "${steps.answers}", "flow.yaml:8:3:", "unique -> answers -> unique"),
    ("{{ question }}", "{{ qestion }}", "flow.yaml:15:5:", "did you mean 'question'?"),
    ("prompts.jsonl", "promts.jsonl", "flow.yaml:4:", "did you mean 'prompts.jsonl'?"),
    ("    seed: 7", "    seed: 7\n    seed: 8", "flow.yaml:17:5:", "seed"),
    ("  answers: ${steps.answers}", "  a: ${steps.answers}\n  a: ${steps.unique}", ":20:3:", "a"),
    ("digest: " + DIGEST, "package: no-model", "flow.yaml:6:", "pip install no-model"),
    ("name: demo", "name: " + "[" * 60 + "]" * 60, "flow.yaml:2:", "deep"),
    ("name: demo", "name: demo\n#" + "x" * 10_000_000, "flow.yaml:", "the limit is 1,000,000"),
]


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(("old", "new", "place", "words"), BAD_DOCUMENTS)
def test_a_bad_document(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    command: str,
    old: str,
    new: str,
    place: str,
    words: str,
) -> None:
    assert old in DOCUMENT
    Path("flow.yaml").write_text(DOCUMENT.replace(old, new))
    status, out, err = flowmesh(capfd, command, "flow.yaml")
    assert (status, out) == (2, "")
    assert place in err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (folder / "home").exists(), "something was stored or started"


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ('{"question": "a"}\n' * 16 + "{oops\n", "prompts.jsonl:17:", "line 17 is not JSON"),
        ("", "flow.yaml:4:", "prompts.jsonl: the file is empty"),
        ('{"question": 1}\n{"question": "x"}\n', "prompts.jsonl:2:", "mixes types"),
        ('{"text": "a"}\n', "flow.yaml:15:", "names 'question'"),
    ],
)
def test_a_bad_table(
    folder: Path, capfd: pytest.CaptureFixture[str], content: str, place: str, words: str
) -> None:
    Path("prompts.jsonl").write_text(content)
    status, out, err = flowmesh(capfd, "run", "flow.yaml")
    assert (status, out) == (2, "")
    assert place in err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (folder / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu", "flow.yaml"], "did you mean 'run'?"),
        (["store", "git"], "did you mean 'get'?"),
        (["run"], "Missing argument 'FILE'"),
        (["run", "flow.yml"], "flow.yml: there is no such file; did you mean 'flow.yaml'?"),
        (["run", "flow.yaml", "--set", "x"], "--set takes name=value, found 'x'"),
        (["run", "flow.yaml", "--set", "x=1", "--set", "x=2"], "--set x is given twice"),
        (["run", "flow.yaml", "--set", "x=1"], "no plain input is called 'x'"),
        (["run", "flow.yaml", "--input", "prompt=x"], "did you mean 'prompts'?"),
        (["run", "flow.yaml", "--workers", "0"], "--workers"),
        (["run", "flow.yaml", "--tenant", "../x"], "no name for a tenant"),
        (["run", "flow.yaml", "--key", "a b"], "no key"),
        (["worker", "--server", "x", "--memory", "much"], "no size"),
        (["worker", "--server", "x", "--memory", "10"], "expected at least 100 MB, as 4GB"),
        (["up", "--memory", "0"], "'0' is 0 bytes, which hold nothing"),
        (["worker", "--server", "x", "--usd-per-hour", "nan"], "no finite number"),
        (["up", "--usd-per-hour", "10001"], "not in the range"),
        (["up", "--host", "0.0.0.0"], "needs an access token"),
        (["store", "get", "abc"], "is not a digest"),
        (["models", "add", "x", "--package", "a", "--path", "b"], "exactly one of"),
        (["models", "add", "x", "--path", "nowhere"], "there is no model at"),
        (["runs", "--server", "ftp://x"], "not the address of a server"),
    ],
)
def test_bad_arguments(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    status, out, err = flowmesh(capfd, *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert not (folder / "home").exists()


def test_a_bad_document_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    Path("flow.yaml").write_text(DOCUMENT.replace("op: dedupe", "op: dedup"))
    status, out, _ = flowmesh(capfd, "run", "flow.yaml", "--json")
    error = json.loads(out)["error"]
    assert (status, error["code"]) == (2, "invalid_spec")
    (problem,) = error["problems"]
    assert (problem["file"], problem["line"], problem["path"]) == (
        "flow.yaml",
        9,
        "steps.unique.op",
    )


def test_validate(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = "ok: 2 steps, 1 input, 1 model, 1 output\n"
    assert flowmesh(capfd, "validate", "flow.yaml") == (0, said, "")
    status, out, _ = flowmesh(capfd, "validate", "flow.yaml", "--json")
    assert (status, json.loads(out)["steps"]) == (0, 2)
    assert not (folder / "home").exists()


def test_the_schema_is_one_document(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = flowmesh(capfd, "schema")
    assert (status, err) == (0, "")
    assert "step-generate" in json.loads(out)["$defs"]


def test_a_server_that_is_not_there(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowmesh.sdk.transport.FIRST_CONTACT_S", 0.0)
    status, out, err = flowmesh(capfd, "runs", "--server", "http://127.0.0.1:1", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (3, "unreachable")
    assert "http://127.0.0.1:1 does not answer" in err


def test_what_should_not_happen_is_one_line_and_a_log(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **settings: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("flowmesh.sdk.prepare.prepare", broken)
    status, out, err = flowmesh(capfd, "validate", "flow.yaml")
    assert (status, out) == (1, "")
    log = folder / "home" / "logs" / "cli.log"
    assert err == f"flowmesh: an error of our own: RuntimeError: first line; details are in {log}\n"
    assert "Traceback" in log.read_text()


def test_a_home_that_cannot_be_used(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "home").mkdir()
    (folder / "home" / "logs").write_text("in the way")
    status, out, err = flowmesh(capfd, "runs")
    assert (status, out) == (2, "")
    assert err == f"flowmesh: {folder / 'home' / 'logs'}: File exists\n"


def test_interrupted(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowmesh.sdk.prepare.prepare", interrupted)
    status, out, err = flowmesh(capfd, "validate", "flow.yaml")
    assert (status, out, err.strip()) == (130, "", "interrupted")
    status, out, err = flowmesh(capfd, "validate", "flow.yaml", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (130, "interrupted")


def test_half_a_pair_of_surrogates_leaves_as_an_escape(capfd: pytest.CaptureFixture[str]) -> None:
    emit({"name": "\udcff é"})
    out = capfd.readouterr().out
    assert "\\udcff é" in out
    assert json.loads(out) == {"name": "\udcff é"}


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(names), command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *names, name)


@pytest.mark.parametrize(("name", "command"), list(commands(cli, "flowmesh")))
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    assert command.help is not None
    assert "Exit status:" in command.help
    assert f"Example: {name}" in command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help or option.name == "limit", option.name


def test_help_waits_for_nothing_heavy() -> None:
    heavy = {"duckdb", "fastapi", "httpx", "jinja2", "pydantic", "rich", "torch", "uvicorn", "yaml"}
    code = (
        "import sys, flowmesh.cli.main as m\n"
        "try: m.main(['--help'])\n"
        f"except SystemExit as left: assert not left.code, left\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"set -o pipefail; {sys.executable} -m flowmesh schema | head -c 10",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_words_from_elsewhere_do_not_steer_the_terminal() -> None:
    assert plain("a\x1b[31mb\r\x9b1mc\n") == "a\\x1b[31mb\\x0d\\x9b1mc\n"
    assert table(("name", "n"), [("a\nb", 1), ("cd", 10)]) == "name   n\na b    1\ncd    10"
