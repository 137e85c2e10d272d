"""Reasoning inside the content of a message: where it is, and its message in a template's key."""

import re
from collections.abc import Mapping
from typing import Any

from orpo_mlx.data.pairs.message_parts.content import REASONING_KEYS
from orpo_mlx.data.tokens.rendering.refused import RefusedError

CONTENT, REASONING, OPEN = "content", "reasoning", "open reasoning"
# A form of message instead of a key: the content is a list of parts, as Magistral's templates read.
PARTS = "parts"
CANNOT_WRITE = "the template cannot write a response with"
NEVER_CLOSED = "reasoning that <think> opens and nothing closes"
# In quotes, a mark is what the text is about.
_EMPTY_BLOCK = re.compile(r"\A\s*(?:<think>\s*)?</think>\s*")
_MARK = re.compile(r"(?<![`'\"])</?think>(?![`'\"])")


def split_content(content: str) -> list[tuple[str, str]]:
    """The pieces of a content in order, each with its kind; white space alone is none.

    Text before a first `</think>` without its opening is reasoning; `OPEN` lacks the closing one.
    """
    marks = list(_MARK.finditer(content)) if "think>" in content else []
    if not marks:
        return [(CONTENT, content)] if content.strip() else []
    kind, start, pieces = REASONING if marks[0][0] == "</think>" else CONTENT, 0, []
    for mark in marks:
        pieces.append((kind, content[start : mark.start()]))
        kind, start = REASONING if mark[0] == "<think>" else CONTENT, mark.end()
    pieces.append((OPEN if kind == REASONING else kind, content[start:]))
    return [(kind, text) for kind, text in pieces if text.strip()]


def split_reasoning(message: Mapping[str, Any]) -> tuple[list[str], str]:
    """Reasoning and answer of a message, whichever way it holds them."""
    pieces = split_content(message["content"])
    given = [str(message[key]) for key in REASONING_KEYS if message.get(key)]
    thoughts = [text for kind, text in pieces if kind == REASONING]
    answer = "".join(text for kind, text in pieces if kind != REASONING)
    return list(dict.fromkeys([*given, *thoughts])), answer


def may_reason(message: Mapping[str, Any]) -> bool:
    """Whether a message may hold reasoning: a quick look."""
    return "think>" in message["content"] or any(map(message.get, REASONING_KEYS))


def lacks_opening(content: str) -> bool:
    """Whether a content holds reasoning that `</think>` ends and nothing begins."""
    first = _MARK.search(content) if "think>" in content else None
    return bool(first and first[0] == "</think>" and content[: first.start()].strip())


def ends_inside(content: str) -> bool:
    """Whether a content ends inside reasoning, be it empty, that nothing closes."""
    marks = _MARK.findall(content)
    return bool(marks) and marks[-1] == "<think>"


def in_key(message: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """A message with its reasoning, and nothing else, in `key`; None if it has none elsewhere.

    Raises RefusedError for reasoning that is not one piece before the answer.
    """
    pieces = split_content(message["content"])
    inline = [text.strip() for kind, text in pieces if kind in (REASONING, OPEN)]
    given = {k: str(message[k]) for k in REASONING_KEYS if message.get(k)}
    if not inline and (marked := _MARK.search(message["content"])):
        return _without_empty_block(message, marked.start(), key)
    if not inline and (not given or key in given):
        return None
    thoughts = {" ".join(text.split()): text for text in (*given.values(), *inline)}
    if len(inline) > 1 or (inline and pieces[0][0] == CONTENT):
        raise RefusedError(f"{CANNOT_WRITE} reasoning between parts of its text")
    if len(thoughts) > 1:
        raise RefusedError(f"{CANNOT_WRITE} different reasoning in two of its keys")
    if any(kind == OPEN for kind, _ in pieces):
        raise RefusedError(f"{CANNOT_WRITE} {NEVER_CLOSED}")
    answer = "".join(text for kind, text in pieces if kind == CONTENT)
    others = {k: v for k, v in message.items() if k not in REASONING_KEYS}
    thought = next(iter(thoughts.values()))
    return with_reasoning(
        {**others, "content": answer.lstrip() if inline else answer}, thought, key
    )


def _without_empty_block(message: Mapping[str, Any], start: int, key: str) -> dict[str, Any]:
    """A message without the marks of reasoning, between which there is none."""
    answer = _EMPTY_BLOCK.sub("", message["content"])
    if message["content"][:start].strip() or _MARK.search(answer):
        raise RefusedError(f"{CANNOT_WRITE} reasoning between parts of its text")
    bare = {**message, "content": answer}
    return in_key(bare, key) or bare


def with_reasoning(message: Mapping[str, Any], thought: str, key: str) -> dict[str, Any]:
    """A message with its reasoning in a template's key, or in parts of its content."""
    if key != PARTS:
        return {**message, key: thought}
    text = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {**message, "content": [{"type": "thinking", "thinking": thought}, *text]}


def letters_of(text: str) -> str:
    """A text without white space."""
    return "".join(text.split())
