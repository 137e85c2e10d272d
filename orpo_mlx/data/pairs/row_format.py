"""What a row format is, and what it is for the rows of one source. Knows none of them by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from orpo_mlx.data.pairs.format_names import RowFormatName
from orpo_mlx.data.pairs.message_parts.nulls import SourceNulls
from orpo_mlx.data.pairs.message_parts.tool_calls import TOOL_KEYS
from orpo_mlx.data.pairs.messages import SingleAnswer
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

FormatName = RowFormatName | Literal["sft"]  # that of SFT rows cannot be chosen with --format
Values = Mapping[str, Any]  # of one row, by column
Mapped = Mapping[str, str]  # the columns that the user named, by role

# Options on scores; a format lists those that apply to its rows.
MIN_MARGIN, HIGHER, LOWER = "--min-margin", "--higher-is-better", "--lower-is-better"


@dataclass(frozen=True)
class Reading:
    """How the user wants rows to be read; `columns` maps roles to the columns' names here.

    `sft`: of each row a prompt and one answer, as --sft-data takes them.
    """

    format: str = "auto"
    columns: Mapped = field(default_factory=dict)
    higher_is_better: bool | None = None
    min_margin: float | None = None
    sft: bool = False


class Guess(NamedTuple):
    """One reading of a row: a format's name and the row's columns, as (role, column)."""

    name: FormatName
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FormatSpec:
    """How the rows of a format are recognized, described and read.

    Of several names, any forced by `--format` allows the others. `read` makes pairs of a row, or,
    where there is `pair_up`, the answer that it holds: that one makes (better, worse) of them.
    """

    names: tuple[FormatName, ...]
    guess: Callable[[Values, Mapped], Iterator[Guess]]  # the surer first
    describe: Callable[["RowFormat", Sequence[Values]], str]
    read: Callable[[Row, "RowFormat", ReadReport], list[Any]]
    pair_up: (
        Callable[
            [Iterable[SingleAnswer], "RowFormat", ReadReport],
            Iterator[tuple[SingleAnswer, SingleAnswer]],
        ]
        | None
    ) = None
    options: tuple[str, ...] = ()
    is_unsure: bool = False  # another format that fits a row too is as likely
    texts_alone: bool = False  # system messages, tools and history next to the texts are not read

    @property
    def is_scored(self) -> bool:
        """Whether scores say which answer is better."""
        return HIGHER in self.options


class RowFormat(NamedTuple):
    """What the rows of a source are, and all that reading one of them needs.

    `columns` are by role; `used` are those that are not labels; `extras` are those that a row need
    not have.
    """

    spec: FormatSpec
    sentence: str
    guess: Guess
    columns: dict[str, str]
    used: frozenset[str]
    extras: frozenset[str]
    reading: Reading
    higher_is_better: bool = True
    repeats_prompt: bool = False  # answers begin with the prompt's text
    has_turns: bool = False  # the prompt's text is a conversation
    has_ties: bool = False  # a column "status" says which pairs are ties
    nulls: SourceNulls = SourceNulls()

    @property
    def name(self) -> FormatName:
        """What `--format` calls it."""
        return self.guess.name

    @property
    def tool_columns(self) -> tuple[str, ...]:
        """The columns in which a row may name its tools."""
        mapped = self.reading.columns.get("tools")
        return (mapped,) if mapped else TOOL_KEYS

    @property
    def grouped(self) -> bool:
        """Whether a pair is made of several rows."""
        return self.spec.pair_up is not None
