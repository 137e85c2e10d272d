"""A run's curves as one screen of text. Imports no mlx."""

from collections.abc import Sequence
from typing import Any

from orpo_mlx.extras import import_extra

MOST_POINTS = 400  # of a curve: more than a screen has columns
CURVES = (("loss", "loss"), ("rewards/accuracies", "accuracy"))


def render_screen(rows: Sequence[dict[str, float]], width: int, height: int) -> str:
    """Loss and accuracy by step, in color for a terminal, `width` columns and `height` rows.

    Raises OrpoError if plotext is not installed.
    """
    plotext = import_extra("plotext", "watch")
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.subplots(1, len(CURVES))
    for number, (name, title) in enumerate(CURVES, 1):
        panel = figure.subplot(1, number)
        panel.theme("colorless")
        # Not in a legend, which covers the curve's beginning.
        panel.title(f"{title}: line training, ● held-out")
        for key, marker in ((name, "hd"), (f"eval_{name}", "●")):
            steps, values = _points(rows, key)
            if steps:
                panel.draw(panel.signal(steps, values, marker=marker).lines(key == name))
    return str(figure.build().string()).rstrip("\n")


def _points(rows: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; of a long curve the means of neighboring points."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    size = -(-len(points) // MOST_POINTS)
    groups: Any = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    steps = [group[-1][0] for group in groups]
    return steps, [sum(value for _, value in group) / len(group) for group in groups]
