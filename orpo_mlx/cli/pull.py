"""`orpo-mlx pull`: an adapter from the Hub into a folder."""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.interop import PullConfig


@click.command("pull", cls=ConfigCommand)
@config_options(PullConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Fetch an adapter from the Hub, and say which base it needs.

    \b
    Example:
      orpo-mlx pull USER/NAME --output adapters/theirs
    """
    config = settings_from(PullConfig, flags)
    from orpo_mlx.cli.progress import Display

    display = Display(quiet=quiet)
    bars = display.live
    display.live = False  # the library draws its own bars
    with redirect_stdout(sys.stderr):
        from orpo_mlx.interop.hub.pull import pull

        pulled = pull(config, display, bars=bars)
    if as_json:
        click.echo(json.dumps({**pulled._asdict(), "output": str(pulled.output)}))
    else:
        click.echo(pulled.output)
