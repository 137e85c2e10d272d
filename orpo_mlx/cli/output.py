"""The two options of every command: --json and --quiet. Imports click alone."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from orpo_mlx.review.pairs.write import Written

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """Decorate a click command with --json and --quiet."""
    text = "Print the result as one JSON object; all else goes to standard error."
    as_json = click.option("--json", "as_json", is_flag=True, help=text)
    quiet = click.option("--quiet", is_flag=True, help="Show the result and warnings only.")
    return as_json(quiet(function))


def written_lines(written: "Written") -> Iterator[str]:
    """A line per file, and a line for each reason why rows gave no pair."""
    for file, count in written.files.items():
        yield f"{file}: {count:,} pair{'s' * (count != 1)}"
    for why, count in written.left_out.items():
        yield f"left out: {count:,} x {why}"
