"""`orpo-mlx data`: the commands that look at preference data."""

import click

from orpo_mlx.cli.groups import LazyGroup

# name -> what `orpo-mlx data --help` shows; the command lives in cli/data_<name>.py
COMMANDS = {
    "preview": "Show pairs exactly as the model sees them.",
    "check": "Report what is wrong with pairs, and what to do about it.",
    "stats": "Count pairs, turns and lengths.",
    "split": "Split pairs into train, valid and test, each prompt in only one of them.",
    "convert": "Write pairs of any row format as canonical rows.",
}


@click.group("data", cls=LazyGroup, texts=COMMANDS, prefix="data_", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Preview, check, count, split or convert preference data."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
