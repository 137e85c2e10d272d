"""Groups of commands, each loaded only when it is called."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Imports a command's module when that command is asked for, and no other.

    `texts` holds the help line of each command, whose module is cli/<prefix><name>.py (lr_find.py
    of lr-find).
    """

    def __init__(
        self, *arguments: Any, texts: Mapping[str, str], prefix: str = "", **settings: Any
    ):
        super().__init__(*arguments, **settings)
        self.texts, self.prefix = texts, prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.texts)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.texts:
            return None
        file = f"{self.prefix}{cmd_name}".replace("-", "_")
        module = import_module(f"orpo_mlx.cli.{file}")
        command = getattr(module, "command")  # noqa: B009
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from orpo_mlx.cli.settings import nearest

            typed = args[0] if args else ""
            message = f"{error.message.rstrip('.')}.{nearest(typed, list(self.texts))}"
            known = ", ".join(self.texts)
            raise click.UsageError(f"{message} All commands: {known}.", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.texts.items()))
