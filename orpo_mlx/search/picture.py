"""The picture of a range test: held-out loss and accuracy by learning rate."""

import io
import math
from collections.abc import Sequence
from typing import Any

from orpo_mlx.extras import import_extra
from orpo_mlx.search.lr_find import Search
from orpo_mlx.search.short_runs import ShortRun

COLORS = ("#1f6feb", "#8a8f98")  # of the searches, in their order
WIDTH, HEIGHT, DOTS = 9.0, 3.2, 144  # inches, dots an inch


def draw_searches(searches: Sequence[Search]) -> bytes:
    """A PNG; raises OrpoError if matplotlib is not installed."""
    matplotlib = import_extra("matplotlib", "report")
    figure_kind = import_extra("matplotlib.figure", "report").Figure
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = figure_kind(figsize=(WIDTH, HEIGHT), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for search, color in zip(searches, COLORS, strict=False):
            _paint(loss, search, "held_out_loss", color)
            _paint(accuracy, search, "accuracy", color)
        loss.set(title="held-out loss", xscale="log", xlabel="learning rate")
        accuracy.set(
            title="held-out accuracy", xscale="log", xlabel="learning rate", ylim=(-0.02, 1.02)
        )
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        file = io.BytesIO()
        # White, for pages in the dark; no date, so that the same search gives the same file.
        figure.savefig(file, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _paint(axes: Any, search: Search, name: str, color: str) -> None:
    """A line for each number of steps, the start as a level, the suggestion as a vertical line."""
    for steps, style in zip(sorted({run.steps for run in search.runs}), (":", "-"), strict=False):
        points = sorted(
            (run.learning_rate, getattr(run, name)) for run in search.runs if _is_shown(run, steps)
        )
        label = f"beta {search.beta:g}, {steps} steps"
        if points:
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=style,
                marker="o",
                markersize=3,
                label=label,
            )
    axes.axhline(getattr(search.before, name), color=color, linewidth=0.5)
    if search.suggestion:
        axes.axvline(search.suggestion, color=color, linewidth=1.5, alpha=0.4)


def _is_shown(run: ShortRun, steps: int) -> bool:
    return run.steps == steps and math.isfinite(run.held_out_loss)
