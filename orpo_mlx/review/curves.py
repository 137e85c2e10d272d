"""Curves as an image: a run's for its card, and those of several runs."""

import io
from collections.abc import Callable, Mapping, Sequence
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
    return _draw(rows, lambda axes, name: _paint(axes, rows, name), 2)


def draw_comparison(runs: Mapping[str, Sequence[dict[str, float]]]) -> bytes | None:
    """A PNG of the same curves of several runs, by their names: held-out ones drawn out, those of
    training faint. None if there is nothing to draw."""
    long_enough = {n: rows for n, rows in runs.items() if len(rows) > 1}
    if not long_enough:
        return None

    def paint(axes: Any, name: str) -> None:
        for number, (run, rows) in enumerate(long_enough.items()):
            color = f"C{number}"
            held_out = any(f"eval_{name}" in row for row in rows)
            faint = {"alpha": 0.35, "linewidth": 0.8} if held_out else {}
            _line(axes, rows, name, color=color, label="" if held_out else run, **faint)
            _line(axes, rows, f"eval_{name}", color=color, label=run, marker="o", markersize=3)

    rows = [row for rows in long_enough.values() for row in rows]
    return _draw(rows, paint, len(long_enough))


def _draw(
    rows: Sequence[dict[str, float]], paint: Callable[[Any, str], None], columns: int
) -> bytes:
    drawn = [
        panel
        for panel in PANELS
        if any({panel[0], f"eval_{panel[0]}"} & row.keys() for row in rows)
    ]
    matplotlib = import_extra("matplotlib", "report")
    figure_kind = import_extra("matplotlib.figure", "report").Figure
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(settings):
        figure = figure_kind(figsize=(WIDTH, HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, label) in zip(panels, drawn, strict=True):
            paint(axes, name)
            axes.set(title=label, xlabel="step")
        labels = panels[0].get_legend_handles_labels()
        figure.legend(*labels, loc="outside lower center", ncols=min(columns, 4))
        file = io.BytesIO()
        # White, for pages in the dark; no date, so that the same run gives the same file.
        figure.savefig(file, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _paint(axes: Any, rows: Sequence[dict[str, float]], name: str) -> None:
    for key, label, color, mark in (
        (name, "training", TRAIN, ""),
        (f"eval_{name}", "held-out", HELD_OUT, "o"),
    ):
        _line(axes, rows, key, color=color, marker=mark, markersize=3, label=label)


def _line(axes: Any, rows: Sequence[dict[str, float]], key: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, **style)


def curves_or_reason(rows: Sequence[dict[str, float]]) -> tuple[bytes | None, str]:
    """The image, or why there is none."""
    try:
        return draw_curves(rows), ""
    except OrpoError as error:
        return None, f"The card has no curves: {error}"
