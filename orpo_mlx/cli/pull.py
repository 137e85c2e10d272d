"""`orpo-mlx pull`: an adapter from the Hub into a folder."""

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import PullConfig


@config_command("pull", PullConfig)
def command(config: PullConfig, output: Output) -> None:
    """Fetch an adapter from the Hub, and report which base it needs.

    \b
    Example:
      orpo-mlx pull USER/NAME --output adapters/theirs
    """
    with output.progress(mlx=False, bars=False) as report:
        from orpo_mlx.interop.hub.pull import pull

        pulled = pull(config, report, bars=report.on_terminal)
    output.result(pulled._asdict(), [str(pulled.output)])
