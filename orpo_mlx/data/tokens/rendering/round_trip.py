"""What of a message a text holds, in the order in which the message says it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from orpo_mlx.data.pairs.load import Message
from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS
from orpo_mlx.data.tokens.rendering.reasoning import CONTENT, REASONING, split_content

CALL = "tool call"


class _Trail(NamedTuple):
    """What of a message is not in a text, and where what is there ends, its calls apart."""

    lost: list[str]
    end: int
    calls_end: int


def lost_parts(message: Message, text: str) -> list[str]:
    """The parts of a message that do not follow each other in a text, white space aside."""
    if _is_plain(message) and message["content"].strip() in text:
        return []
    return _follow(message, _flat(text), 0).lost


def lost_in_prompt(messages: Sequence[Message], prompt: str) -> list[tuple[str, str]]:
    """The parts that messages, one after another, lose in a prompt, each with its role.

    A system message may be anywhere: some templates write it into the last turn.
    """
    if _follow_plainly(messages, prompt):
        return []
    text, at, called, lost = _flat(prompt), 0, 0, []
    for message in messages:
        # A tool's answer follows its call; the text of that message may follow both (Gemma 4).
        starts = {"tool": called, "system": 0, "developer": 0}
        trail = _follow(message, text, starts.get(message["role"], at))
        if message["role"] not in ("system", "developer"):
            at, called = max(at, trail.end), trail.calls_end
        lost += [(part, str(message["role"])) for part in trail.lost]
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


def _follow(message: Message, text: str, at: int) -> _Trail:
    """A message in a text from `at` on: reasoning, and text and calls in either order."""
    pieces = _pieces(message)
    calls = [(CALL, call.get("function", call)) for call in message.get("tool_calls") or []]
    trail = _trail_of([*pieces, *calls], text, at)
    if not calls or not trail.lost:
        return trail
    first = [piece for piece in pieces if piece[0] == REASONING]
    last = [piece for piece in pieces if piece[0] != REASONING]
    return min(trail, _trail_of([*first, *calls, *last], text, at), key=lambda t: len(t.lost))


def _trail_of(pieces: Sequence[tuple[str, Any]], text: str, at: int) -> _Trail:
    """Pieces one after another."""
    lost, calls_end = set(), at
    for kind, piece in pieces:
        end = (_end_of_call if kind == CALL else _end_of)(piece, text, at)
        if end < 0:
            lost.add(kind)
        at = max(at, end)
        calls_end = at if kind == CALL else calls_end
    kinds = [kind for kind in (CONTENT, REASONING, CALL) if kind in lost]
    return _Trail(kinds, at, calls_end if CALL in dict(pieces) else at)


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
