"""A run as it goes on: bars where a terminal shows them, else a line at each change."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from flowmesh.cli.output import is_live, note, plain
from flowmesh.wire import RunView, StepView

if TYPE_CHECKING:
    from rich.progress import TaskID

    from flowmesh.sdk.runs import Run

_SETTLED = ("succeeded", "failed", "skipped", "cancelled")


class Display(Protocol):
    """Shows a run while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, view: RunView) -> None: ...


def follow(run: "Run") -> RunView:
    """Show a run on standard error until it has settled."""
    display: Display = Bars() if is_live(sys.stderr) else Lines()
    with display:
        display.update(run.last)
        return run.wait(display.update)


class Lines:
    """One line for each state that a step comes to."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, view: RunView) -> None:
        if not self._told:
            note(f"run {view.run} of tenant {view.tenant}: {view.name}")
            self._told[""] = view.status
        for step in view.steps:
            told = self._told.get(step.step)
            if step.status == told or (told is None and step.status == "waiting"):
                continue
            self._told[step.step] = step.status
            if step.status == "running" or step.status in _SETTLED:
                note(f"{step.step}: {in_words(step)}")


class Bars:
    """One bar for each step, redrawn in place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            Elapsed(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def update(self, view: RunView) -> None:
        for step in view.steps:
            if step.step not in self._tasks:
                self._tasks[step.step] = self._bars.add_task(
                    plain(step.step), total=None, start=False, words=step.status
                )
            task = self._tasks[step.step]
            if step.status == "running":
                self._bars.start_task(task)
            self._bars.update(
                task,
                total=step.items or None,
                completed=step.items if step.status == "succeeded" else step.done,
                words=in_words(step, with_message=False),
            )
            if step.status in _SETTLED:
                self._bars.stop_task(task)


def in_words(step: StepView, *, with_message: bool = True) -> str:
    """A step's state, what its tasks came to, and why if something is wrong."""
    if step.status == "running":
        return f"running, {step.items} {'item' if step.items == 1 else 'items'}"
    tasks = step.tasks
    counts = {
        "executed": tasks.executed,
        "reused": tasks.reused,
        "joined": tasks.joined,
        "failed": tasks.failed,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    why = f": {step.message}" if step.message and with_message else ""
    return step.status + (f" ({told})" if told else "") + why
