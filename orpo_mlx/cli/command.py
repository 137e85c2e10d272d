"""What every command does: settings from flags, events on stderr, a result as text or JSON."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from orpo_mlx.cli.flags import ConfigCommand, config_options, settings_from
from orpo_mlx.cli.output import output_options
from orpo_mlx.cli.streams import printable
from orpo_mlx.config.groups import Options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orpo_mlx.cli.progress import Display

C = TypeVar("C", bound=Options)


class Output(NamedTuple):
    """The result goes to stdout, as text or as one JSON object; all else to stderr."""

    as_json: bool
    quiet: bool

    @contextmanager
    def progress(self, *, mlx: bool = True, bars: bool = True) -> Iterator["Display"]:
        """Show the events of the work in this block; with `mlx`, what it needs is prepared.

        `bars=False` where a library draws its own.
        """
        if mlx:
            from orpo_mlx import backend

            backend.prepare()
        from orpo_mlx.cli.progress import Display

        with redirect_stdout(sys.stderr), Display(quiet=self.quiet, bars=bars) as display:
            yield display

    def result(
        self,
        facts: Mapping[str, Any],
        text: Iterable["str | RenderableType"],
        *,
        soft_wrap: bool = False,
    ) -> None:
        """Print the facts as JSON, or the text: lines as they are, tables to the terminal's width.

        Paths among the facts become text, numbers that are not finite null: JSON has none.
        """
        if self.as_json:
            click.echo(json.dumps(finite(facts), default=os.fspath, allow_nan=False))
            return
        for part in text:
            if isinstance(part, str):
                click.echo(printable(part))
            else:
                _print_rich(part, soft_wrap)


def finite(value: Any) -> Any:
    """The value, None for a NaN or infinite number; of a list or dict each of its values."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_rich(part: "RenderableType", soft_wrap: bool) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=soft_wrap).print(part)


def config_command(
    name: str, kind: type[C], read: Callable[[dict[str, Any]], C] | None = None
) -> Callable[[Callable[[C, Output], int | None]], click.Command]:
    """Make a click command of a function of settings; `read` makes these in its own way."""
    settings = read or (lambda flags: settings_from(kind, flags))

    def decorate(function: Callable[[C, Output], int | None]) -> click.Command:
        @click.command(name, cls=ConfigCommand)
        @config_options(kind)
        @output_options
        @wraps(function)
        def command(as_json: bool, quiet: bool, **flags: Any) -> int | None:
            return function(settings(flags), Output(as_json, quiet))

        return command

    return decorate
