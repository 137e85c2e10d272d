"""The two options of every command: --json and --quiet. Imports click alone."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """Decorate a click command with --json and --quiet."""
    text = "Print the result as one JSON object; all else goes to standard error."
    as_json = click.option("--json", "as_json", is_flag=True, help=text)
    quiet = click.option("--quiet", is_flag=True, help="Show the result and warnings only.")
    return as_json(quiet(function))
