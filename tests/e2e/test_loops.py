"""A loop of real operators, extended: only the rounds that are new are executed."""

from pathlib import Path
from typing import Any

from flowmesh.sdk.builder import Workflow
from support.fabric import Fabric

CODE = """\
def grow(row):
    return {"n": row["n"] + 1}


def mean(data):
    return [{"mean": sum(row["n"] for row in data) / len(data)}]
"""


def counting(folder: Path) -> Workflow:
    """Adds 1 to every row in each round; each round measures the mean."""
    (folder / "count.py").write_text(CODE)
    file = str(folder / "count.py")
    flow = Workflow("count")
    rows = flow.table("rows")
    rounds = flow.parameter("rounds", "int")
    flow.parameter("goal", "float", default=1000)
    loop = flow.loop("count", rounds=rounds, until="steps.mean.rows.mean >= inputs.goal")
    data = loop.carry("data", start=rows)
    grown = loop.step("grown", "python", rows=data, file=file, function="grow")
    mean = loop.step("mean", "python_table", rows=grown, file=file, function="mean")
    loop.next("data", grown)
    loop.collect("means", mean)
    history = flow.step("history", "concat", tables=loop.output("means"))
    flow.output("data", loop.output("data"))
    flow.output("history", history)
    return flow


def test_a_loop_that_is_extended_executes_only_what_is_new(
    trainers: Fabric, tmp_path: Path
) -> None:
    flow = counting(tmp_path)
    rows: list[dict[str, Any]] = [{"n": 10}, {"n": 20}]
    client = trainers.client("loops")

    def ran(**parameters: Any) -> Any:
        run = client.submit(flow, inputs={"rows": rows}, parameters=parameters)
        view = run.wait()
        assert view.status == "succeeded", view.message
        return {step.step: step.tasks.executed for step in view.steps}, run

    executed, _ = ran(rounds=2)
    assert sum(executed.values()) == 2 * (2 + 1) + 1
    executed, run = ran(rounds=3)
    assert {step for step, count in executed.items() if count} == {
        "count[3].grown",
        "count[3].mean",
        "history",
    }
    assert run.output("data").rows() == [{"n": 13}, {"n": 23}]
    assert run.output("history").rows() == [{"mean": n} for n in (16.0, 17.0, 18.0)]

    executed, run = ran(rounds=10, goal=17)  # which the second round reaches
    assert {step for step, count in executed.items() if count} <= {"history"}
    assert run.output("data").rows() == [{"n": 12}, {"n": 22}]
    origin = client.lineage(run=run.id, output="data", row=1)
    assert origin.label == "count[2].grown.rows row 1"
