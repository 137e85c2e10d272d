"""`orpo-mlx import`: a PEFT adapter into mlx-lm's layout."""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.interop import ImportConfig


@click.command("import", cls=ConfigCommand)
@config_options(ImportConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Bring in a PEFT adapter, to train on, evaluate or fuse.

    \b
    Example:
      orpo-mlx import ./peft --model ./base --output adapters/theirs
    """
    config = settings_from(ImportConfig, flags)
    from orpo_mlx import backend

    backend.prepare()
    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        from orpo_mlx.interop.peft.importer import import_peft

        imported = import_peft(config, display)
    if as_json:
        click.echo(json.dumps({**imported._asdict(), "output": str(imported.output)}))
    else:
        click.echo(imported.output)
