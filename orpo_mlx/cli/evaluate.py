"""`orpo-mlx evaluate`: every metric on held-out pairs, base and adapter side by side."""

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, output_options, settings_from
from orpo_mlx.config.train import EvaluateConfig

if TYPE_CHECKING:
    from rich.table import Table


@click.command("evaluate", cls=ConfigCommand)
@config_options(EvaluateConfig)
@output_options
def command(as_json: bool, quiet: bool, **flags: Any) -> None:
    """Measure a base and its adapter on held-out pairs.

    \b
    Example:
      orpo-mlx evaluate --model ./base --adapter adapters/mine --data test.jsonl
    """
    config = settings_from(EvaluateConfig, flags)
    from orpo_mlx import backend

    backend.prepare()
    from rich.console import Console

    from orpo_mlx.cli.progress import Display

    with redirect_stdout(sys.stderr), Display(quiet=quiet) as display:
        from orpo_mlx.training.evaluate import evaluate

        comparison = evaluate(config, display)
    base = comparison.base.means()
    adapter = comparison.adapter.means() if comparison.adapter else None
    pairs = len(comparison.base.pairs)
    if as_json:
        click.echo(json.dumps({"pairs": pairs, "base": base, "adapter": adapter}))
    else:
        Console().print(metrics_table(f"{pairs} held-out pairs", base, adapter))


def metrics_table(
    title: str, base: Mapping[str, float], adapter: Mapping[str, float] | None
) -> "Table":
    """Every metric, the base's and the adapter's in two columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("base", justify="right")
    if adapter is not None:
        table.add_column("adapter", justify="right")
    for name, value in base.items():
        form = ".0f" if name == "saturated_pairs" else ".4f"
        values = [value] if adapter is None else [value, adapter[name]]
        table.add_row(name, *(format(v, form) for v in values))
    return table
