"""Messages of a conversation, checked and cleaned, and the pair that is made of them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "ipython", "function")
# Who speaks where messages are {"from", "value"}.
SPEAKERS = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}


class PreferencePair(NamedTuple):
    """One prompt and two answers to it.

    `prompt` is text as it is in the file, or a list of messages; `chosen` and `rejected` are
    one assistant message each. `extra_messages` counts messages after those answers, cut. A `raw`
    pair already carries its template's markers: its texts are what the model reads.
    """

    prompt: str | list[Message]
    chosen: Message
    rejected: Message
    location: str
    tools: list[Any] | None = None
    extra_messages: int = 0
    labels: dict[str, str] = {}  # noqa: RUF012  (immutable by use)
    raw: bool = False

    @property
    def messages(self) -> list[Message]:
        """The prompt as messages."""
        return as_messages(self.prompt)


class SingleAnswer(NamedTuple):
    """What a row of one answer holds; two of them make a pair."""

    location: str
    prompt: str | list[Message]
    answer: list[Message]
    score: float  # of a label: 1 good, 0 bad
    tools: list[Any] | None
    labels: dict[str, str]


class FaultyRowError(Exception):
    """What is wrong with a row, a sentence each."""

    def __init__(self, faults: Sequence[str]):
        super().__init__(*faults)
        self.faults = list(faults)


def as_messages(prompt: str | list[Message]) -> list[Message]:
    """A prompt as messages: a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def messages_of(column: str, value: Any, role: str, faults: list[str]) -> list[Message]:
    """The messages of a column, cleaned: of a text, a message, a list, or {"messages": [...]}.

    `role` speaks a text. What is wrong goes to `faults`; the list must not be used then.
    """
    if isinstance(value, str):
        if not value or value.isspace():
            faults.append(f'"{column}" is empty')
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return messages_of(f"{column}.messages", value["messages"], role, faults)
        if value.get("role") is None and value.get("from") is None:
            value = {**value, "role": role}
        own_faults = _message_faults(column, plain(value))
        faults += own_faults
        return [] if own_faults else [_clean(plain(value))]
    if not isinstance(value, list):
        kind = type(value).__name__
        faults.append(f'"{column}" must be text or a list of messages, found {kind}')
        return []
    if not value:
        faults.append(f'"{column}" is an empty list of messages')
    known = [plain(message) for message in value]
    own_faults = [f for i, m in enumerate(known) for f in _message_faults(f"{column}[{i}]", m)]
    faults += own_faults
    return [] if own_faults else [_clean(message) for message in known]


def plain(message: Any) -> Any:
    """A message of {"from", "value"} as one of {"role", "content"}."""
    if not isinstance(message, dict) or message.get("role") is not None:
        return message
    speaker, content = message.get("from"), message.get("value")
    if not isinstance(speaker, str):
        return message
    others = {k: v for k, v in message.items() if k not in ("from", "value", "role", "content")}
    if speaker == "function_call" and (calls := _parse_calls(content)):
        return {**others, "role": "assistant", "content": "", "tool_calls": calls}
    return {"role": SPEAKERS.get(speaker, speaker), "content": content, **others}


def shared_start(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with: they belong to the prompt."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))


def divergence_fault(
    columns: tuple[str, str], chosen: Sequence[Message], rejected: Sequence[Message]
) -> str:
    """Why what follows the shared messages is not a pair of answers, or nothing."""
    first, second = columns
    if not chosen and not rejected:
        return f'"{first}" and "{second}" are the same'
    for column, own in zip(columns, (chosen, rejected), strict=True):
        if not own:
            return f'"{column}" ends where the other continues: both need an answer of their own'
        if own[0]["role"] != "assistant":
            role = own[0]["role"]
            return (
                f'"{first}" and "{second}" diverge at a message of role "{role}", not of the '
                "assistant"
            )
    return ""


def tools_of(value: Any, faults: list[str]) -> list[Any] | None:
    """The tools of a row, given as a list, as JSON text, or as a list of JSON texts."""
    if not value:
        return None
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        elif isinstance(value, list):
            value = [_parse_tool(tool) for tool in value]
    except ValueError as error:
        faults.append(f'"tools" is text but not JSON ({error})')
        return None
    if not value:
        return None
    if not isinstance(value, list) or not all(map(_names_function, value)):
        faults.append('"tools" must be a list of {"function": {"name": ...}}')
        return None
    return value


def _parse_tool(tool: Any) -> Any:
    return json.loads(tool) if isinstance(tool, str) else _without_nulls(tool)


def _message_faults(location: str, message: Any) -> list[str]:
    if not isinstance(message, dict):
        return [
            f'"{location}" must be a message {{"role", "content"}}, found {type(message).__name__}'
        ]
    faults = []
    if message.get("role") not in ROLES:
        faults.append(
            f'"{location}" has role {message.get("role")!r} (allowed: {", ".join(ROLES)})'
        )
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(map(_names_function, calls)):
        faults.append(f'"{location}" has tool calls that are not {{"function": {{"name": ...}}}}')
    content = message.get("content")
    if isinstance(content, list) and not all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        faults.append(f'"{location}" holds parts that are not text: images and audio are not read')
    elif not isinstance(content, str | list) and not (content is None and calls):
        faults.append(f'"{location}" has no text in "content"')
    elif message.get("role") == "assistant" and not _text(content).strip() and not calls:
        faults.append(f'"{location}" is an empty answer')
    return faults


def _text(content: Any) -> str:
    """A message's text, its parts joined."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return content or ""


def _names_function(call: Any) -> bool:
    function = call.get("function") or call if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _clean(message: Message) -> Message:
    """Without empty keys, text parts joined, tool arguments parsed."""
    message = {
        k: v for k, v in message.items() if v is not None and not (k == "tool_calls" and not v)
    }
    message.setdefault("content", "")
    if isinstance(message["content"], list):
        message["content"] = _text(message["content"])
    if "tool_calls" in message:
        message["tool_calls"] = [_parse_call(call) for call in message["tool_calls"]]
    return message


def _parse_call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call whose arguments are an object: many templates encode text a second time."""
    call = {k: v for k, v in call.items() if v is not None}
    if "function" in call:
        return {**call, "function": _parse_call(call["function"])}
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):  # a rejected answer may show text that is not JSON
            arguments = json.loads(arguments)
    else:
        arguments = _without_nulls(arguments)
    return {**call, "arguments": arguments}


def _parse_calls(text: Any) -> list[dict[str, Any]]:
    """The calls of a text that is JSON of one or several; none if it is not."""
    try:
        calls = json.loads(text)
    except (TypeError, ValueError):
        return []
    calls = calls if isinstance(calls, list) else [calls]
    if not all(map(_names_function, calls)):
        return []
    return [
        call if "function" in call else {"type": "function", "function": call} for call in calls
    ]


def _without_nulls(value: Any) -> Any:
    """A value without keys that are null: Arrow writes one where another row has the key."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
