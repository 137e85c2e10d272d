"""`orpo-mlx data check`: what is wrong with pairs, with examples and what to do."""

import click

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.data import DataCheckConfig

STRICT_STATUS = 2


@config_command("check", DataCheckConfig)
def command(config: DataCheckConfig, output: Output) -> None:
    """Report what is wrong with preference pairs, and what to do about it.

    Severe: rows that are broken, contradict each other, or are in two splits. Warning: a shallow
    cue separates chosen from rejected. Note: worth a look.

    \b
    Example:
      orpo-mlx data check pairs.jsonl --html check.html
    """
    _check_page_can_be_written(config)
    with output.progress(mlx=config.model is not None) as display:
        from orpo_mlx.review.pairs.check import check_data, report_json

        report = check_data(config, display)
        if config.html:
            from orpo_mlx.files import recover
            from orpo_mlx.review.pairs.check_page import save_check_page

            recover(config.html, display)
            save_check_page(report, config.data, config.html)
            display.log(f"Page written: {config.html}")
    from orpo_mlx.cli.data_check_report import render_report

    output.result(report_json(report), render_report(report))
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
