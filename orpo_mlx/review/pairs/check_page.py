"""The report of a check as one HTML file: nothing is loaded from elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_mlx.data.quality.check import Report
from orpo_mlx.data.quality.findings import SEVERITIES
from orpo_mlx.data.quality.thresholds import DECLARED
from orpo_mlx.files import replacing
from orpo_mlx.public_names import folder_remover, public_name
from orpo_mlx.review.pairs.plots import accuracy_plot, histogram_plot, language_plot, length_plot
from orpo_mlx.review.templates import page_environment

MAX_LOCATIONS = 500  # named on the page; --json has them all


class Plot(NamedTuple):
    """An SVG, and what it shows."""

    title: str
    caption: str
    svg: str


def save_check_page(report: Report, sources: Sequence[str], file: Path) -> None:
    """Write the page, completely or not at all."""
    save(render_check_page(report, sources), file)


def render_check_page(report: Report, sources: Sequence[str]) -> str:
    """The HTML of a report; all text of the data is escaped."""
    counts = {name: sum(f.severity == name for f in report.findings) for name in SEVERITIES}
    return render(
        "check.html",
        sources,
        report=report,
        counts=counts,
        plots=_plots(report),
        declared=DECLARED,
        max_locations=MAX_LOCATIONS,
        total=sum(report.pairs.values()),
    )


def _plots(report: Report) -> list[Plot]:
    """The plots for which there is something to show."""
    if not report.lengths:
        return []
    rules = [(cue.name, cue.accuracy) for cue in report.cues]
    if report.words:
        rules.insert(0, ("bag of words", report.words.accuracy))
    plots = [
        Plot(
            "Length",
            "Each dot is a pair; above the line the chosen answer is longer.",
            length_plot(report.lengths),
        ),
        Plot(
            "Shallow rules",
            "How often the answer with more of something is the chosen one. At "
            "50 % a rule is of no use; far from it, on either side, it separates the answers.",
            accuracy_plot(rules, report.thresholds["cue"]),
        ),
        Plot(
            "Similarity",
            "How much of two answers is common to both, in order: 1 is the same text.",
            histogram_plot(report.similarities, "Edit similarity", "edit similarity", ends=(0, 1)),
        ),
    ]
    if report.diversity.languages:
        plots.append(
            Plot(
                "Languages",
                "Of a sample of the chosen answers.",
                language_plot(report.diversity.languages),
            )
        )
    if report.margins:
        plots.append(
            Plot(
                "Margins of the base",
                "Mean log-prob a token of chosen minus rejected; right of "
                "the line the base already prefers the chosen answer.",
                histogram_plot(report.margins, "Margins", "margin, nats a token", mark=0.0),
            )
        )
    return plots


def render(template: str, sources: Sequence[str], **values: Any) -> str:
    """The HTML of a template, in which `public` cuts the folders of the sources' files."""
    environment = page_environment("orpo_mlx.review.pairs")
    environment.filters |= {"public": folder_remover(sources), "public_name": public_name}
    return environment.get_template(template).render(sources=sources, **values)


def save(html: str, file: Path) -> None:
    """Write a page, completely or not at all."""
    with replacing(file) as made:
        made.write_text(html, encoding="utf-8")
