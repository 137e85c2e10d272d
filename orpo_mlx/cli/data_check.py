"""`orpo-mlx data check`: what is wrong with pairs, with examples and what to do."""

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.data import DataCheckConfig

if TYPE_CHECKING:
    from orpo_mlx.data.quality.check import Report

STRICT_STATUS = 2


@click.command("check", cls=ConfigCommand)
@config_options(DataCheckConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Say what is wrong with preference pairs, and what to do about it.

    Severe: rows that are broken, contradict each other, or stand in two splits. Warning: a shallow
    cue tells chosen from rejected. Note: worth a look.

    \b
    Example:
      orpo-mlx data check pairs.jsonl --html check.html
    """
    config = settings_from(DataCheckConfig, flags)
    _check_page_can_be_written(config)
    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        if config.model is not None:
            from orpo_mlx import backend

            backend.prepare()
        from orpo_mlx.review.pairs.check import check_data

        report = check_data(config, display)
        if config.html:
            from orpo_mlx.review.pairs.check_page import save_page

            save_page(report, config.data, config.html)
            display.say(f"Page written: {config.html}")
    _print(report, as_json)
    if config.strict and report.severe:
        click.get_current_context().exit(STRICT_STATUS)


def _check_page_can_be_written(config: DataCheckConfig) -> None:
    """Before minutes of work."""
    from orpo_mlx.files import check_writable
    from orpo_mlx.review.pairs.read_sources import refuse_existing

    if config.html is None:
        return
    refuse_existing([config.html], "--html", config.overwrite, config.data)
    check_writable(config.html.parent)


def _print(report: "Report", as_json: bool) -> None:
    from orpo_mlx.review.pairs.check import report_json

    if as_json:
        click.echo(json.dumps(report_json(report)))
        return
    from rich.console import Console

    from orpo_mlx.cli.data_check_report import render_report

    console = Console(highlight=False)
    for part in render_report(report):
        console.print(part)
