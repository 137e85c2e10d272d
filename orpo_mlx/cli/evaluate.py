"""`orpo-mlx evaluate`: every metric on held-out pairs, base and adapter side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.train import EvaluateConfig

if TYPE_CHECKING:
    from rich.table import Table


@config_command("evaluate", EvaluateConfig)
def command(config: EvaluateConfig, output: Output) -> None:
    """Measure a base and its adapter on held-out pairs.

    \b
    Example:
      orpo-mlx evaluate --model ./base --adapter adapters/mine --data test.jsonl
    """
    with output.progress() as report:
        from orpo_mlx.training.evaluate import evaluate

        comparison = evaluate(config, report)
    base = comparison.base.means()
    adapter = comparison.adapter.means() if comparison.adapter else None
    pairs = len(comparison.base.pairs)
    table = metrics_table(f"{pairs} held-out pairs", base, adapter)
    output.result({"pairs": pairs, "base": base, "adapter": adapter}, [table])


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
