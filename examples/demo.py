"""`make demo`: examples/rlaif-loop.yaml on a real model, on this machine, for two tenants.

Alice runs two rounds. Bob then asks for the same with one round, and gets what is done
already. Nothing is set up: the client starts a server with two workers in `.flowmesh/` here,
and it leaves by itself.
"""

import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from flowmesh import Client, FlowMeshError, Run
from flowmesh.wire import RunView, StepView

HERE = Path(__file__).parent
HOME = HERE.parent / ".flowmesh"
WORKFLOW = HERE / "rlaif-loop.yaml"
SHOWN = 3
#: What the steps whose progress is told do, by the last part of their names.
STAGES = {
    "imitate": "learning to reply as the shop did",
    "replies": "writing replies",
    "judged": "judging them",
    "tune": "learning from the pairs",
    "reply_before": "held-out replies before",
    "reply_after": "held-out replies after",
}


def say(text: str = "") -> None:
    print(text, flush=True)


def follow(run: Run) -> RunView:
    """Tell each step's progress in quarters, until the run has settled."""
    told: dict[str, int] = {}

    def tell(view: RunView) -> None:
        for step in view.steps:
            done, total, unit, more = _progress(step)
            quarter = 4 * done // total if total else 0
            stage = STAGES.get(step.step.rpartition(".")[2])
            if stage and quarter > told.get(step.step, 0):
                told[step.step] = quarter
                place = step.step.partition(".")[0] if "." in step.step else ""
                how = (
                    "made before" if step.tasks.reused == total else f"{unit} {done}/{total}{more}"
                )
                say(f"  {view.seconds:5.0f} s  {place:11}{stage}: {how}")

    return run.wait(tell)


def _progress(step: StepView) -> tuple[int, int, str, str]:
    """How far a step is: done, of how many, of what, and what else there is to say."""
    if step.progress is not None and step.status == "running":
        loss = step.progress.facts.get("loss")
        more = "" if loss is None else f", loss {loss:.2f}"
        return step.progress.step, step.progress.steps, "step", more
    return step.done, step.tasks.total, "task", ""


def show_rounds(run: Run) -> None:
    say("\nHow kind the judge found the replies that were drawn in each round (0 to 1):")
    for number, row in enumerate(run.output("rounds").rows(), 1):
        say(f"  round {number}: {row['score']:.2f} {_bar(row['score'])}")


def _bar(value: float) -> str:
    return "#" * round(40 * value)


def show_replies(run: Run) -> None:
    before, after = run.output("before").rows(), run.output("after").rows()
    say(f"\nThe likeliest reply to held-out messages, before and after; {SHOWN} of {len(after)}:")
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        say(f"    customer  {old['message']}")
        for label, row in (("before", old), ("after", new)):
            text = textwrap.shorten(row["reply"], 150)
            say(f"    {label:8}  {text}  [kind: {row['score']:.2f}]")
        say()


def show_gain(run: Run) -> None:
    (gain,) = run.output("gain").rows()
    say(
        f"Held-out kindness: {gain['first']:.3f} after, {gain['second']:.3f} before; difference "
        f"{gain['difference']:+.3f}, 95 % interval {gain['ci_low']:+.3f} to {gain['ci_high']:+.3f}"
        f", better on {gain['wins']} of {gain['n']} messages, worse on {gain['losses']}."
    )


def shared(name: str, view: RunView) -> None:
    tasks = view.tasks
    say(
        f"  {name:6} needed {tasks.total} tasks: {tasks.executed} executed for it, "
        f"{tasks.joined} joined in flight, {tasks.reused} reused; {view.batches} batches, "
        f"{view.seconds:.0f} s, cost ${view.cost_usd:.5f}, saved ${view.saved_usd:.5f}"
    )


def settled(run: Run) -> RunView:
    view = follow(run)
    if view.status != "succeeded":
        raise SystemExit(f"the run {view.status}: {view.message}")
    return view


def main() -> int:
    say("RLAIF with SmolLM2-135M-Instruct, on this machine.")
    say("A model learns a shop's replies, two in three of them curt. Then it is its own judge.")
    settings: dict[str, Any] = {"home": HOME, "workers": 2}
    start = time.monotonic()
    with (
        Client(tenant="alice", note=say, **settings) as alice,
        Client(tenant="bob", **settings) as bob,
    ):
        first = alice.submit(WORKFLOW, parameters={"rounds": 2})
        say(f"alice's run {first.id}: 2 rounds.")
        views = {"alice": settled(first)}
        show_rounds(first)
        show_replies(first)
        show_gain(first)
        second = bob.submit(WORKFLOW, parameters={"rounds": 1})
        say(f"\nbob's run {second.id}: the same with 1 round. What alice had made is there:")
        views["bob"] = settled(second)
        say("\nWhat was shared, and what it cost (at a nominal $0.05 an hour and worker):")
        for name, view in views.items():
            shared(name, view)
        where = f"--tenant alice --home {HOME.name}"
        say("\nGo on from here:")
        say(f"  .venv/bin/flowmesh models tag {first.id}:policy support-bot@prod {where}")
        say(f"  .venv/bin/flowmesh models show support-bot@prod {where}")
        say(f"  .venv/bin/flowmesh lineage {first.id}:policy {where}")
        say(f"  .venv/bin/flowmesh run examples/rlaif-loop.yaml --set rounds=3 {where}")
        say("The last one executes round 3 only.")
    say(f"{time.monotonic() - start:.0f} s in all.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FlowMeshError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
