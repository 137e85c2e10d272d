"""`orpo-mlx runs`: a line for each run."""

import datetime as dt
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.runs import RunsListConfig

if TYPE_CHECKING:
    from orpo_mlx.review.runs.status import RunStatus

TITLES = ("run", "base", "data", "step", "loss", "acc", "state", "size", "age")
LEFT = ("run", "base", "data", "state")
NAMES, SHORTEST = 3, 6  # the first columns, and how far they are cut


@config_command("list", RunsListConfig)
def command(config: RunsListConfig, output: Output) -> None:
    """List runs: base, data, step, loss, accuracy, state, size.

    Loss and accuracy are the last ones on held-out pairs, or in brackets those of training.

    \b
    Examples:
      orpo-mlx runs
      orpo-mlx runs adapters/mine /elsewhere/adapters --json
    """
    from orpo_mlx.review.runs.status import find_runs, status_of

    runs, notes = find_runs(config.folders)
    statuses = [status_of(run) for run in runs]
    facts = {"runs": [status._asdict() for status in statuses], "notes": notes}
    problems = [f"{s.folder}: {s.reason}" for s in statuses if s.state == "damaged"]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = runs_lines(statuses, width) if statuses else ["No runs."]
    output.result(facts, [*lines, *problems, *notes])


def runs_lines(statuses: Sequence["RunStatus"], width: int | None = None) -> list[str]:
    """A line for each run, below a head; names are cut to fit `width` columns, numbers never."""
    rows = [TITLES, *map(_cells, statuses)]
    widths = [max(len(row[number]) for row in rows) for number in range(len(TITLES))]
    while width and sum(widths) + 2 * len(widths) - 2 > width and max(widths[:NAMES]) > SHORTEST:
        widths[widths.index(max(widths[:NAMES]))] -= 1
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for title, cell, width in zip(TITLES, row, widths, strict=True):
        if len(cell) > width:  # a run's own name is at the end of its path
            cell = "…" + cell[1 - width :] if title == "run" else cell[: width - 1] + "…"
        yield f"{cell:{width}}" if title in LEFT else f"{cell:>{width}}"


def _cells(status: "RunStatus") -> tuple[str, ...]:
    from orpo_mlx.files import size_text

    return (
        printable(str(status.folder)),
        printable(status.base),
        printable(", ".join(status.data)),
        "" if status.state == "damaged" else step_text(status.step, status.steps),
        number_text(status.loss, 3, status.held_out),
        number_text(status.accuracy, 2, status.held_out),
        status.state or "-",
        size_text(status.size_bytes),
        age_text(status.updated),
    )


def step_text(step: int, steps: int | None) -> str:
    """30/100, or 30 where the end is not known."""
    return f"{step:,}/{steps:,}" if steps else f"{step:,}"


def number_text(value: float | None, digits: int, held_out: bool) -> str:
    """A metric; in brackets if it is one of training."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" if held_out else f"({value:.{digits}f})"


def age_text(moment: str) -> str:
    """How long ago an ISO 8601 time was: now, 5 min, 3 h, 12 d."""
    if not moment:
        return ""
    passed = dt.datetime.now().astimezone() - dt.datetime.fromisoformat(moment)
    minutes = int(passed.total_seconds() // 60)
    if minutes < 1:
        return "now"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // (24 * 60)} d"
