"""`orpo-mlx data stats`: how many pairs there are, how many turns, how long."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.data import DataStatsConfig

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orpo_mlx.review.pairs.stats import DataStats, Lists

BAR_WIDTH = 40


@config_command("stats", DataStatsConfig)
def command(config: DataStatsConfig, output: Output) -> None:
    """Count pairs, turns and lengths.

    All splits of a folder or data set are counted. With --model, lengths are in tokens too, and
    the pairs longer than --max-seq-length are counted.

    \b
    Example:
      orpo-mlx data stats pairs.jsonl --model ./base --max-seq-length 1024
    """
    with output.progress(mlx=False) as report:
        from orpo_mlx.review.pairs.stats import data_stats

        result = data_stats(config, report)
    output.result(result.as_dict(), stats_blocks(result))


def stats_blocks(result: "DataStats") -> Iterator["RenderableType"]:
    """Tables and histograms, split by split."""
    for name, stats in result.splits.items():
        facts = stats.as_dict(result.max_seq_length)
        yield f"{name}: {stats.pairs:,} pairs, {facts['prompts']:,} different prompts"
        if not stats.pairs:
            yield ""
            continue
        turns = (f"{count:,} x {n}" for n, count in facts["turns"].items())
        yield f"turns of the user: {', '.join(turns)}"
        for feature, count in facts["features"].items():
            yield f"{feature}: {count:,} pairs"
        yield _table("characters", stats.characters)
        if stats.tokens.prompt:
            yield _table("tokens", stats.tokens)
            yield (
                f"over --max-seq-length {result.max_seq_length:,}: "
                f"{facts['over_max_seq_length']:,} pairs"
            )
        shown = stats.tokens if stats.tokens.prompt else stats.characters
        unit = "tokens" if stats.tokens.prompt else "characters"
        yield f"prompt + longer response, in {unit}:"
        yield from _bars(shown)
        yield ""
    for why, count in result.left_out.most_common():
        yield f"left out: {count:,} x {why}"


def _table(unit: str, lists: "Lists") -> "Table":
    from rich.table import Table

    table = Table("", "mean", "median", "p95", "max", title=unit, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, lengths in lists.summaries().items():
        label = "prompt + longer response" if name == "together" else name
        table.add_row(label, *(f"{value:,.0f}" for value in lengths))
    return table


def _bars(lists: "Lists") -> Iterator[str]:
    from orpo_mlx.review.pairs.stats import histogram

    bins = histogram(lists.totals())
    widest, most = max(len(f"{b.end:,}") for b in bins), max(b.pairs for b in bins)
    for start, end, count in bins:
        bar = "█" * max(round(BAR_WIDTH * count / most), 1 if count else 0)
        yield f"{start:>{widest},} to {end:>{widest},} {bar} {count:,}"
