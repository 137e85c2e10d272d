"""A run's curves as an image for its card."""

import io
from collections.abc import Sequence
from typing import Any

from orpo_mlx.errors import OrpoError
from orpo_mlx.extras import import_extra

TRAIN, HELD_OUT = "#8a8f98", "#1f6feb"
PANELS = (("loss", "loss"), ("rewards/accuracies", "accuracy"), ("rewards/margins", "margin"))
WIDTH, HEIGHT, DOTS = 9.0, 2.8, 144  # inches, dots an inch


def draw_curves(rows: Sequence[dict[str, float]]) -> bytes | None:
    """A PNG of loss, accuracy and margin by step; None if there is nothing to draw.

    Raises OrpoError if matplotlib is not installed.
    """
    if len([row for row in rows if "loss" in row]) < 2:
        return None
    matplotlib = import_extra("matplotlib", "report")
    figure_kind = import_extra("matplotlib.figure", "report").Figure
    drawn = [
        panel
        for panel in PANELS
        if any({panel[0], f"eval_{panel[0]}"} & row.keys() for row in rows)
    ]
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = figure_kind(figsize=(WIDTH, HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, label) in zip(panels, drawn, strict=True):
            _paint(axes, rows, name)
            axes.set(title=label, xlabel="step")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        file = io.BytesIO()
        # White, for pages in the dark; no date, so that the same run gives the same file.
        figure.savefig(file, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _paint(axes: Any, rows: Sequence[dict[str, float]], name: str) -> None:
    for key, label, color, mark in (
        (name, "training", TRAIN, ""),
        (f"eval_{name}", "held-out", HELD_OUT, "o"),
    ):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=color, marker=mark, markersize=3, label=label)


def curves_or_reason(rows: Sequence[dict[str, float]]) -> tuple[bytes | None, str]:
    """The image, or why there is none."""
    try:
        return draw_curves(rows), ""
    except OrpoError as error:
        return None, f"The card has no curves: {error}"
