"""`orpo-mlx data convert`: pairs of any shape as canonical JSON Lines or Parquet."""

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.data import DataConvertConfig


@click.command("convert", cls=ConfigCommand)
@config_options(DataConvertConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Write pairs of any shape as canonical rows.

    A row holds prompt, chosen and rejected as lists of messages, the tools if there are any, and
    the short texts of other columns. It reads back as the same pair.

    \b
    Example:
      orpo-mlx data convert old.csv --columns prompt=question --output pairs.jsonl
    """
    config = settings_from(DataConvertConfig, flags)
    from orpo_mlx.cli.output import print_written
    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        from orpo_mlx.review.pairs.write import convert

        written = convert(config, display)
    print_written(written, as_json)
