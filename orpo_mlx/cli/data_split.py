"""`orpo-mlx data split`: train, valid and test, no prompt in two of them."""

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.output import written_lines
from orpo_mlx.config.data import DataSplitConfig


@config_command("split", DataSplitConfig)
def command(config: DataSplitConfig, output: Output) -> None:
    """Split pairs into train, valid and test, each prompt in only one of them.

    Which split a pair falls into depends on its prompt and the seed alone, so adding pairs later
    moves no other pair, but where a file would have none. With the same seed and fraction, valid is
    what train would hold out. Rows are written as data convert writes them.

    \b
    Example:
      orpo-mlx data split pairs.jsonl --output data --valid-fraction 0.1 --test-fraction 0
    """
    with output.progress(mlx=False) as report:
        from orpo_mlx.review.pairs.write import split_pairs

        written = split_pairs(config, report)
    output.result(written._asdict(), written_lines(written))
