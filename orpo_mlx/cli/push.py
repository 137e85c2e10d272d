"""`orpo-mlx push`: an adapter, a model or pairs to the Hub, in one commit with a card."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orpo_mlx.cli.command import Output, config_command
from orpo_mlx.config.interop import PushConfig
from orpo_mlx.files import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from orpo_mlx.interop.hub.push import PushResult


@config_command("push", PushConfig)
def command(config: PushConfig, output: Output) -> None:
    """Push an adapter, a model or pairs to the Hub.

    \b
    Example:
      orpo-mlx push adapters/mine --repo USER/NAME --layout both --dry-run
    """
    with output.progress(bars=False) as report:
        from orpo_mlx.interop.hub.push import push

        pushed = push(config, report, bars=report.on_terminal)
    output.result(pushed._asdict(), _dry_run(pushed) if config.dry_run else [str(pushed.url)])


def _dry_run(pushed: "PushResult") -> Iterator["str | Table"]:
    seen_by = "private" if pushed.private else "public"
    yield f"Would be pushed to {pushed.repo} ({seen_by}), branch {pushed.revision}:"
    yield files_table(pushed)
    yield f"\n{pushed.card}".removesuffix("\n")


def files_table(pushed: "PushResult") -> "Table":
    """The files of a push, each with its size."""
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("file", footer=f"{len(pushed.files)} files", overflow="fold")
    table.add_column("size", footer=size_text(pushed.size_bytes), justify="right")
    for path, size in pushed.files:
        table.add_row(path, size_text(size))
    return table
