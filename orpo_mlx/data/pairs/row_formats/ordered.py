"""Every row format, and every reading of a row by them, the surer first."""

from orpo_mlx.data.pairs import sft
from orpo_mlx.data.pairs.columns import PAIR_COLUMNS
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Reading, Values
from orpo_mlx.data.pairs.row_formats import (
    explicit,
    hh,
    implicit,
    kto,
    ranked,
    rendered,
    scored,
    two_answers,
)

ORDERED: tuple[FormatSpec, ...] = (
    hh.FORMAT,
    rendered.FORMAT,
    implicit.FORMAT,
    explicit.FORMAT,
    kto.FORMAT,
    two_answers.FORMAT,
    ranked.FORMAT,
    scored.FORMAT,
)
_BY_NAME: dict[str, FormatSpec] = {
    name: spec for spec in (*ORDERED, sft.FORMAT) for name in spec.names
}


def spec_of(name: str) -> FormatSpec:
    """The format of a name."""
    return _BY_NAME[name]


def guesses(values: Values, reading: Reading) -> list[Guess]:
    """Every reading of a row, as a pair or as an SFT row, the surer first."""
    if reading.sft:
        return list(sft.FORMAT.guess(values, reading.columns))
    every = (guess for spec in ORDERED for guess in spec.guess(values, reading.columns))
    return sorted(every, key=_doubt)


def _doubt(guess: Guess) -> int:
    """Less for the columns that pairs usually have; the order of formats decides among equals."""
    columns = dict(guess.columns)
    if "both" in columns:
        return 0
    if "chosen" not in columns:
        return 3
    return 2 if columns["chosen"] == PAIR_COLUMNS[1][0] else 1
