"""Plots as SVG text for a page: the page's own colors, light or dark, and text that stays text."""

import io
import math
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from orpo_mlx.data.quality.languages import language_name
from orpo_mlx.extras import import_extra

# Colors that no plot uses otherwise; the page puts its own in their place.
INK, SOFT = "#010203", "#040506"
BAD, MARK = "#0a0b0c", "#0d0e0f"
VARIABLES = {INK: "--ink", SOFT: "--soft", BAD: "--bad", MARK: "--mark"}
WIDTH, HEIGHT = 5.0, 3.2  # inches
MAX_DOTS = 2_000
BINS = 30
WIDE = 8  # longest answer over shortest from which on lengths are drawn by their logarithm


def draw(paint: Callable[[Any], None], label: str) -> str:
    """An SVG of what `paint` draws on axes; `label` is what a screen reader reads out."""
    matplotlib = import_extra("matplotlib", "check")
    figure_kind = import_extra("matplotlib.figure", "check").Figure
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.size": 9,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure = figure_kind(figsize=(WIDTH, HEIGHT), layout="constrained")
        paint(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _own_colors(file.getvalue(), label)


def _own_colors(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    # The page's width is the plot's; a fixed one would not fit a phone.
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def length_plot(lengths: Sequence[tuple[int, int]]) -> str:
    """Every pair as a dot: characters of chosen against rejected."""
    shown = lengths if len(lengths) <= MAX_DOTS else Random(0).sample(lengths, MAX_DOTS)
    shown = [(chosen, rejected) for chosen, rejected in shown if chosen and rejected]

    def paint(axes: Any) -> None:
        # As a line of markers the SVG holds one dot and its positions; scatter writes every path.
        axes.plot(
            [r for _, r in shown], [c for c, _ in shown], ".", color=MARK, alpha=0.4, markersize=4
        )
        ends = [min(map(min, shown), default=1), max(map(max, shown), default=1)]
        axes.plot(ends, ends, color=SOFT, linewidth=1)
        # A logarithmic axis has hardly a number on it where all lengths are alike.
        if ends[1] > WIDE * ends[0]:
            axes.loglog(base=2)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
        axes.set(xlabel="rejected, characters", ylabel="chosen, characters")

    return draw(paint, "Length of chosen against rejected")


def accuracy_plot(accuracies: Sequence[tuple[str, float]], limit: float) -> str:
    """A bar a rule, from one half to how often it is right; red from `limit` on, either way."""

    def paint(axes: Any) -> None:
        names = [name for name, _ in accuracies][::-1]
        values = [100 * (value - 0.5) for _, value in accuracies][::-1]
        colors = [BAD if abs(v) >= 100 * (limit - 0.5) else MARK for v in values]
        axes.barh(names, values, left=50, color=colors)
        axes.axvline(50, color=SOFT, linewidth=1)
        axes.set(xlim=(0, 100), xlabel="pairs in which more of it is chosen, %")

    return draw(paint, "Accuracy of shallow rules")


def histogram_plot(
    values: Sequence[float],
    label: str,
    axis: str,
    *,
    ends: tuple[float, float] | None = None,
    mark: float | None = None,
) -> str:
    """How often each value is, between `ends`; `mark` is drawn as a line."""

    def paint(axes: Any) -> None:
        axes.hist(values, bins=BINS, range=ends, color=MARK)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1)
        axes.set(xlabel=axis, ylabel="pairs")

    return draw(paint, label)


def language_plot(languages: Sequence[tuple[str, int]]) -> str:
    """A bar a language, the most frequent on top."""
    total = sum(count for _, count in languages)

    def paint(axes: Any) -> None:
        shares = [100 * count / total for _, count in languages][::-1]
        axes.barh([language_name(code) for code, _ in languages][::-1], shares, color=MARK)
        axes.set(xlabel="chosen answers, %", xlim=(0, 10 * math.ceil(max(shares) / 10)))

    return draw(paint, "Languages")
