"""`orpo-mlx runs`: the commands that look at runs; without one of them, the list."""

import click

from orpo_mlx.cli.groups import LazyGroup

# name -> what `orpo-mlx runs --help` shows; the command lives in cli/runs_<name>.py
COMMANDS = {
    "list": "List runs: base, data, step, loss, accuracy, state, size. What `runs` alone does.",
    "show": "Show a run: its settings, state, metrics, checkpoints, answers.",
    "compare": "Show in what runs differ, and their curves in one image.",
    "watch": "Follow a run that is going on, from a second terminal.",
    "clean": "Remove checkpoints and caches that nothing needs any more.",
}


class _RunsGroup(LazyGroup):
    """A group whose first word may be a folder: it is then the list's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        helping = set(args) & set(ctx.help_option_names)
        if not args or (args[0] not in self.texts and not helping):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group("runs", cls=_RunsGroup, texts=COMMANDS, prefix="runs_")
def command() -> None:
    """List, show, compare, watch or clean runs.

    `orpo-mlx runs FOLDER...` is `orpo-mlx runs list FOLDER...`, of adapters/ by default.
    """
