"""The names of the row formats, in the order in which docs/data.md and `--format` list them."""

from typing import Literal, get_args

RowFormatName = Literal[
    "prompt",
    "implicit",
    "hh",
    "orca",
    "alpaca",
    "sharegpt",
    "ab",
    "ranked",
    "scored",
    "kto",
    "rendered",
]
FORMAT_NAMES: tuple[str, ...] = get_args(RowFormatName)
