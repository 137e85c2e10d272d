"""`orpo-mlx runs compare`: in what runs differ."""

import io
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.runs_show import check_new_file, save_image, value_text
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.runs import RunsCompareConfig

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.review.runs.compare import RunsComparison


@config_command("compare", RunsCompareConfig)
def command(config: RunsCompareConfig, output: Output) -> None:
    """Show in what runs differ, and their curves in one image.

    \b
    Example:
      orpo-mlx runs compare adapters/one adapters/two --png compare.png
    """
    from orpo_mlx.review.runs.compare import compare_runs, comparison_curves

    check_new_file(config.png, overwrite=config.overwrite)
    comparison = compare_runs(config.runs)
    if config.png:
        save_image(config.png, comparison_curves(config.runs))
    written = [f"{config.png}: the curves"] if config.png else []
    blocks = [_uncut(part) for part in comparison_blocks(comparison)]
    output.result(comparison._asdict() | {"png": config.png}, [*blocks, *written])


def comparison_blocks(comparison: "RunsComparison") -> Iterator["str | Table"]:
    """The settings that differ, and the last metrics."""
    from orpo_mlx.review.runs.compare import names_of_runs

    names = names_of_runs(comparison.runs)
    if comparison.settings:
        rows = {n: [value_text(v) for v in values] for n, values in comparison.settings.items()}
        yield _table("setting", names, rows)
    else:
        yield "No setting differs."
    numbers = {"step": [str(step) for step in comparison.steps]}
    for title, metrics in (("held-out", comparison.held_out), ("training", comparison.training)):
        for name, values in metrics.items():
            if any(value is not None for value in values):
                cells = ["" if value is None else f"{value:.4f}" for value in values]
                numbers[f"{title} {name}"] = cells
    yield _table("last metrics", names, numbers)


def _table(title: str, names: Sequence[str], rows: dict[str, list[Any]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column(title, no_wrap=True)
    for name in names:
        table.add_column(printable(name), overflow="fold")
    for row, values in rows.items():
        table.add_row(row, *map(printable, values))
    return table


def _uncut(part: "str | Table") -> "str | Table":
    """A table as it is for a terminal; for a file or another program nothing in it is cut."""
    if isinstance(part, str) or sys.stdout.isatty():
        return part
    from rich.console import Console

    console = Console(file=io.StringIO(), width=1000, highlight=False)
    with console.capture() as captured:
        console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
