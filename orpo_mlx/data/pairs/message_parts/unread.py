"""What a row holds around its messages and in their parts that has no meaning here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orpo_mlx.data.pairs.message_parts.content import holds, unread_keys
from orpo_mlx.data.pairs.message_parts.tool_calls import TOOL_KEYS
from orpo_mlx.data.pairs.row_format import RowFormat, Values

CONVERSATION_KEYS = ("messages", "system", *TOOL_KEYS)


def are_texts(values: Mapping[str, Any], tool_columns: Sequence[str]) -> bool:
    """Whether columns are texts and lists of messages that hold nothing but texts: a quick look."""
    for name, value in values.items():
        if type(value) is list and name not in tool_columns:
            if not all(type(m) is dict and _are_plain(m.values()) for m in value):
                return False
        elif value is not None and type(value) is not str:
            return False
    return True


def _are_plain(values: Iterable[Any]) -> bool:
    return all(value is None or type(value) is str for value in values)


def unread_in_row(values: Values, row_format: RowFormat) -> Iterator[str]:
    """Keys that say something and are not read, by where they are."""
    columns = row_format.columns
    for role, name in columns.items():
        value = values.get(name)
        if isinstance(value, str):
            continue
        if role == "answers" and "text" in columns and isinstance(value, list):
            value = [answer.get(columns["text"]) for answer in value if isinstance(answer, dict)]
        yield from _unread_in(name, value)


def _unread_in(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _unread_in(name, item)
    elif isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            yield from (
                f"{name}.{key}"
                for key, inner in value.items()
                if key not in CONVERSATION_KEYS and holds(inner)
            )
            yield from _unread_in(f"{name}.messages", value["messages"])
        content = value.get("content") or value.get("value")
        if isinstance(content, list):
            yield from (f"{name}.content.{key}" for key in unread_keys(content))
