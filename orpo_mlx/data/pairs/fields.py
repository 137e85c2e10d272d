"""What the columns of one row hold: prompt, answers, tools, labels, and what is wrong with them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orpo_mlx.data.pairs.messages import FaultyRowError, Message, messages_of, tools_of
from orpo_mlx.data.pairs.recognize import MEDIA
from orpo_mlx.data.pairs.row_format import Shape
from orpo_mlx.data.pairs.turns import has_steered_turns, has_turns, turns_of

# A longer text is something that was said, not what a pair is called.
LABEL_CHARACTERS = 200


def prompt_of(values: Mapping[str, Any], shape: Shape, faults: list[str]) -> str | list[Message]:
    """The prompt of a row with its input, history and system message."""
    columns = shape.columns
    value, system = values.get(columns["prompt"]), values.get(columns.get("system", ""))
    if value is None:
        return ""
    more, history = (values.get(columns.get(role, "")) for role in ("input", "history"))
    if isinstance(value, str) and isinstance(more, str) and more.strip():
        value = f"{value}\n{more}" if value.strip() else more
    if isinstance(value, str) and shape.turns and (has_turns(value) or has_steered_turns(value)):
        value = turns_of(value)
    if isinstance(value, str) and not system and not history:
        if not value or value.isspace():
            faults.append(f'"{columns["prompt"]}" is empty')
        return value
    messages = messages_of(columns["prompt"], value, "user", faults)
    messages = [*_past(history, columns.get("history", ""), faults), *messages]
    return messages if faults else [*system_of(values, shape, messages), *messages]


def _past(history: Any, column: str, faults: list[str]) -> list[Message]:
    """The turns of alpaca's history: [[question, answer], ...]."""
    if not history:
        return []
    if not isinstance(history, list) or not all(_is_exchange(turn) for turn in history):
        faults.append(f'"{column}" must be a list of [question, answer], both text')
        return []
    return [
        {"role": role, "content": said}
        for turn in history
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]


def _is_exchange(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)


def system_of(values: Mapping[str, Any], shape: Shape, messages: list[Message]) -> list[Message]:
    """The system message of a row's own column, if there is one and the messages lack it."""
    column = shape.columns.get("system", "")
    said = values.get(column)
    if said is None or said == "":
        return []
    if not isinstance(said, str):
        raise FaultyRowError([f'"{column}" must be text, found {type(said).__name__}'])
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != said.strip():
            raise FaultyRowError([f'"{column}" and the conversation have a system message each'])
        return []
    return [{"role": "system", "content": said}]


def answer_of(name: str, value: Any, faults: list[str]) -> list[Message]:
    """The messages of an answer, which the assistant begins."""
    found: list[str] = []
    messages = messages_of(name, value, "assistant", found)
    if not found and messages[0]["role"] != "assistant":
        found.append(
            f'"{name}" must begin with the assistant\'s message, found role '
            f'"{messages[0]["role"]}" (the prompt belongs into "prompt")'
        )
    faults += found
    return messages


def conversation_of(name: str, value: Any, faults: list[str]) -> list[Message]:
    """The messages of a whole conversation, as a list or as text with turns."""
    if isinstance(value, str):
        if not has_turns(value):
            why = "has no Human/Assistant turns" if value.strip() else "is empty"
            faults.append(f'"{name}" {why}')
            return []
        value = turns_of(value)
    return messages_of(name, value, "assistant", faults)


def tools_in(values: Mapping[str, Any], shape: Shape, faults: list[str]) -> list[Any] | None:
    """The tools of a row, if it names any."""
    return tools_of(values.get(shape.columns.get("tools", "tools")), faults)


def labels_of(values: Mapping[str, Any], shape: Shape) -> dict[str, str]:
    """The short texts of a row that are no part of the pair."""
    taken = shape.taken
    return {
        k: v
        for k, v in values.items()
        if k not in taken and type(v) is str and len(v) <= LABEL_CHARACTERS
    }


def missing(values: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """A sentence on columns that a row lacks, and one on those that are null."""
    lacking = [name for name in wanted if values.get(name) is None]
    null = [name for name in lacking if name in values]
    gone = [name for name in lacking if name not in values]
    found = ", ".join(values) or "none"
    sentences = [f"column {_named(gone)} missing (found: {found})"] if gone else []
    return sentences + ([f"column {_named(null)} null"] if null else [])


def _named(columns: Sequence[str]) -> str:
    names = " and ".join(f'"{name}"' for name in columns)
    return f"{names} {'are' if columns[1:] else 'is'}"


def media(values: Mapping[str, Any]) -> list[str]:
    """A sentence on each column of images or sound that a row fills."""
    names = [name for name in values if name in MEDIA and values[name]]
    return [f'"{name}" holds images or sound, which are not read' for name in names]


def unpacked(values: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A row whose list of two answers stands in columns of their own."""
    both = values.get(column)
    if not isinstance(both, list) or len(both) != 2:
        raise FaultyRowError([f'"{column}" must be a list of the better and the worse answer'])
    return {**values, "chosen": both[0], "rejected": both[1]}
