"""`orpo-mlx data`: the commands that look at preference data."""

import click

from orpo_mlx.cli.groups import LazyGroup

# name -> what `orpo-mlx data --help` says of it; the command lives in cli/data_<name>.py
COMMANDS = {
    "preview": "Show pairs exactly as the model sees them.",
    "check": "Say what is wrong with pairs, and what to do about it.",
    "stats": "Count pairs, turns and lengths.",
    "split": "Divide pairs into train, valid and test, whole prompts at a time.",
    "convert": "Write pairs of any shape as canonical rows.",
}


@click.group("data", cls=LazyGroup, texts=COMMANDS, prefix="data_", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Look at preference data, check them, split or convert them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
