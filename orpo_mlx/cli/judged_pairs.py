"""What became of the votes of a session for pairs, as a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orpo_mlx.judging.to_pairs import COUNTS

if TYPE_CHECKING:
    from rich.table import Table


def pairs_table(counts: Mapping[str, int]) -> "Table":
    """A row for each of COUNTS that occurred, and for votes and pairs in any case."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, text in COUNTS.items():
        if counts[name] or name in ("votes", "pairs"):
            table.add_row(text, f"{counts[name]:,}")
    return table
