"""`orpo-mlx export`: an adapter in the layout of other tools."""

from typing import Any

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import ExportConfig


@config_command("export", ExportConfig)
def command(config: ExportConfig, output: Output) -> None:
    """Write an adapter in PEFT's layout, or as GGUF.

    \b
    Example:
      orpo-mlx export adapters/mine --to peft --output exports/mine
    """
    with output.progress() as report:
        exported: Any
        if config.to == "gguf":
            from orpo_mlx.interop.gguf.adapter import export_gguf

            exported = export_gguf(config, report)
        else:
            from orpo_mlx.interop.peft.exporter import export_peft

            exported = export_peft(config, report)
    output.result(exported._asdict(), [str(exported.output)])
