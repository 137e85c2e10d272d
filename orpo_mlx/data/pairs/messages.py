"""Messages of a conversation, checked and cleaned, and the pair that is made of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.message_parts.content import (
    REASONING_KEYS,
    holds,
    is_blank,
    part_faults,
    text_in,
    thoughts_in,
)
from orpo_mlx.data.pairs.message_parts.tool_calls import (
    names_function,
    parse_call,
    parse_calls,
    with_called_function,
)

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
    pair already carries its template's markers: its texts are what the model reads. Its loss counts
    `weight` times. `is_sft`: a row of --sft-data, whose one answer is both `chosen` and `rejected`.
    """

    prompt: str | list[Message]
    chosen: Message
    rejected: Message
    location: str
    tools: list[Any] | None = None
    extra_messages: int = 0
    labels: dict[str, str] = {}  # noqa: RUF012  (immutable by use)
    raw: bool = False
    weight: float = 1.0
    is_sft: bool = False

    @property
    def responses(self) -> tuple[Message, ...]:
        """The answers that are trained on: chosen and rejected, or the one of an SFT row."""
        return (self.chosen,) if self.is_sft else (self.chosen, self.rejected)

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
    weight: float = 1.0


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
        if is_blank(value) if role == "assistant" else not value or value.isspace():
            faults.append(f'"{column}" is empty')
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            messages = messages_of(f"{column}.messages", value["messages"], role, faults)
            return with_system(f"{column}.system", value.get("system"), messages, faults)
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


def with_system(name: str, text: Any, messages: list[Message], faults: list[str]) -> list[Message]:
    """Messages after a system text that is given apart from them, if there is one."""
    if text is None or text == "":
        return messages
    if not isinstance(text, str):
        faults.append(f'"{name}" must be text, found {type(text).__name__}')
    elif messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            faults.append(f'"{name}" and the conversation have a system message each')
    else:
        return [{"role": "system", "content": text}, *messages]
    return messages


def plain(message: Any) -> Any:
    """A message of {"from", "value"}, or with a `function_call`, as templates read it."""
    if not isinstance(message, dict):
        return message
    role, speaker = message.get("role"), message.get("from")
    if role is not None:
        if message.get("value") is not None and message.get("content") is None:
            message = {**message, "content": message["value"], "value": None}
        return with_called_function(message)
    if not isinstance(speaker, str):
        return message
    texts = [message[k] for k in ("value", "content") if message.get(k) is not None]
    content = texts[0] if texts else None
    others = {k: v for k, v in message.items() if k not in ("from", "value", "role", "content")}
    if texts[1:] and texts[0] != texts[1]:
        others["value"] = texts[1]  # a fault
    if speaker == "function_call" and (calls := parse_calls(content)):
        return {**others, "role": "assistant", "content": "", "tool_calls": calls}
    message = {"role": SPEAKERS.get(speaker, speaker), "content": content, **others}
    return with_called_function(message)


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
    if message.get("value") is not None:
        faults.append(f'"{location}" has two texts, in "value" and in "content"')
    if message.get("function_call") is not None:
        faults.append(
            f'"{location}" has a "function_call" that is not {{"name", "arguments"}}, or not that '
            'of its "tool_calls"'
        )
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(map(names_function, calls)):
        faults.append(f'"{location}" has tool calls that are not {{"function": {{"name": ...}}}}')
    content = message.get("content")
    wrong_parts = part_faults(location, content) if isinstance(content, list) else []
    faults += wrong_parts or _reasoning_faults(location, message)
    if wrong_parts:
        pass
    elif not isinstance(content, str | list) and not (content is None and calls):
        faults.append(f'"{location}" has no text in "content"')
    elif message.get("role") == "assistant" and is_blank(text_in(content)) and not calls:
        faults.append(f'"{location}" is an empty answer')
    return faults


def _reasoning_faults(location: str, message: Message) -> list[str]:
    """What is wrong with the reasoning of a message."""
    if message.keys().isdisjoint(REASONING_KEYS):
        return []
    given = {key: message[key] for key in REASONING_KEYS if holds(message.get(key))}
    faults = [
        f'"{location}.{key}" must be text, found {type(value).__name__}'
        for key, value in given.items()
        if not isinstance(value, str)
    ]
    thoughts = thoughts_in(message.get("content"))
    if thoughts and any(value != thoughts for value in given.values()):
        faults.append(f'"{location}" has reasoning in "{next(iter(given))}" and other in its parts')
    return faults


def _clean(message: Message) -> Message:
    """Without empty keys, text parts joined, tool arguments parsed."""
    message = {
        k: v for k, v in message.items() if v is not None and not (k == "tool_calls" and not v)
    }
    message.setdefault("content", "")
    if isinstance(message["content"], list):
        thoughts = thoughts_in(message["content"])
        message["content"] = text_in(message["content"])
        if thoughts and not any(map(message.get, REASONING_KEYS)):
            message["reasoning_content"] = thoughts
    if "tool_calls" in message:
        message["tool_calls"] = [parse_call(call) for call in message["tool_calls"]]
    return message
