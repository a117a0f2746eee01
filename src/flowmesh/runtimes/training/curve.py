"""The picture of a training: its losses, and its rewards, over the steps."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowmesh.runtimes.training.watch import evaluated, trained

_TRAIN, _EVAL, _REWARD = "#4c72b0", "#dd8452", "#55a868"


def draw_curve(title: str, log: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG; equal logs give equal bytes with the same matplotlib."""
    with matplotlib.rc_context(rc=matplotlib.rcParamsDefault):
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        _plot(axes, trained(log), "loss", _TRAIN, "training loss")
        _plot(axes, evaluated(log), "eval_loss", _EVAL, "loss on held-out rows")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        lines = list(axes.get_lines())
        if any(entry.get("reward") is not None for entry in log):
            rewards = axes.twinx()
            _plot(rewards, trained(log), "reward", _REWARD, "reward")
            rewards.set_ylabel("reward")
            lines += rewards.get_lines()
        axes.legend(lines, [str(line.get_label()) for line in lines])
        # matplotlib would write its version, and no time; neither belongs to the content.
        FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def _plot(axes: Axes, entries: list[dict[str, Any]], key: str, colour: str, name: str) -> None:
    found = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
    if found:
        steps, values = zip(*found, strict=True)
        marker = "o" if len(found) < 40 else ""
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, label=name)
