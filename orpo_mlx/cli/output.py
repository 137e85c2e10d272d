"""The two options of every command: --json and --quiet. Imports click alone."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """Decorate a click command with --json and --quiet."""
    text = "Print the result as one JSON object; all else goes to standard error."
    as_json = click.option("--json", "as_json", is_flag=True, help=text)
    quiet = click.option("--quiet", is_flag=True, help="Show the result and warnings only.")
    return as_json(quiet(function))


if TYPE_CHECKING:
    from orpo_mlx.review.pairs.write import Written


def print_written(written: "Written", as_json: bool) -> None:
    """A line a file, and a line for each reason why rows became no pair."""
    if as_json:
        click.echo(json.dumps(written._asdict()))
        return
    for file, count in written.files.items():
        click.echo(f"{file}: {count:,} pair{'s' * (count != 1)}")
    for why, count in written.left_out.items():
        click.echo(f"left out: {count:,} x {why}")
