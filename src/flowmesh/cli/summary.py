"""What came of a run: for people as text, for scripts as one document."""

import time
from typing import Any

from flowmesh.cli.figures import money
from flowmesh.cli.output import heading, say, table
from flowmesh.cli.progress import in_words
from flowmesh.wire import ArtifactView, RunView

_FAILURES_TOLD = 10


def run_document(view: RunView) -> dict[str, Any]:
    """A run as `--json` prints it; documented, and only ever added to."""
    plain = view.model_dump(mode="json")
    return {**plain, "outputs": {name: made.digest for name, made in view.outputs.items()}}


def show_summary(view: RunView) -> None:
    """Steps, failures, what was shared, what it cost, and where to look next."""
    heading(f"run {view.run} ({view.name}): {view.status} after {view.seconds:.1f} s")
    if view.message:
        say(view.message)
    say()
    headers = ("step", "operator", "status", "items", "executed", "reused", "joined", "failed")
    rows: list[tuple[object, ...]] = []
    for step in view.steps:
        tasks = step.tasks
        counts = (tasks.executed, tasks.reused, tasks.joined, tasks.failed)
        rows.append((step.step, step.op, step.status, step.items, *counts))
    tasks = view.tasks
    items = sum(step.items for step in view.steps)
    rows.append(("total", "", "", items, tasks.executed, tasks.reused, tasks.joined, tasks.failed))
    say(table(headers, rows))
    _show_running(view)
    say()
    spared = tasks.reused + tasks.joined
    work = f"{_counted(tasks.total, 'distinct task')} in {_counted(view.batches, 'batch', 'es')}"
    say(f"{work}; {spared} {'was' if spared == 1 else 'were'} not executed again")
    say(f"cost {money(view.cost_usd)}, saved {money(view.saved_usd)}")
    _show_limits(view)
    _show_failures(view)
    if view.outputs:
        say()
        _show_outputs(view.outputs)
        say()
        _show_where_next(view)


def _show_where_next(view: RunView) -> None:
    """Commands that go on from here, for the first output of each kind."""
    first = {made.kind: name for name, made in reversed(view.outputs.items())}
    if "table" in first:
        say(f"rows:     flowmesh outputs {view.run} --name {first['table']}")
    if "file" in first:
        say(f"file:     flowmesh outputs {view.run} --name {first['file']} --to DIRECTORY")
    if "tree" in first:
        say(f"weights:  flowmesh models show {view.run}:{first['tree']}")
        say(f"a name:   flowmesh models tag {view.run}:{first['tree']} NAME")
        say(f"files:    flowmesh outputs {view.run} --name {first['tree']} --to DIRECTORY")
    say(f"lineage:  flowmesh lineage {view.run}:{next(iter(view.outputs))}")


def _show_running(view: RunView) -> None:
    """How far the long tasks are, and what is waited for in vain."""
    going = [step for step in view.steps if step.progress is not None or step.waits_for]
    if going:
        say()
    for step in going:
        say(f"{step.step}  {in_words(step)}")


def _show_limits(view: RunView) -> None:
    """How it stands against its budget and its deadline."""

    if view.budget_usd:
        held = f"; {money(view.held_usd)} more held for what runs" if view.held_usd else ""
        say(f"spent {money(view.cost_usd)} of {money(view.budget_usd)}{held}")
    if view.deadline_ms:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.deadline_ms / 1000))
        words = {None: "is ahead", True: "was met", False: "was missed"}
        say(f"deadline {at} {words[view.deadline_met]}")


def _counted(count: int, what: str, plural: str = "s") -> str:
    return f"{count} {what}{'' if count == 1 else plural}"


def _show_failures(view: RunView) -> None:
    """What has failed, but for what the run's message has said."""
    failures = [
        one
        for one in view.failures
        if not (one.whole and view.message == f"step {one.step}: {one.message}")
    ]
    if not failures:
        return
    say()
    say("failed:" if any(one.whole for one in failures) else "failed rows:")
    order = {step.step: number for number, step in enumerate(view.steps)}
    told = sorted(failures, key=lambda one: (order.get(one.step, -1), one.row, one.sample))
    for failure in told[:_FAILURES_TOLD]:
        sample = f", sample {failure.sample}" if failure.sample else ""
        where = "" if failure.whole else f", row {failure.row}{sample}"
        cause = " ".join(failure.message.split())
        say(f"  {failure.step}{where}: {cause} ({failure.kind})")
    if len(failures) > _FAILURES_TOLD:
        say(f"  and more: flowmesh show {view.run} --json")


def _show_outputs(outputs: dict[str, ArtifactView]) -> None:
    rows = [
        (name, made.kind, made.rows if made.rows >= 0 else "", made.digest)
        for name, made in outputs.items()
    ]
    say(table(("output", "kind", "rows", "digest"), rows))
