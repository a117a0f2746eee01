"""Post-training by several tenants, in stages and in rounds: nothing is trained twice."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowmesh.sdk.runs import Run
from flowmesh.wire import LineageNode
from support.fabric import Fabric
from support.training_runs import EXAMPLES, digests, executed, settled, submit, table

pytestmark = pytest.mark.model

PAGE = EXAMPLES.parent / "docs" / "policy-optimisation.md"
TICKETS = table("tickets.jsonl", 16)
HELD_OUT = table("tickets-held-out.jsonl", 4)
PAIRS = [
    {"prompt": row["message"], "chosen": row["good"], "rejected": row["curt"]} for row in TICKETS
]
QUESTIONS = [{"question": row["message"]} for row in TICKETS[:3]]
TRAINED = {"model": "${models.chat}", "max_steps": 2, "per_device_train_batch_size": 4}


def stages(seed: int, /, **last: Any) -> dict[str, dict[str, Any]]:
    """Lessons from tickets, learnt, then sharpened by pairs; measured before and after."""
    asked = {
        "op": "evaluate",
        "rows": "${inputs.held_out}",
        "model": "${models.chat}",
        "metric": "perplexity",
        "text": "{{ good }}",
    }
    sql = "SELECT message AS prompt, ' ' || good AS completion FROM tickets ORDER BY id"
    return {
        "lessons": {"op": "transform", "tables": {"tickets": "${inputs.tickets}"}, "sql": sql},
        "learn": {"op": "sft", "data": "${steps.lessons.rows}", "seed": seed, **TRAINED},
        "sharpen": {
            "op": "dpo",
            "data": "${inputs.pairs}",
            "adapter": "${steps.learn.adapter}",
            **TRAINED,
            **last,
        },
        "before": asked,
        "after": {**asked, "adapter": "${steps.sharpen.adapter}"},
    }


def train(trainers: Fabric, model: Path, tenant: str, /, first: int, **last: Any) -> Run:
    """Start a run of the stages; `first` is the seed of the first training."""
    outputs = {"learnt": "learn.adapter", "sharpened": "sharpen.adapter", "after": "after.summary"}
    given = {"tickets": TICKETS, "held_out": HELD_OUT, "pairs": PAIRS}
    return submit(trainers.client(tenant), model, stages(first, **last), outputs, **given)


def test_two_tenants_with_the_same_settings_train_once(trainers: Fabric, tiny_model: Path) -> None:
    runs = [train(trainers, tiny_model, tenant, first=1) for tenant in ("alice", "bob")]
    alice, bob = (settled(run) for run in runs)
    assert digests(alice) == digests(bob)
    for mine, other in zip(alice.steps, bob.steps, strict=True):
        counts = mine.tasks, other.tasks
        distinct = mine.tasks.total
        assert sum(one.executed for one in counts) == distinct, mine.step
        assert sum(one.joined + one.reused for one in counts) == distinct, mine.step


def test_who_differs_in_the_last_stage_shares_all_before_it(
    trainers: Fabric, tiny_model: Path
) -> None:
    first = settled(train(trainers, tiny_model, "alice", first=2))
    other = settled(train(trainers, tiny_model, "bob", first=2, beta=0.7))
    assert executed(other) == {"sharpen": 1, "after": len(HELD_OUT)}
    assert other.outputs["learnt"] == first.outputs["learnt"]
    assert other.outputs["sharpened"] != first.outputs["sharpened"]


def test_a_seed_retrains_and_nothing_else(trainers: Fabric, tiny_model: Path) -> None:
    first = settled(train(trainers, tiny_model, "alice", first=3))
    other = settled(train(trainers, tiny_model, "alice", first=4))
    assert executed(other) == {"learn": 1, "sharpen": 1, "after": len(HELD_OUT)}
    assert other.outputs["learnt"] != first.outputs["learnt"]
    last = settled(train(trainers, tiny_model, "alice", first=4, seed=1))
    assert executed(last) == {"sharpen": 1, "after": len(HELD_OUT)}


def test_a_loop_that_is_extended_executes_its_last_round_only(
    trainers: Fabric, tiny_model: Path
) -> None:
    document = yaml.safe_load((EXAMPLES / "rlaif-loop.yaml").read_text())
    document["models"] = {"chat": {"path": str(tiny_model)}}
    small = {"messages": 4, "samples": 2, "epochs": 1, "max_tokens": 8, "seed": 5}
    client = trainers.client("looping")

    def ran(rounds: int) -> Any:
        inputs = {"tickets": TICKETS, "held_out": HELD_OUT}
        return client.submit(document, inputs=inputs, parameters={**small, "rounds": rounds})

    two = settled(ran(2))
    assert {"imitate", "improve[1].tune", "improve[2].tune"} <= executed(two).keys()
    three = settled(ran(3))
    of_the_round = {f"improve[3].{name}" for name in document["steps"]["improve"]["loop"]["steps"]}
    behind_the_loop = {"reply_after", "after", "gain", "rounds"}
    assert executed(three).keys() - behind_the_loop == of_the_round
    assert three.outputs["policy"] != two.outputs["policy"]
    assert three.outputs["before"] == two.outputs["before"]


def test_adapters_of_a_run_write_in_one_batch(trainers: Fabric, tiny_model: Path) -> None:
    """Made by `sft` in the same run, and what each of them writes is its own."""
    rows = [{"prompt": row["message"], "completion": row["good"]} for row in TICKETS]
    asked = table("tickets-held-out.jsonl", 8)
    write = {
        "op": "generate",
        "rows": "${steps.asked.rows}",
        "model": "${models.chat}",
        "prompt": "{{ message }}",
        "max_tokens": 24,
    }
    learn = {"op": "sft", "data": "${inputs.rows}", **TRAINED, "learning_rate": 0.05}
    # Both trainings are over before anything is asked, so that both have the same to do.
    both = {"first": "${steps.one.summary}", "second": "${steps.two.summary}"}
    tables = {"held_out": "${inputs.held_out}", **both}
    sql = "SELECT message FROM held_out, (SELECT count(*) FROM first, second) ORDER BY id"
    steps: dict[str, dict[str, Any]] = {
        "one": {**learn, "seed": 6},
        "two": {**learn, "seed": 7},
        "asked": {"op": "transform", "tables": tables, "sql": sql},
        "by_one": {**write, "adapter": "${steps.one.adapter}"},
        "by_two": {**write, "adapter": "${steps.two.adapter}"},
        "by_none": write,
    }
    names = ("by_one", "by_two", "by_none")
    outputs = {name: f"{name}.rows" for name in names}
    given = {"rows": rows, "held_out": asked}
    run = submit(trainers.client("writing"), tiny_model, steps, outputs, **given)
    settled(run)
    texts = {tuple(row["completion"] for row in run.output(name).rows()) for name in names}
    assert len(texts) == 3
    # Steps follow each other within milliseconds: the first may be on its way alone.
    assert max(batches(trainers, run)) > len(asked)


def batches(trainers: Fabric, run: Run) -> list[int]:
    """Tasks of each lease that generated for a run."""
    counted = (
        "SELECT count(*) FROM results WHERE run = ? AND batch_key LIKE 'generate%' GROUP BY lease"
    )
    database = sqlite3.connect(f"file:{trainers.home}/journal.db?mode=ro", uri=True)
    try:
        return [count for (count,) in database.execute(counted, [run.id])]
    finally:
        database.close()


def documented(name: str, model: Path) -> dict[str, Any]:
    """A workflow of the page on policy optimisation, with two rounds of few, short roll-outs."""
    found = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (document,) = (one for one in map(yaml.safe_load, found) if one["name"] == name)
    document["models"] = {"base": {"path": str(model)}}
    document["steps"]["taste"] |= {"max_steps": 2, "per_device_train_batch_size": 4}
    loop = document["steps"]["improve"]["loop"]
    loop["rounds"] = 2
    loop["steps"]["rollouts"] |= {"samples": 2, "max_tokens": 6}
    return dict(document)


def used(node: LineageNode) -> set[tuple[str, str]]:
    """What all was made from: where it came from, and through which port it was read."""
    own = (node.step or node.label, node.used_as)
    return {own}.union(*(used(child) for child in node.children))


def test_policy_optimisation_taken_apart(trainers: Fabric, tiny_model: Path) -> None:
    document = documented("policy-optimisation", tiny_model)
    client = trainers.client("policies")
    run = client.submit(document, inputs={"preferences": PAIRS, "questions": QUESTIONS})
    settled(run)
    updates = run.output("updates").rows()
    assert [(row["rollouts"], row["old_logprobs"]) for row in updates] == [(6, "given")] * 2
    # From the weights back to the first prompts.
    assert used(client.lineage(run=run.id, output="policy")) >= {
        ("improve[2].update", ""),
        ("improve[2].compared", "rollouts"),
        ("improve[1].update", "adapter"),
        ("improve[1].scored", "rows"),
        ("improve[1].rollouts", "rows"),
        ("input questions", "rows"),
        ("taste", "adapter"),
        ("input preferences", "data"),
        ("model base", "model"),
    }


def test_a_function_of_the_user_gives_the_rewards(
    trainers: Fabric, tiny_model: Path, tmp_path: Path
) -> None:
    code = "def scored(row):\n    return {'reward': row['completion'].count('e') - 1.5}\n"
    (tmp_path / "rewards.py").write_text(code)
    document = documented("policy-optimisation", tiny_model)
    loop = document["steps"]["improve"]["loop"]
    loop["steps"]["scored"] = {
        "op": "python",
        "rows": "${steps.rollouts}",
        "file": str(tmp_path / "rewards.py"),
        "function": "scored",
    }
    del loop["until"], document["steps"]["taste"], document["inputs"]["preferences"]
    run = trainers.client("policies").submit(document, inputs={"questions": QUESTIONS})
    settled(run)
    updates = run.output("updates").rows()
    assert [row["rollouts"] for row in updates] == [6, 6]
    assert updates[0]["kl"] < updates[1]["kl"], "each round goes on from the one before"


def test_policy_optimisation_with_a_value_model(trainers: Fabric, tiny_model: Path) -> None:
    document = documented("policy-optimisation-with-values", tiny_model)
    document["outputs"]["value"] = "${steps.improve.value}"
    client = trainers.client("policies")
    run = client.submit(document, inputs={"preferences": PAIRS, "questions": QUESTIONS})
    settled(run)
    assert used(client.lineage(run=run.id, output="policy")) >= {
        ("improve[1].update", "adapter"),
        ("improve[1].update", "value"),
        ("taste", "value"),
    }
    made = digests(run.last)
    assert made["value"] != made["policy"]
