"""Deadlines, budgets, objectives and lingering: what the language takes, refuses and means."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowmesh.base.errors import SpecError
from flowmesh.base.ids import RunId
from flowmesh.base.sizes import size_bytes
from flowmesh.cli.main import cli
from flowmesh.cli.options import App
from flowmesh.core.apply import apply
from flowmesh.core.records import Quota
from flowmesh.core.state import State
from flowmesh.operators.catalog import catalog
from flowmesh.sdk.builder import Workflow
from flowmesh.sdk.limits import Limits
from flowmesh.server import quotas
from flowmesh.server.quotas import TenantSettings, changes_of
from flowmesh.server.submission import Submission
from flowmesh.spec.action import Artifact
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.limits import duration_ms
from flowmesh.spec.workflow import load
from flowmesh.wire import ArtifactView, CreateRun

DIGEST = f"sha256:{'0' * 64}/10"
SCOPE = Scope("run", "tenant", "domain")
DOCUMENT = """\
flowmesh: 1
name: limited
{limits}
inputs:
  prompts: {{type: table, columns: [question]}}
steps:
  told:
    op: render
    rows: ${{inputs.prompts}}
    template: "{{{{ question }}}}"
    {step}
outputs:
  told: ${{steps.told}}
"""


def document(limits: str = "priority: 0", step: str = "on_error: fail") -> str:
    return DOCUMENT.format(limits=limits, step=step)


# Durations


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("90s", 90_000),
        ("30min", 1_800_000),
        ("2h", 7_200_000),
        ("1h30min", 5_400_000),
        ("1.5d", 129_600_000),
        ("0s", 0),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["30", "5 m", "h", "-2s", "2h 30min", "2hours", "", 30, None, 1.5])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a duration with its unit"):
        duration_ms(text)


# The document


@pytest.mark.parametrize(
    ("limits", "step", "problem"),
    [
        ("deadline: 30", "", "3:1: deadline: expected a duration with its unit (ms, s, min, h or d)"
         ", as 90s, 30min or 2h, found 30"),
        ("deadline: 0s", "", "3:1: deadline: a deadline is more than 0s and at most 366d"),
        ("deadline: 400d", "", "3:1: deadline: a deadline is more than 0s and at most 366d"),
        ("budget_usd: 0", "", "3:1: budget_usd: must be greater than 0.0, found 0"),
        ("budget_usd: five", "", '3:1: budget_usd: expected a number, found "five"'),
        ("objective: cheap", "", "3:1: objective: expected 'balanced', 'cost', 'latency' or"
         " 'energy', found \"cheap\""),
        ("objective: latence", "", "did you mean 'latency'?"),
        ("dead_line: 2h", "", "3:1: dead_line: unknown key 'dead_line'; did you mean 'deadline'?"),
        ("", "linger: 2", "11:5: steps.told.linger: expected a duration"),
        ("", "linger: 2h", "11:5: steps.told.linger: a task lingers for at most 1h"),
    ],
)  # fmt: skip
def test_a_wrong_limit_is_told_with_its_line(limits: str, step: str, problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        load(document(limits, step), "w.yaml")
    assert problem in str(raised.value)
    assert str(raised.value).startswith("w.yaml:")


def run_of(limits: str, **request: Any) -> Any:
    rows = ArtifactView(kind="table", digest=DIGEST, rows=1, columns=("question",))
    body = CreateRun(document=document(limits), key="k", inputs={"prompts": rows}, **request)
    return Submission.of(body, catalog()).core_run(RunId("r"), 1_000, 1.0)[0]


def test_a_run_has_the_limits_of_its_document() -> None:
    run = run_of("deadline: 2min\nbudget_usd: 5\nobjective: cost")
    assert (run.deadline_ms, run.budget_usd, run.objective) == (121_000, 5.0, "cost")
    run = run_of("priority: 0")
    assert (run.deadline_ms, run.budget_usd, run.objective) == (0, 0.0, "")


def test_a_submission_may_say_otherwise() -> None:
    said = {"deadline_s": 0.5, "budget_usd": 0.25, "objective": "latency"}
    run = run_of("deadline: 2min\nbudget_usd: 5\nobjective: cost", **said)
    assert (run.deadline_ms, run.budget_usd, run.objective) == (1_500, 0.25, "latency")
    run = run_of("deadline: 2min\nbudget_usd: 5", budget_usd=7)
    assert (run.deadline_ms, run.budget_usd) == (121_000, 7.0)


def test_an_old_client_says_nothing_of_limits() -> None:
    body = CreateRun.model_validate_json('{"document": "x", "key": "k"}')
    assert (body.deadline_s, body.budget_usd, body.objective) == (None, None, None)


def tasks_of(limits: str, step: str) -> tuple[int, list[str]]:
    """What the step lingers, and its tasks."""
    workflow, positions = load(document(limits, step))
    columns = {"prompts": ("question",)}
    (node,) = build(workflow, positions, catalog(), {}, columns).steps.values()
    rows = [{"question": "a"}, {"question": "b"}]
    bound = {"rows": Artifact("table", DIGEST, 2, ("question",))}
    made = expand(node, bound, rows, SCOPE)
    return node.linger_ms, [item.task for item in made.items if item.task is not None]


def test_limits_change_no_task() -> None:
    """They say when and where work is done, never what it is: other limits share it."""
    linger_ms, plain = tasks_of("priority: 0", "on_error: fail")
    assert (linger_ms, len(plain)) == (0, 2)
    limits = "deadline: 2h\nbudget_usd: 3\nobjective: energy"
    assert tasks_of(limits, "linger: 1.5s") == (1_500, plain)


def test_a_builder_takes_limits() -> None:
    flow = Workflow("w", deadline="2h", budget_usd=3, objective="latency")
    rows = flow.table("rows", columns=["question"])
    flow.step("told", "render", rows=rows, template="{{ question }}", linger="2s")
    made = flow.document()
    assert (made.deadline, made.budget_usd, made.objective) == ("2h", 3.0, "latency")
    assert load(flow.to_yaml())[0] == made


# A submission's own limits


def test_limits_as_the_wire_has_them() -> None:
    assert Limits("90s", 2.5, "cost").fields() == {
        "deadline_s": 90.0, "budget_usd": 2.5, "objective": "cost",
    }  # fmt: skip
    assert set(Limits().fields().values()) == {None}


def test_wrong_limits_are_told_together() -> None:
    with pytest.raises(SpecError) as raised:
        Limits("soon", float("nan"), "cots").fields()
    assert [one.path for one in raised.value.problems] == ["deadline", "budget_usd", "objective"]
    assert "did you mean 'cost'?" in str(raised.value)
    with pytest.raises(SpecError, match="more than 0s"):
        Limits("0s").fields()
    with pytest.raises(SpecError, match="more than 0 dollars"):
        Limits(budget_usd=0).fields()


def test_the_command_line_refuses_a_wrong_deadline_before_anything_else(tmp_path: Path) -> None:
    arguments = ["run", "nowhere.yaml", "--deadline", "soon", "--home", str(tmp_path / "home")]
    result = CliRunner().invoke(cli, arguments, obj=App(tmp_path / "home"))
    assert isinstance(result.exception, SpecError)
    assert "expected a duration" in str(result.exception)
    assert not (tmp_path / "home").exists()


# The file of tenants


def test_a_file_of_tenants(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(
        "alice: {weight: 2, leases: 3, usd_per_day: 1.5, stored_bytes: 10GB}\nbob: {}\n"
    )
    assert quotas.load(file) == {
        "alice": TenantSettings(2.0, Quota(3, 1.5, 10**10)),
        "bob": TenantSettings(),
    }
    file.write_text("")
    assert quotas.load(file) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bob: {}\nalice: {wieght: 2}", ":2:9: alice.wieght: unknown key 'wieght'; did you mean"),
        ("alice: {weight: 0}", ":1:9: alice.weight: must be greater than 0.0, found 0"),
        ("alice: {leases: 1.5}", ":1:9: alice.leases: expected a whole number, found 1.5"),
        ("alice: {stored_bytes: many}", ":1:9: alice.stored_bytes: 'many' is no size"),
        ("alice: {usd_per_day: -1}", "must be at least 0.0, found -1"),
        ("alice: {usd_per_day: 0}", ":1:9: alice.usd_per_day: 0 is no quota: leave it out for no"),
        ("bob: {}\nalice: {leases: 0}", ":2:9: alice.leases: 0 is no quota: leave it out for no"),
        ("alice: {stored_bytes: 0GB}", "alice.stored_bytes: 0 is no quota: leave it out for no"),
        ("a b: {}", "'a b' is no name for a tenant"),
        ("[alice]", "expected a mapping of names to values"),
        ("alice: {", "malformed YAML"),
    ],
)
def test_a_wrong_file_of_tenants(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=re.escape(problem)):
        quotas.load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read: No such file"):
        quotas.load(tmp_path / "nowhere.yaml")


def test_only_what_differs_is_changed() -> None:
    state = State()
    settings = {"alice": TenantSettings(2.0, Quota(leases=1)), "bob": TenantSettings()}
    (change,) = changes_of(state, settings, 5)
    assert (change.tenant, change.weight, change.quota) == ("alice", 2.0, Quota(leases=1))
    apply(state, change)
    assert changes_of(state, settings, 6) == []
    (back,) = changes_of(state, {}, 7)
    assert (back.tenant, back.weight, back.quota) == ("alice", 1.0, Quota())


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("512MB", 512_000_000), ("4GiB", 2**32), ("1.5 kb", 1_500)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size
