"""`make demo`: the quickstart as two tenants at once, on a real model, on this machine.

Alice wants four answers to each question, Bob two to the same ones. Nothing is set up: the
client starts a server with two workers in `.flowmesh/` here, and it leaves by itself.
"""

import sys
import time
from pathlib import Path

from flowmesh import Client, FlowMeshError, Run
from flowmesh.wire import RunView

HERE = Path(__file__).parent
HOME = HERE.parent / ".flowmesh"
SHOWN = 3


def say(text: str = "") -> None:
    print(text, flush=True)


def follow(name: str, run: Run) -> RunView:
    """Tell each step's progress in tenths, until the run has settled."""
    told: dict[str, int] = {}

    def tell(view: RunView) -> None:
        for step in view.steps:
            tenths = 10 * step.done // step.tasks.total if step.tasks.total else 0
            if tenths > told.get(step.step, 0):
                told[step.step] = tenths
                say(f"  {view.seconds:5.1f} s  {name}: {step.step} {step.done}/{step.tasks.total}")

    return run.wait(tell)


def shared(name: str, view: RunView) -> None:
    tasks = view.tasks
    say(
        f"  {name:6} needed {tasks.total} tasks: {tasks.executed} executed for it, "
        f"{tasks.joined} joined in flight, {tasks.reused} reused; "
        f"{view.batches} batches, {view.seconds:.0f} s, "
        f"cost ${view.cost_usd:.5f}, saved ${view.saved_usd:.5f}"
    )


def main() -> int:
    say("Preference data from SmolLM2-135M-Instruct, for two tenants, on this machine.")
    workflow = HERE / "quickstart.yaml"
    with (
        Client(home=HOME, tenant="alice", workers=2, note=say) as alice,
        Client(home=HOME, tenant="bob", workers=2) as bob,
    ):
        first = alice.submit(workflow, parameters={"samples": 4})
        second = bob.submit(workflow, parameters={"samples": 2})
        say(f"alice's run {first.id} wants 4 answers to each question, bob's {second.id} wants 2.")
        views = {"alice": follow("alice", first), "bob": follow("bob", second)}
        if any(view.status != "succeeded" for view in views.values()):
            say("\n".join(f"{name}: {view.status} {view.message}" for name, view in views.items()))
            return 1
        say("\nWhat was made:")
        pairs = first.output("pairs").rows()
        say(f"  {len(pairs)} preference pairs; the first {SHOWN}:")
        for pair in pairs[:SHOWN]:
            say(f"    Q  {pair['prompt']}")
            say(f"    +  {' '.join(pair['chosen'].split())}")
            say(f"    -  {' '.join(pair['rejected'].split())}")
        say("\nWhat was shared, and what it cost (at a nominal $0.05 an hour and worker):")
        for name, view in views.items():
            shared(name, view)
        start = time.monotonic()
        again = alice.submit(workflow, parameters={"samples": 4}).wait()
        took_s = time.monotonic() - start
        say(f"\nThe same once more: {again.tasks.executed} tasks executed, {took_s:.1f} s.")
        say("\nWhere does the first judged answer come from?")
        place = f"{first.id}:judged --row 0 --tenant alice --home {HOME.name}"
        say(f"  .venv/bin/flowmesh lineage {place}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FlowMeshError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
