"""A run as it goes on: bars where a terminal shows them, else a line at each change."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from flowmesh.cli.output import is_live, note, plain
from flowmesh.wire import ProgressView, RunView, StepView

if TYPE_CHECKING:
    from rich.progress import TaskID

    from flowmesh.sdk.runs import Run

_SETTLED = ("succeeded", "failed", "skipped", "cancelled")
#: Where lines cannot be redrawn, how often a step that goes on says so.
LINE_GAP_S = 10.0


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
    """One line for each state that a step comes to, and now and then how far it is."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._said: dict[str, tuple[float, str]] = {}

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
            if step.status == told == "running":
                self._go_on(step)
            if step.status == told or (told is None and step.status == "waiting"):
                continue
            self._told[step.step] = step.status
            if step.status == "running" or step.status in _SETTLED:
                note(f"{step.step}: {in_words(step)}")
                self._said[step.step] = (time.monotonic(), in_words(step))

    def _go_on(self, step: StepView) -> None:
        if step.progress is None and not step.waits_for:
            return
        said_s, words = self._said[step.step]
        now_s = time.monotonic()
        if now_s - said_s >= LINE_GAP_S and in_words(step) != words:
            note(f"{step.step}: {in_words(step)}")
            self._said[step.step] = (now_s, in_words(step))


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
            done, total = _parts(step)
            self._bars.update(
                task,
                total=total,
                completed=done,
                words=in_words(step, with_message=False),
            )
            if step.status in _SETTLED:
                self._bars.stop_task(task)


def _parts(step: StepView) -> tuple[int, int | None]:
    """How much of a step is done, and of how much: its items, or the steps of a long task."""
    if step.status == "running" and step.progress is not None and step.progress.steps:
        return step.progress.step, step.progress.steps
    return (step.items if step.status == "succeeded" else step.done), step.items or None


def in_words(step: StepView, *, with_message: bool = True) -> str:
    """A step's state, what its tasks came to, and why if something is wrong."""
    if step.status == "running":
        told = f"{step.items} {'item' if step.items == 1 else 'items'}"
        if step.progress is not None:
            told = progress_in_words(step.progress)
        return "  ".join(filter(None, (f"running, {told}", step.waits_for)))
    tasks = step.tasks
    counts = {
        "executed": tasks.executed,
        "reused": tasks.reused,
        "joined": tasks.joined,
        "failed": tasks.failed,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    why = f": {step.message}" if step.message and with_message else ""
    if step.status == "cancelled" and step.progress is not None:
        why += f"; {left_behind(step.progress)}"
    return step.status + (f" ({told})" if told else "") + why


def left_behind(stopped: ProgressView) -> str:
    """What a long task that was stopped goes on from, if it is asked for again."""
    if not stopped.saved_step:
        return "no checkpoint is left: asked for again, it begins anew"
    of = f" of {stopped.steps}" if stopped.steps else ""
    return f"a checkpoint of step {stopped.saved_step}{of} is left: asked for again, it goes on"


def progress_in_words(progress: ProgressView) -> str:
    """As `step 12/40  loss 0.613  410 tokens/s  1 min left`."""
    words = [f"step {progress.step}" + (f"/{progress.steps}" if progress.steps else "")]
    words += [_fact(name, value) for name, value in progress.facts.items()]
    return "  ".join([*words, *filter(None, [progress.message])])


def _fact(name: str, value: float) -> str:
    """A number by what its name says it is: `left_s` is time, `tokens_per_s` a rate."""
    what = name.removesuffix("_per_s").removesuffix("_s").replace("_", " ")
    if name.endswith("_per_s"):
        return f"{value:.0f} {what}/s" if value >= 100 else f"{value:.3g} {what}/s"
    if name.endswith("_s"):
        return f"{_duration(value)} {what}"
    return f"{what} {value:.3g}"


def _duration(seconds: float) -> str:
    """Two digits or so: a forecast has no more."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
