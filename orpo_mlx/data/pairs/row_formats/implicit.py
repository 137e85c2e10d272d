"""Two conversations that begin alike: what they share is the prompt."""

from collections.abc import Iterator, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import (
    begins_with_prompt,
    guess_of,
    is_conversation,
    nested_messages,
    pair_columns,
    prompt_columns,
    prompt_copied,
)
from orpo_mlx.data.pairs.fields import (
    answer_of,
    conversation_of,
    join_pair,
    labels_of,
    media,
    missing,
    system_of,
    tools_in,
    value_of,
)
from orpo_mlx.data.pairs.messages import FaultyRowError, Message, PreferencePair, messages_of, plain
from orpo_mlx.data.pairs.row_format import FormatSpec, Guess, Mapped, RowFormat, Values
from orpo_mlx.data.pairs.turns import has_turns
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row


def _guess(values: Values, mapped: Mapped) -> Iterator[Guess]:
    for columns, answers in pair_columns(values, mapped):
        if all(map(begins_with_prompt, answers)):
            yield guess_of("implicit", columns, prompt_copied(values, mapped, columns))
        elif whole := _whole_conversation(values, columns):
            copy = prompt_copied(values, mapped, columns)
            yield guess_of("implicit", columns, {"whole": whole}, copy)
        elif all(map(_greets, answers)) and not any(prompt_columns(values, mapped)):
            yield guess_of("implicit", columns)


def _whole_conversation(values: Values, columns: Mapped) -> str:
    """The column of a conversation whose last answer the other column replaces, or nothing."""
    chosen, rejected = columns["chosen"], columns["rejected"]
    for whole, other in ((chosen, rejected), (rejected, chosen)):
        if _ends_with_answer(values[whole]) and _is_answer(values[other]):
            return whole
    return ""


def _ends_with_answer(value: Any) -> bool:
    last = nested_messages(value)[-1] if begins_with_prompt(value) else None
    return isinstance(last, dict) and plain(last).get("role") == "assistant"


def _is_answer(value: Any) -> bool:
    """Whether a value is a text, or messages that the assistant begins."""
    if isinstance(value, str):
        return not has_turns(value)
    messages = nested_messages(value)
    messages = messages if isinstance(messages, list) else [messages]
    first = plain(messages[0]) if messages else None
    return isinstance(first, dict) and first.get("role", "assistant") == "assistant"


def _greets(answer: Any) -> bool:
    """Whether a value is a conversation that the assistant may begin: two messages follow."""
    return is_conversation(answer) and len(answer) > 2


def _describe(row_format: RowFormat, values: Sequence[Values]) -> str:
    columns = row_format.columns
    if "whole" not in columns:
        return "conversational, implicit prompt"
    other = next(columns[r] for r in ("chosen", "rejected") if columns[r] != columns["whole"])
    return (
        f'conversational, implicit prompt; "{other}" replaces the last answer of '
        f'"{columns["whole"]}"'
    )


def _before_answer(name: str, messages: list[Message]) -> list[Message]:
    """What comes before the last message, the assistant's."""
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise FaultyRowError([f'"{name}" does not end with an answer to a prompt'])
    return messages[:-1]


def read_conversations(row: Row, row_format: RowFormat, report: ReadReport) -> list[PreferencePair]:
    """The pair of two complete conversations, as messages or as texts with turns."""
    values, columns = row.values, row_format.columns
    names = columns["chosen"], columns["rejected"]
    faults = [*media(values), *missing(values, names)]
    whole = columns.get("whole", "")
    read = {
        name: (answer_of if whole and name != whole else conversation_of)(
            name, values[name], faults
        )
        for name in names
        if values.get(name) is not None
    }
    if whole and not faults:
        start = _before_answer(whole, read[whole])
        read |= {name: [*start, *answer] for name, answer in read.items() if name != whole}
    chosen, rejected = (read.get(name, []) for name in names)
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
