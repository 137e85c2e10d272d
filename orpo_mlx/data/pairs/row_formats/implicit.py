"""Two conversations that begin alike: what they share is the prompt."""

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import (
    begins_with_prompt,
    copied_prompt,
    guess_of,
    is_conversation,
    pair_columns,
    prompt_columns,
)
from orpo_mlx.data.pairs.fields import (
    conversation_of,
    join_pair,
    labels_of,
    media,
    missing,
    system_of,
    tools_in,
    value_of,
)
from orpo_mlx.data.pairs.messages import FaultyRowError, PreferencePair, messages_of
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    for columns, answers in pair_columns(values, mapped):
        if all(map(begins_with_prompt, answers)):
            yield guess_of("implicit", columns, copied_prompt(prompt_columns(values, mapped)))
        elif all(map(_greets, answers)) and not any(prompt_columns(values, mapped)):
            yield guess_of("implicit", columns)


def _greets(answer: Any) -> bool:
    """Whether a value is a conversation that the assistant may begin: two messages follow."""
    return is_conversation(answer) and len(answer) > 2


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    return "conversational, implicit prompt"


def read_conversations(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    """The pair of two complete conversations, as messages or as texts with turns."""
    values, columns = row.values, row_format.columns
    names = columns["chosen"], columns["rejected"]
    faults = [*media(values), *missing(values, names)]
    chosen, rejected = (
        conversation_of(name, values.get(name), faults) if values.get(name) is not None else []
        for name in names
    )
    prompt = value_of(values, columns, "copy")
    if isinstance(prompt, list) and not faults:
        start = messages_of(columns["copy"], prompt, "user", faults)
        if chosen[: len(start)] != start or rejected[: len(start)] != start:
            faults.append(f'"{names[0]}" and "{names[1]}" do not begin with "{columns["copy"]}"')
    tools = tools_in(values, row_format, faults)
    if faults:
        raise FaultyRowError(faults)
    system = system_of(values, row_format, chosen)
    chosen, rejected = [*system, *chosen], [*system, *rejected]
    labels = labels_of(values, row_format)
    return [join_pair(row.location, None, chosen, rejected, names, tools, labels)]


FORMAT = FormatSpec(("implicit",), _guess, _describe, read_conversations)
