"""What the columns of one row hold, what is wrong with it, and the pair that is made of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orpo_mlx.data.pairs.columns import number
from orpo_mlx.data.pairs.message_parts.tool_calls import (
    TOOL_KEYS,
    are_functions,
    nested_tools,
    tools_of,
)
from orpo_mlx.data.pairs.messages import (
    FaultyRowError,
    Message,
    PreferencePair,
    as_messages,
    divergence_fault,
    messages_of,
    shared_start,
    with_system,
)
from orpo_mlx.data.pairs.row_format import RowFormat, Values
from orpo_mlx.data.pairs.turns import has_steered_turns, has_turns, turns_of
from orpo_mlx.data.reading.report import ReadReport
from orpo_mlx.data.reading.sources import Row

MEDIA = frozenset(
    ("image", "images", "audio", "audios", "video", "videos", "image_path", "audio_path")
)
# Why a row or an answer makes no pair.
SAME = "two answers that are the same text"
TIED = "answers that are equally good (a tie)"
MARGIN = "answers less than --min-margin apart"
STATUS_TIE = 'pair whose "status" is tie'
PROMPT_NOT_REPEATED = "pair whose answers do not repeat the prompt, as the others do"
# A longer text is content, not a label of the pair.
LABEL_CHARACTERS = 200


# The largest float32: what is stored and multiplied.
LARGEST_WEIGHT = 3.4028234663852886e38


def weight_of(values: Values, row_format: RowFormat, faults: list[str]) -> float:
    """How often the loss of a row counts: 1 where its column is absent, null or blank."""
    column = row_format.columns.get("weight", "")
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return 1.0
    weight = number(value)
    if weight is None or not 0 <= weight <= LARGEST_WEIGHT:
        faults.append(
            f'"{column}" must be a number, 0 or more and finite (found {value!r}; rename the '
            "column if it is not how often the row's loss counts)"
        )
        return 1.0
    return weight


def value_of(values: Values, columns: Mapping[str, str], role: str) -> Any:
    """What a row holds in the column of a role; None where no column has it."""
    return values.get(columns[role]) if role in columns else None


def prompt_of(
    values: Mapping[str, Any], row_format: RowFormat, faults: list[str]
) -> str | list[Message]:
    """The prompt of a row with its input, history and system message."""
    columns = row_format.columns
    value, system = values.get(columns["prompt"]), value_of(values, columns, "system")
    if value is None:
        return ""
    more, history = (value_of(values, columns, role) for role in ("input", "history"))
    if isinstance(value, str) and isinstance(more, str) and more.strip():
        value = f"{value}\n{more}" if value.strip() else more
    if (
        isinstance(value, str)
        and row_format.has_turns
        and (has_turns(value) or has_steered_turns(value))
    ):
        value = turns_of(value)
    if isinstance(value, str) and not system and not history:
        if not value or value.isspace():
            faults.append(f'"{columns["prompt"]}" is empty')
        return value
    messages = messages_of(columns["prompt"], value, "user", faults)
    messages = [*_past(history, columns.get("history", ""), faults), *messages]
    return messages if faults else [*system_of(values, row_format, messages), *messages]


def _past(history: Any, column: str, faults: list[str]) -> list[Message]:
    """The turns of alpaca's history: [[question, answer], ...]."""
    if not history:
        return []
    if not isinstance(history, list) or not all(_is_exchange(turn) for turn in history):
        faults.append(f'"{column}" must be a list of [question, answer], both text')
        return []
    return [
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def _is_exchange(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)


def system_of(
    values: Mapping[str, Any], row_format: RowFormat, messages: list[Message]
) -> list[Message]:
    """The system message of a row's own column, if there is one and the messages lack it."""
    column = row_format.columns.get("system", "")
    text = value_of(values, row_format.columns, "system")
    faults: list[str] = []
    whole = with_system(column, text, messages, faults)
    if faults:
        raise FaultyRowError(faults)
    return whole[: len(whole) - len(messages)]


def answer_of(name: str, value: Any, faults: list[str]) -> list[Message]:
    """The messages of an answer, which the assistant begins."""
    own_faults: list[str] = []
    messages = messages_of(name, value, "assistant", own_faults)
    if not own_faults and messages[0]["role"] != "assistant":
        own_faults.append(
            f'"{name}" must begin with the assistant\'s message, found role '
            f'"{messages[0]["role"]}" (the prompt belongs in "prompt")'
        )
    faults += own_faults
    return messages


def conversation_of(name: str, value: Any, faults: list[str]) -> list[Message]:
    """The messages of a complete conversation, as a list or as text with turns."""
    if isinstance(value, str):
        if not has_turns(value):
            why = "has no Human/Assistant turns" if value.strip() else "is empty"
            faults.append(f'"{name}" {why}')
            return []
        value = turns_of(value)
    return messages_of(name, value, "assistant", faults)


def tools_in(
    values: Mapping[str, Any],
    row_format: RowFormat,
    faults: list[str],
    answers: Mapping[str, Any] | None = None,
) -> list[Any] | None:
    """The tools of a row, if it names any: in a column, or next to messages that are nested.

    `answers` are those that are not columns, by name.
    """
    columns = row_format.tool_columns
    given = {name: values[name] for name in columns if values.get(name)}
    if columns == TOOL_KEYS and not are_functions(given.get(TOOL_KEYS[1])):
        given.pop(TOOL_KEYS[1], None)
    nested = {name: values.get(name) for name in row_format.columns.values()} | dict(answers or {})
    for name, value in nested.items():
        if isinstance(value, dict):
            given |= nested_tools(name, value)
    read = {name: tools for name, v in given.items() if (tools := tools_of(v, faults, name))}
    first = next(iter(read), "")
    if other := next((name for name in read if read[name] != read[first]), ""):
        faults.append(f'"{first}" and "{other}" are different tools')
    return read.get(first)


def labels_of(values: Mapping[str, Any], row_format: RowFormat) -> dict[str, str]:
    """The short texts of a row that are not part of the pair."""
    used = row_format.used
    return {
        k: v
        for k, v in values.items()
        if k not in used and type(v) is str and len(v) <= LABEL_CHARACTERS
    }


def missing(values: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """A sentence on columns that a row lacks, and one on those that are null."""
    lacking = [name for name in wanted if values.get(name) is None]
    null = [name for name in lacking if name in values]
    gone = [name for name in lacking if name not in values]
    present = ", ".join(values) or "none"
    sentences = [f"column {_named(gone)} missing (found: {present})"] if gone else []
    return sentences + ([f"column {_named(null)} null"] if null else [])


def _named(columns: Sequence[str]) -> str:
    names = " and ".join(f'"{name}"' for name in columns)
    return f"{names} {'are' if columns[1:] else 'is'}"


def media(values: Mapping[str, Any]) -> list[str]:
    """A sentence on each column of images or sound that a row fills."""
    names = [name for name in values if name in MEDIA and values[name]]
    return [f'"{name}" holds images or sound, which are not read' for name in names]


def no_number(column: str) -> str:
    """The reason why an answer without a score is left out."""
    return f'answer without a number in "{column}"'


def join_pair(
    location: str,
    prompt: str | list[Message] | None,
    chosen: list[Message],
    rejected: list[Message],
    names: tuple[str, str],
    tools: list[Any] | None,
    labels: dict[str, str],
) -> PreferencePair:
    """The pair of two lists of messages; what both begin with belongs to the prompt."""
    shared = shared_start(chosen, rejected)
    if fault := divergence_fault(names, chosen[shared:], rejected[shared:]):
        raise FaultyRowError([fault])
    if prompt is None:
        prompt = chosen[:shared]
    elif shared:
        prompt = [*as_messages(prompt), *chosen[:shared]]
    if not prompt:
        raise FaultyRowError([f'"{names[0]}" and "{names[1]}" begin with no prompt in common'])
    extra = len(chosen) + len(rejected) - 2 * (shared + 1)
    return PreferencePair(prompt, chosen[shared], rejected[shared], location, tools, extra, labels)


def pair_of_texts(
    row: Row, row_format: RowFormat, prompt: str, chosen: str, rejected: str
) -> PreferencePair:
    """The pair of three texts, used as they are."""
    good, bad = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return PreferencePair(
        prompt, good, bad, row.location, None, 0, labels_of(row.values, row_format)
    )


def pair_of_two(
    row: Row,
    row_format: RowFormat,
    names: tuple[str, str],
    report: ReadReport,
    chosen: Any,
    rejected: Any,
) -> list[PreferencePair]:
    """The pair of two answers of a row; none, counted, if they are the same."""
    faults: list[str] = []
    alone = "prompt" not in row_format.columns
    read = conversation_of if alone else answer_of
    first, second = (
        read(name, value, faults) for name, value in zip(names, (chosen, rejected), strict=True)
    )
    prompt = None if alone else prompt_of(row.values, row_format, faults)
    tools = tools_in(row.values, row_format, faults, {names[0]: chosen, names[1]: rejected})
    if faults:
        raise FaultyRowError(faults)
    if first == second:
        report.leave_out(SAME)
        return []
    labels = labels_of(row.values, row_format)
    return [join_pair(row.location, prompt, first, second, names, tools, labels)]
