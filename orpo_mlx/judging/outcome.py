"""What a session came to, as its page, its command and its --json show it. Imports no mlx."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType


class SessionOutcome(NamedTuple):
    """The result of a session: sentences for everybody, tables for the terminal."""

    sentences: list[str]
    facts: dict[str, Any]  # of --json
    tables: "list[RenderableType]" = []  # noqa: RUF012  (immutable by use)
    files: list[Path] = []  # noqa: RUF012
