"""`orpo-mlx export`: an adapter in the layout of other tools."""

import json
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.interop import ExportConfig


@click.command("export", cls=ConfigCommand)
@config_options(ExportConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Write an adapter in PEFT's layout, or as GGUF.

    \b
    Example:
      orpo-mlx export adapters/mine --to peft --output exports/mine
    """
    config = settings_from(ExportConfig, flags)
    from orpo_mlx import backend

    backend.prepare()
    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        exported: Any
        if config.to == "gguf":
            from orpo_mlx.interop.gguf.adapter import export_gguf

            exported = export_gguf(config, display)
        else:
            from orpo_mlx.interop.peft.exporter import export_peft

            exported = export_peft(config, display)
    if as_json:
        click.echo(json.dumps({**exported._asdict(), "output": str(exported.output)}))
    else:
        click.echo(exported.output)
