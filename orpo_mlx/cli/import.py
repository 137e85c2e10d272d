"""`orpo-mlx import`: a PEFT adapter into mlx-lm's layout."""

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import ImportConfig


@config_command("import", ImportConfig)
def command(config: ImportConfig, output: Output) -> None:
    """Import a PEFT adapter, to train it further, evaluate or fuse it.

    \b
    Example:
      orpo-mlx import ./peft --model ./base --output adapters/theirs
    """
    with output.progress() as report:
        from orpo_mlx.interop.peft.importer import import_peft

        imported = import_peft(config, report)
    output.result(imported._asdict(), [str(imported.output)])
