"""A report about pairs on the terminal: one block per finding, worst first."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orpo_mlx.data.quality.findings import SEVERITIES, Example, Finding

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orpo_mlx.data.quality.check import Report

COLORS = {"severe": "bold red", "warning": "bold yellow", "note": "bold cyan"}
SHOWN_LOCATIONS = 8
SHOWN_CHARACTERS = 160


def render_report(report: "Report") -> "Iterator[RenderableType]":
    """The findings, then the figures, then how many there are of each severity."""
    for finding in report.findings:
        yield from render_finding(finding)
    if report.lengths:
        yield cues_table(report)
    yield Text(counts_line(report))


def render_finding(finding: Finding) -> "Iterator[RenderableType]":
    """What was found, where, some examples, and what to do."""
    heading = Text(finding.severity.upper(), style=COLORS[finding.severity])
    heading.append(f"  {finding.name}", style="bold")
    if finding.rows:
        share = len(finding.rows) / max(finding.total, 1)
        heading.append(f"  {len(finding.rows):,} of {finding.total:,} rows ({share:.1%})")
    yield heading
    lines = [Text(f"{one_line(finding.what, 1000)}.")]
    if finding.rows:
        lines.append(Text(f"Rows: {_locations(finding.rows)}", style="dim"))
    lines += [line for example in finding.examples for line in _example_lines(example)]
    lines.append(Text(f"What to do: {finding.advice}"))
    if finding.threshold:
        lines.append(Text(f"Threshold {finding.threshold}.", style="dim"))
    for line in lines:
        yield Padding(line, (0, 0, 0, 2), expand=False)
    yield Text()


def _locations(rows: tuple[str, ...]) -> str:
    more = f" and {len(rows) - SHOWN_LOCATIONS:,} more (all with --json)"
    return ", ".join(rows[:SHOWN_LOCATIONS]) + (more if len(rows) > SHOWN_LOCATIONS else "")


def _example_lines(example: Example) -> list[Text]:
    first = Text(f"{example.location}", style="bold")
    if example.detail:
        first.append(f"  {one_line(example.detail)}", style="not bold")
    texts = (
        ("prompt  ", example.prompt, "dim"),
        ("chosen  ", example.chosen, "green"),
        ("rejected", example.rejected, "red"),
    )
    return [first, *(Text(f"  {n} {one_line(t)}", style=s) for n, t, s in texts if t.strip())]


def one_line(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """A text on one line, cut; what would move the cursor is shown as a dot."""
    flat = " ".join(text.split())
    flat = "".join(c if c.isprintable() else "·" for c in flat)
    return flat if len(flat) <= limit else f"{flat[: limit - 4]} ..."


def cues_table(report: "Report") -> Table:
    """The accuracy of every shallow rule, whether or not it is a finding."""
    table = Table(title="Accuracy of shallow rules", title_justify="left")
    table.add_column("rule: the answer with more of this is chosen")
    for name in ("accuracy", "pairs that differ", "chosen", "rejected"):
        table.add_column(name, justify="right")
    for cue in report.cues:
        table.add_row(
            cue.name,
            f"{cue.accuracy:.1%}",
            f"{cue.differing:,}",
            f"{cue.chosen:.2f}",
            f"{cue.rejected:.2f}",
        )
    if report.words:
        accuracy = f"{report.words.accuracy:.1%}"
        table.add_row("bag-of-words classifier", accuracy, f"{report.words.pairs:,}", "", "")
    return table


def counts_line(report: "Report") -> str:
    """`2 severe, 1 warning, 0 notes in 320 pairs (train 240, valid 40, test 40).`"""
    counts = [sum(f.severity == name for f in report.findings) for name in SEVERITIES]
    words = [
        f"{n:,} {name}{'s' * (n != 1 and name != 'severe')}"
        for n, name in zip(counts, SEVERITIES, strict=True)
    ]
    splits = ", ".join(f"{name} {count:,}" for name, count in report.pairs.items())
    return f"{', '.join(words)} in {sum(report.pairs.values()):,} pairs ({splits})."
