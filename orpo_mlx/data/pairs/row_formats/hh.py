"""Two texts in Human/Assistant turns, as in Anthropic's hh-rlhf."""

from collections.abc import Iterator, Sequence

from orpo_mlx.data.pairs.columns import guess_of, pair_columns, prompt_copied
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.row_formats.implicit import read_conversations
from orpo_mlx.data.pairs.turns import has_turns


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    for columns, answers in pair_columns(values, mapped):
        if all(isinstance(v, str) and has_turns(v) for v in answers):
            yield guess_of("hh", columns, prompt_copied(values, mapped, columns))


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    return "texts in Human/Assistant turns, implicit prompt"


FORMAT = FormatSpec(("hh",), _guess, _describe, read_conversations)
