"""`orpo-mlx data split`: train, valid and test, no prompt in two of them."""

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.data import DataSplitConfig


@click.command("split", cls=ConfigCommand)
@config_options(DataSplitConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Divide pairs into train, valid and test, whole prompts at a time.

    Which split a pair falls into depends on its prompt and the seed alone, so pairs that are added
    later move no other; with the same seed and fraction, valid is what train would hold out. Rows
    are written as data convert writes them.

    \b
    Example:
      orpo-mlx data split pairs.jsonl --output data --valid-fraction 0.1 --test-fraction 0
    """
    config = settings_from(DataSplitConfig, flags)
    from orpo_mlx.cli.output import print_written
    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        from orpo_mlx.review.pairs.write import split

        written = split(config, display)
    print_written(written, as_json)
