"""How rows are read, from the options. Imports no mlx, so that data commands start at once."""

from orpo_mlx.config.groups import ReadOptions
from orpo_mlx.data.pairs.load import Reading


def reading_of(options: ReadOptions) -> Reading:
    """How rows are read."""
    return Reading(options.format, options.columns, options.better, options.min_margin)
