"""`orpo-mlx data convert`: pairs of any row format as canonical JSON Lines or Parquet."""

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.cli.output import written_lines
from orpo_mlx.config.data import DataConvertConfig


@config_command("convert", DataConvertConfig)
def command(config: DataConvertConfig, output: Output) -> None:
    """Write pairs of any row format as canonical rows.

    A row holds prompt, chosen and rejected as lists of messages, the tools if there are any, and
    the short texts of other columns. It reads back as the same pair.

    \b
    Example:
      orpo-mlx data convert old.csv --columns prompt=question --output pairs.jsonl
    """
    with output.progress(mlx=False) as report:
        from orpo_mlx.review.pairs.write import convert_pairs

        written = convert_pairs(config, report)
    output.result(written._asdict(), written_lines(written))
