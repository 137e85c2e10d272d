"""What of a message a text holds, in the order in which the message says it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS
from orpo_mlx.data.tokens.reasoning import CONTENT, REASONING, split_content

CALL = "tool call"
# A template may write these before everything, or in the last turn.
_ANYWHERE = ("system", "developer")


def lost_parts(message: Message, text: str) -> list[str]:
    """The parts of a message that do not follow each other in a text, white space aside."""
    if _is_plain(message) and message["content"].strip() in text:
        return []
    return _follow(message, _flat(text), 0)[0]


def lost_in_prompt(messages: Sequence[Message], prompt: str) -> list[tuple[str, str]]:
    """The parts that messages, one after another, lose in a prompt, each with its role."""
    if _follow_plainly(messages, prompt):
        return []
    text, at, lost = _flat(prompt), 0, []
    for message in messages:
        anywhere = message["role"] in _ANYWHERE
        parts, end = _follow(message, text, 0 if anywhere else at)
        at = at if anywhere else end
        lost += [(part, str(message["role"])) for part in parts]
    return lost


def holds_words(text: str, words: Sequence[Any]) -> bool:
    """Whether a text holds all words, in any order."""
    return all(_end_of(word, _flat(text), 0) >= 0 for word in words)


def _is_plain(message: Message) -> bool:
    extras = message.get("tool_calls") or any(map(message.get, REASONING_KEYS))
    return not extras and "think>" not in message["content"]


def _follow_plainly(messages: Sequence[Message], prompt: str) -> bool:
    """Whether texts of messages follow each other as they are, which is quick to see."""
    at = 0
    for message in messages:
        text = message["content"].strip()
        start = prompt.find(text, at) if _is_plain(message) else -1
        if start < 0:
            return False
        at = start + len(text)
    return True


def _follow(message: Message, text: str, at: int) -> tuple[list[str], int]:
    """What is not found of a message from `at` on, and where what is found ends."""
    lost = set()
    for kind, piece in _pieces(message):
        end = _end_of(piece, text, at)
        if end < 0:
            lost.add(kind)
        at = max(at, end)
    for call in message.get("tool_calls") or []:
        end = _end_of_call(call.get("function", call), text, at)
        if end < 0:
            lost.add(CALL)
        at = max(at, end)
    return [kind for kind in (CONTENT, REASONING, CALL) if kind in lost], at


def _pieces(message: Message) -> list[tuple[str, str]]:
    """Reasoning and text of a message in order; what is given twice counts once."""
    given = {str(message[key]).strip() for key in REASONING_KEYS if message.get(key)}
    if message["role"] != "assistant":
        content = [(CONTENT, message["content"])] if message["content"].strip() else []
    else:
        content = split_content(message["content"])
    given -= {text.strip() for kind, text in content if kind == REASONING}
    content = [(kind if kind == REASONING else CONTENT, text) for kind, text in content]
    return [*((REASONING, text) for text in sorted(given)), *content]


def _end_of_call(call: Mapping[str, Any], text: str, at: int) -> int:
    """Where a call ends: its name, then keys and values as given, or by the alphabet; or -1."""
    start = _end_of(call["name"], text, at)
    if start < 0:
        return -1
    arguments = call.get("arguments")
    ends = (_end_of_words(_leaves(value), text, start) for value in (arguments, _sorted(arguments)))
    return next((end for end in ends if end >= 0), -1)


def _end_of_words(words: Iterator[Any], text: str, at: int) -> int:
    for word in words:
        if (at := _end_of(word, text, at)) < 0:
            return -1
    return at


def _leaves(value: Any) -> Iterator[Any]:
    """Keys and values in order."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(inner) for inner in value] if isinstance(value, list) else value


def _end_of(piece: Any, text: str, at: int) -> int:
    """Where a piece ends, as it is or as JSON writes it, from `at` on; or -1."""
    forms = {" ".join(str(piece).split())}
    forms.add(" ".join(json.dumps(piece, ensure_ascii=False).strip('"').split()))
    if isinstance(piece, str):
        ends = [start + len(form) for form in forms if (start := text.find(form, at)) >= 0]
    else:  # a number is not a part of a longer one
        words = (rf"(?<![\w.]){re.escape(form)}(?!\w|\.\d)" for form in forms)
        ends = [match.end() for word in words if (match := re.compile(word).search(text, at))]
    return min(ends, default=-1)


@lru_cache(maxsize=4)
def _flat(text: str) -> str:
    return " ".join(text.split())
