"""What a data command wrote, on the terminal or as JSON."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orpo_mlx.review.data_write import Written


def print_written(written: "Written", as_json: bool) -> None:
    """A line a file, and a line for each reason why rows became no pair."""
    if as_json:
        click.echo(json.dumps(written._asdict()))
        return
    for file, count in written.files.items():
        click.echo(f"{file}: {count:,} pair{'s' * (count != 1)}")
    for why, count in written.left_out.items():
        click.echo(f"left out: {count:,} x {why}")
