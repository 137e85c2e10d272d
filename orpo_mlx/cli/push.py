"""`orpo-mlx push`: an adapter, a model or pairs to the Hub, in one commit with a card."""

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.interop import PushConfig
from orpo_mlx.files import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.interop.hub.push import Pushed


@click.command("push", cls=ConfigCommand)
@config_options(PushConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Push an adapter, a model or pairs to the Hub.

    \b
    Example:
      orpo-mlx push adapters/mine --repo USER/NAME --layout both --dry-run
    """
    config = settings_from(PushConfig, flags)
    from orpo_mlx import backend

    backend.prepare()
    from rich.console import Console

    from orpo_mlx.cli.progress import Display

    display = Display(quiet=quiet)
    bars = display.live
    display.live = False  # the library draws its own bars
    with redirect_stdout(sys.stderr):
        from orpo_mlx.interop.hub.push import push

        pushed = push(config, display, bars=bars)
    if as_json:
        click.echo(json.dumps(pushed._asdict()))
        return
    if config.dry_run:
        seen_by = "private" if pushed.private else "public"
        where = f"{pushed.repo} ({seen_by}), branch {pushed.revision}"
        click.echo(f"Would be pushed to {where}:")
        Console().print(files_table(pushed))
        click.echo(f"\n{pushed.card}", nl=False)
        return
    click.echo(pushed.url)


def files_table(pushed: "Pushed") -> "Table":
    """The files of a push, each with its size."""
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("file", footer=f"{len(pushed.files)} files", overflow="fold")
    table.add_column("size", footer=size_text(pushed.size_bytes), justify="right")
    for path, size in pushed.files:
        table.add_row(path, size_text(size))
    return table
