"""`advantages`: what it computes, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmesh.operators.policy import AdvantagesParams
from flowmesh.runtimes.base import Done, Failed, Outcome, Work
from flowmesh.runtimes.policy.advantages import open_advantages
from flowmesh.spec.action import Action, Artifact
from support.blobs import DirBlobs

PROMPTS = {"a": [1, 2], "b": [3]}


def rollouts(**rewards: list[float]) -> list[dict[str, Any]]:
    """One row for each reward, dealt out so that groups are mixed."""
    rows = [
        {"prompt_tokens": PROMPTS[name], "name": name, "reward": reward, "sample": number}
        for name, values in rewards.items()
        for number, reward in enumerate(values)
    ]
    return sorted(rows, key=lambda row: row["sample"])


def run(blobs: DirBlobs, table: Artifact, **params: Any) -> Outcome:
    document = AdvantagesParams.model_validate(params).model_dump(mode="json")
    action = Action("advantages", 1, document, {"rows": table})
    [outcome] = open_advantages(blobs, action.inputs, "").run([Work("t", action)])
    return outcome


def judged(tmp_path: Path, rows: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    blobs = DirBlobs(tmp_path)
    outcome = run(blobs, blobs.put_table(rows), **params)
    assert isinstance(outcome, Done), outcome
    return blobs.rows(outcome.result.outputs["rows"])


def by_name(rows: list[dict[str, Any]], column: str = "advantage") -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row[column])
    return found


def refusal(tmp_path: Path, rows: list[dict[str, Any]], **params: Any) -> str:
    blobs = DirBlobs(tmp_path)
    outcome = run(blobs, blobs.put_table(rows), **params)
    assert isinstance(outcome, Failed) and outcome.kind == "input", outcome
    return outcome.message


def test_a_group_is_compared_with_its_mean(tmp_path: Path) -> None:
    """With the deviation and the floor of TRL's GRPO trainer; rows and their order are kept."""
    rows = rollouts(a=[1.0, 2.0, 6.0], b=[0.5, -0.5, 3.0])
    found = judged(tmp_path, rows)
    for name, rewards in by_name(rows, "reward").items():
        own = torch.tensor(rewards, dtype=torch.float64)
        wanted = (own - own.mean()) / (own.std() + 1e-4)
        assert by_name(found)[name] == pytest.approx(wanted.tolist(), abs=1e-12)
    assert [{k: v for k, v in row.items() if k != "advantage"} for row in found] == rows


def test_the_scale_may_be_the_tables_or_none(tmp_path: Path) -> None:
    rows = rollouts(a=[1.0, 2.0, 6.0], b=[0.5, -0.5, 3.0])
    rewards = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    batch = by_name(judged(tmp_path / "batch", rows, scale="batch"))["a"]
    none = by_name(judged(tmp_path / "none", rows, scale="none"))["a"]
    assert none == pytest.approx([-2.0, -1.0, 3.0])
    assert batch == pytest.approx([one / (float(rewards.std()) + 1e-4) for one in none])


@pytest.mark.parametrize("method", ["group", "rloo", "whiten"])
def test_equal_rewards_carry_no_signal(tmp_path: Path, method: str) -> None:
    """Exactly zero, though a mean of 0.1s is not 0.1."""
    found = judged(tmp_path, rollouts(a=[0.1] * 3), method=method)
    assert [row["advantage"] for row in found] == [0.0, 0.0, 0.0]


def test_rloo_compares_with_the_others(tmp_path: Path) -> None:
    found = judged(tmp_path, rollouts(a=[1.0, 2.0, 6.0], b=[1.0, 3.0]), method="rloo")
    assert by_name(found)["a"] == pytest.approx([-3.0, -1.5, 4.5])
    assert by_name(found)["b"] == pytest.approx([-2.0, 2.0])


def test_whitening_is_over_the_table(tmp_path: Path) -> None:
    found = judged(tmp_path, rollouts(a=[1.0, 2.0], b=[6.0]), method="whiten")
    values = np.array([row["advantage"] for row in found])
    assert values.mean() == pytest.approx(0, abs=1e-12)
    assert values.std(ddof=1) == pytest.approx(1, abs=1e-6)


def test_groups_may_be_made_by_other_columns(tmp_path: Path) -> None:
    rows = [{"q": "x", "score": 1.0}, {"q": "x", "score": 3.0}]
    found = judged(tmp_path, rows, by="q", reward="score", into="better", scale="none")
    assert [row["better"] for row in found] == [-1.0, 1.0]


def test_rows_know_where_they_come_from(tmp_path: Path) -> None:
    blobs = DirBlobs(tmp_path)
    outcome = run(blobs, blobs.put_table(rollouts(a=[1.0, 2.0])))
    assert isinstance(outcome, Done)
    lines = blobs.path(outcome.result.origins["rows"].address).read_text()
    assert lines == '["rows", 0]\n["rows", 1]\n'


def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    blobs = DirBlobs(tmp_path)
    columns = ("prompt_tokens", "reward")
    outcome = run(blobs, Artifact("table", str(blobs.put(b"")), 0, columns))
    assert isinstance(outcome, Done)
    assert outcome.result.outputs["rows"].columns == (*columns, "advantage")


@pytest.mark.parametrize(
    ("rows", "params", "words"),
    [
        (rollouts(a=[1.0, 2.0], b=[1.0]), {}, "row 2 is alone in its group"),
        ([{"prompt_tokens": [1]}] * 2, {}, "no column 'reward'"),
        ([{"reward": 1.0}] * 2, {}, "no column 'prompt_tokens'"),
        ([{"prompt_tokens": [1], "reward": x} for x in (1.0, None)], {}, "row 2: 'reward' is None"),
        ([{"prompt_tokens": [1], "reward": x} for x in (True, 1.0)], {}, "row 1: 'reward' is True"),
        ([{"prompt_tokens": [1], "reward": "3"}] * 2, {}, "row 1: 'reward' is '3'"),
        ([{"prompt_tokens": [1], "reward": 10**400}] * 2, {}, "a finite number is expected"),
        (
            [{"prompt_tokens": [1], "reward": 1.0, "advantage": 0}] * 2,
            {},
            "already have a column 'advantage'",
        ),
    ],
)
def test_what_can_not_be_judged_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], params: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, rows, **params)
